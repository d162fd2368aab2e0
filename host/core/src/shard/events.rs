//! What is shown of a user: what the newest of their live connections says, and what
//! the enrichers make of it.
//!
//! When that changes while the user stays online, it is no transition and nothing is
//! broadcast of one: the ledger's online event becomes another, which the enrichers are
//! asked for anew, and viewers who are shown something else by it are told. Where that
//! would be too soon after the last update, it is told later; rules go by it at once.

use std::sync::Arc;

use super::settle::updated;
use super::waiting::{Lack, Step};
use super::{Output, Shard};
use crate::body;
use crate::event::{Change, Event};
use crate::message::{Cause, Rejection};
use crate::metadata::Metadata;
use crate::publish::Subject;
use crate::rules::{Enriched, Rules};
use crate::status::Reading;

impl Shard {
    /// A user who stays online is to be shown by what the newest connection says now.
    pub(super) fn reshow(&mut self, user: &str, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        let at = self.clock.stamp();
        let event = self.event(user, at, Change::Online, Metadata::default());
        self.begin(Step::Show(Arc::new(event)), rules, out);
    }

    pub(super) fn try_show(
        &mut self,
        event: Arc<Event>,
        until: u64,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) -> Result<(), Lack> {
        // They may have gone in the meantime, or an application has stated so.
        let entry = self.ledger.get(event.user);
        let Some((entry, shown)) = entry.zip(self.tracker.shown(event.name.as_str())) else {
            return Ok(());
        };
        let (before, judged) = (Arc::clone(&entry.event), Arc::clone(entry.judged()));
        let too_soon = self.next_update_at(event.user);
        let metadata = match (self.settings.status, too_soon) {
            (None, _) => shown.clone(),
            // A status has its own time to be told.
            (Some(_), Some(_)) => Reading::of(&before.metadata).put_into(shown),
            (Some(_), None) => self.reading(&before).put_into(shown),
        };
        let plain = Arc::new(Event {
            metadata,
            ..Event::clone(&before)
        });
        let enriched = match self.enrich(&plain, until, rules) {
            Ok(enriched) => enriched,
            Err(questions) => return Err((Step::Show(event), questions)),
        };
        for failure in &enriched.failures {
            self.failed(&plain, failure, out);
        }
        let after = self.enriched_if_it_fits(plain, &enriched, out);
        let differs = |from: &Event| !after.metadata.entries().eq(from.metadata.entries());
        // What is for the rules alone is no news to anybody.
        let is_news = self.settings.status.is_some() && !after.metadata.reads_as(&before.metadata);
        match too_soon.filter(|_| is_news) {
            Some(at) => {
                self.statuses.reshow_at(event.user, at);
                if differs(&judged) {
                    self.judge(after, rules, out);
                }
            }
            None if is_news && self.change(&after, rules, out) => {}
            None if differs(&before) || !Arc::ptr_eq(&judged, &before) => {
                self.show(after, rules, out);
            }
            None => {}
        }
        Ok(())
    }

    /// What the enrichers make of an event; the event as it is where the broker doesn't
    /// take that much.
    fn enriched_if_it_fits(
        &mut self,
        plain: Arc<Event>,
        enriched: &Enriched,
        out: &mut Vec<Output>,
    ) -> Arc<Event> {
        if enriched.changes.is_empty() {
            return plain;
        }
        let after = plain.changed(&enriched.changes);
        let body = body::event(&updated(&after, self.clock.stamp()));
        let body_bytes_max = self.settings.body_bytes_max;
        if body.len() <= body_bytes_max {
            return Arc::new(after);
        }
        let error = format!(
            "the enrichers make the event {} bytes long, and the broker takes {body_bytes_max}: it goes on without them",
            body.len(),
        );
        let rejection = Rejection::new(Cause::TooLarge, error);
        self.dead_letter(Subject::Updated.as_str(), &rejection, &body, out);
        plain
    }
}
