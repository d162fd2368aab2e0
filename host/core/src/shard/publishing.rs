//! Publishing: what is broadcast, and what viewers are told.

use std::sync::Arc;

use bytes::Bytes;

use super::env::Env;
use super::types::Output;
use crate::audience::Audience;
use crate::body;
use crate::event::{Change, Event};
use crate::inbox::Delivery;
use crate::publish::Subject;
use crate::rules::Rendition;

impl Env<'_> {
    /// Publishes a body under the next number of its subject.
    pub(super) fn publish(&mut self, subject: Subject, body: impl Into<Bytes>) {
        let publication = self.common.numbering.number(subject, body.into());
        self.out.push(Output::Publish(publication));
    }

    /// Tells viewers what a rendition shows of an event: in filtered messages, and, if that is
    /// turned on, each viewer on a subject of their own.
    pub(super) fn publish_filtered(
        &mut self,
        event: &Event,
        rendition: &Rendition,
        viewers: &Audience,
    ) {
        if viewers.is_empty() {
            return;
        }
        let subject = match event.change {
            Change::Online => Subject::FilteredOnline,
            Change::Offline { .. } => Subject::FilteredOffline,
            Change::Updated => Subject::FilteredUpdated,
        };
        let (names, max) = (&self.common.names, self.common.settings.body_bytes_max);
        for body in body::filtered(event, rendition, viewers, names, max) {
            self.publish(subject, body);
        }
        if self.common.settings.inbox {
            self.deliver(event, rendition, viewers);
        }
    }

    /// Tells each viewer on a subject of their own.
    fn deliver(&mut self, event: &Event, rendition: &Rendition, viewers: &Audience) {
        let names = self.common.names.read();
        let bodies = body::ToOne::new(event, rendition);
        for id in viewers.ids() {
            let Some(viewer) = names.name(id) else {
                continue;
            };
            let (renewed, seq) = self.common.inboxes.number(id);
            self.out.push(Output::Deliver(Delivery {
                viewer: viewer.clone(),
                renewed,
                seq,
                body: bodies.body(viewer).into(),
            }));
        }
    }
}

/// The subject on which an event is broadcast.
pub(super) fn subject(event: &Event) -> Subject {
    match event.change {
        Change::Online => Subject::Online,
        Change::Offline { .. } => Subject::Offline,
        Change::Updated => Subject::Updated,
    }
}

/// A rendition that shows viewers nothing but the change itself.
pub(super) fn bare(viewers: &Audience) -> Rendition {
    Rendition {
        audience: viewers.clone(),
        keys: Arc::new([]),
        last_seen: false,
    }
}

/// An online event as an update, for viewers who were shown something else before.
pub(super) fn updated(event: &Event, at: u64) -> Event {
    Event {
        timestamp: at,
        change: Change::Updated,
        ..event.clone()
    }
}
