//! Telling viewers that a user came online or went offline.

use std::sync::Arc;

use super::agenda::Again;
use super::{Output, Shard};
use bytes::Bytes;

use crate::audience::Audience;
use crate::body;
use crate::clock::Clock;
use crate::departed::Known;
use crate::event::{Change, Event};
use crate::inbox::Delivery;
use crate::message::{Cause, Rejection};
use crate::metadata::Metadata;
use crate::publish::Subject;
use crate::rules::{Context, Decision, Enriched, Failure, Rendition, Rules};
use crate::told::Told;
use crate::verdicts::Verdict;

/// Who is told of a decision, of those to whom it makes a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    /// Those who lost sight of the user. Anyone who gains it, or is shown something
    /// else, has their turn later.
    Losses,
    /// All of them.
    All,
}

impl Shard {
    /// A user has been announced to have come online.
    pub(super) fn online(
        &mut self,
        event: &Arc<Event>,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) {
        self.ledger.online(Arc::clone(event));
        self.waiting.put_off_no_more(event.user);
        self.agenda.set(event.user, None);
        self.decide(event, Whom::All, rules, out);
    }

    /// A user has been announced to have gone offline. Says who is to be told of it:
    /// anyone who was told that they came online, whatever the rules say now.
    pub(super) fn offline(&mut self, event: &Event) -> Told {
        // Where the last decision wasn't made, nobody learns more than that they are gone.
        let user = event.user;
        let pending = self.agenda.pending_until(user).is_some();
        let waits = self.status_waits(user);
        self.waiting.put_off_no_more(user);
        let Some(entry) = self.ledger.offline(user) else {
            let nothing = Known::all(&Metadata::default());
            self.departed.note(event, nothing, Told::default());
            return Told::default();
        };
        let last = entry.judged();
        let known = match self.verdicts.keys_read(last) {
            Some(keys) => Known::some(&last.metadata, keys),
            None => Known::all(&last.metadata),
        };
        let settled = !(pending || waits || entry.unsettled);
        let admitted = match settled {
            true => entry.told.clone(),
            false => Told::default(),
        };
        self.departed.note(event, known, admitted);
        self.agenda.set(event.user, None);
        let ledger = &self.ledger;
        self.verdicts
            .tidy(|user| ledger.get(user).is_some(), ledger.len());
        entry.told
    }

    /// Tells those who were told that a user is online that they are gone.
    pub(super) fn tell_gone(
        &mut self,
        event: &Event,
        told: &Told,
        renditions: Vec<Rendition>,
        out: &mut Vec<Output>,
    ) {
        let verdict = Verdict::new(event.user, renditions);
        let may_know = told.may_know_last_seen();
        // Nobody is left believing that the user is online.
        let mut rest = told.audience().difference(&verdict.audience);
        for rendition in &verdict.renditions {
            let mut viewers = rendition.audience.intersection(told.audience());
            // The last verdict while online, and the redactor of now, both have a say.
            if rendition.last_seen {
                rest = rest.union(&viewers.difference(&may_know));
                viewers = viewers.intersection(&may_know);
            }
            self.tell(event, rendition, &viewers, out);
        }
        self.tell(event, &bare(&rest), &rest, out);
    }

    /// Decides who may see an online user, and tells whom that concerns.
    pub(super) fn decide(
        &mut self,
        event: &Arc<Event>,
        whom: Whom,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) {
        if self.settings.reuse_verdicts
            && let Some((verdict, again_at)) = self.verdicts.find(self.clock.wall(), event)
        {
            self.counters.reused += 1;
            return self.settle(event, &verdict, again_at, whom, out);
        }
        self.counters.decided += 1;
        let context = context(
            &self.clock,
            self.clock.wall(),
            event,
            &self.directory,
            &self.names,
        );
        match rules.decide(context) {
            Decision::Decided(renditions, reads) => {
                let verdict = Arc::new(Verdict::new(event.user, renditions));
                let again_at = reads.reconsider_at;
                self.verdicts
                    .keep(self.clock.wall(), event, Arc::clone(&verdict), reads);
                self.settle(event, &verdict, again_at, whom, out);
            }
            Decision::NotAtHand(questions) => {
                self.postpone(event);
                self.agenda.unanswered.note(event.user, questions.clone());
                out.push(Output::Fetch(questions));
            }
            Decision::Failed(failure) => {
                self.counters.failures += 1;
                // One letter an event, however often it is tried again.
                if self.postpone(event) {
                    self.plugin_failed(event, &failure, out);
                }
            }
        }
    }

    /// Broadcasts an event as the enrichers have it.
    pub(super) fn announce(
        &mut self,
        plain: Arc<Event>,
        enriched: Enriched,
        ours: bool,
        out: &mut Vec<Output>,
    ) -> Arc<Event> {
        let mut shared = Arc::clone(&plain);
        if !enriched.changes.is_empty() {
            shared = Arc::new(plain.changed(&enriched.changes));
        }
        let mut body = body::event(&shared);
        let body_bytes_max = self.settings.body_bytes_max;
        if !enriched.changes.is_empty() && body.len() > body_bytes_max {
            let error = format!(
                "the enrichers make the event {} bytes long, and the broker takes {body_bytes_max}: it goes on without them",
                body.len(),
            );
            let rejection = Rejection::new(Cause::TooLarge, error);
            (body, shared) = (body::event(&plain), plain);
            self.dead_letter(subject(&shared).as_str(), &rejection, &body, out);
        }
        for failure in &enriched.failures {
            self.failed(&shared, failure, out);
        }
        let body = Bytes::from(body);
        // An application's own event is on its own subject already.
        if ours {
            self.publish(subject(&shared), body.clone(), out);
        }
        self.publish(Subject::Events, body, out);
        shared
    }

    pub(super) fn tell(
        &mut self,
        event: &Event,
        rendition: &Rendition,
        viewers: &Audience,
        out: &mut Vec<Output>,
    ) {
        let subject = match event.change {
            Change::Online => Subject::FilteredOnline,
            Change::Offline { .. } => Subject::FilteredOffline,
            Change::Updated => Subject::FilteredUpdated,
        };
        let body_bytes_max = self.settings.body_bytes_max;
        for body in body::filtered(event, rendition, viewers, &self.names, body_bytes_max) {
            self.publish(subject, body, out);
        }
        if self.settings.inbox {
            self.deliver(event, rendition, viewers, out);
        }
    }

    /// Tells each viewer on a subject of their own.
    fn deliver(
        &mut self,
        event: &Event,
        rendition: &Rendition,
        viewers: &Audience,
        out: &mut Vec<Output>,
    ) {
        let names = self.names.read();
        for id in viewers.ids() {
            let Some(viewer) = names.name(id) else {
                continue;
            };
            let (renewed, seq) = self.inboxes.number(id);
            out.push(Output::Deliver(Delivery {
                viewer: viewer.clone(),
                renewed,
                seq,
                body: body::to_one(event, rendition, viewer).into(),
            }));
        }
    }

    /// A component failed on an event: nothing is lost of it.
    pub(super) fn failed(&mut self, event: &Event, failure: &Failure, out: &mut Vec<Output>) {
        self.counters.failures += 1;
        self.plugin_failed(event, failure, out);
    }

    fn plugin_failed(&mut self, event: &Event, failure: &Failure, out: &mut Vec<Output>) {
        let error = format!("plugin `{}`: {}", failure.plugin, failure.error);
        let rejection = Rejection::new(Cause::PluginFailed, error);
        self.dead_letter(
            subject(event).as_str(),
            &rejection,
            &body::event(event),
            out,
        );
    }

    /// Puts a decision off. Nobody new is told until it is made. Says whether
    /// it had not been put off before.
    fn postpone(&mut self, event: &Event) -> bool {
        let before = self.agenda.get(event.user);
        let pending = before.and_then(|again| again.next_wait_ms);
        let wait_ms = pending.unwrap_or(self.settings.retry_ms);
        let again = Again {
            at: self.now + wait_ms,
            next_wait_ms: Some(wait_ms.saturating_mul(2).min(self.settings.retry_ms_max)),
        };
        self.agenda.set(event.user, Some(again));
        pending.is_none()
    }
}

fn subject(event: &Event) -> Subject {
    match event.change {
        Change::Online => Subject::Online,
        Change::Offline { .. } => Subject::Offline,
        Change::Updated => Subject::Updated,
    }
}

pub(super) fn bare(viewers: &Audience) -> Rendition {
    Rendition {
        audience: viewers.clone(),
        keys: Arc::new([]),
        last_seen: false,
    }
}

/// What a call may know that is made at a wall time.
pub(super) fn context<'a>(
    clock: &Clock,
    wall: u64,
    event: &'a Arc<Event>,
    directory: &'a Arc<crate::directory::Directory>,
    names: &'a Arc<crate::names::Names>,
) -> Context<'a> {
    Context {
        now: wall,
        monotonic: clock.now_at(wall),
        event,
        directory,
        names,
    }
}
