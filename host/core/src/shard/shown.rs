//! What is shown of a user: what the newest of their live connections says, and what
//! the enrichers make of it.
//!
//! When that changes while the user stays online, it is no transition and nothing is
//! broadcast of one: the ledger's online event becomes another, which the enrichers are
//! asked for anew, and whoever is shown something else by it is told.

use std::sync::Arc;

use super::waiting::{Lack, Step};
use super::{Output, Shard};
use crate::body;
use crate::event::{Change, Event};
use crate::metadata::Metadata;
use crate::rules::Rules;

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
        if let Some(at) = self.next_update_at(event.user) {
            self.statuses.reshow_at(event.user, at);
            return Ok(());
        }
        let before = Arc::clone(&entry.event);
        let metadata = match self.settings.status {
            Some(_) => self.reading(&before).put_into(shown),
            None => shown.clone(),
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
        let after = match enriched.changes.is_empty() {
            true => plain,
            false => Arc::new(plain.changed(&enriched.changes)),
        };
        if !after.metadata.entries().eq(before.metadata.entries()) {
            // What is for the rules alone is no news to anybody.
            let is_news = body::event(&after) != body::event(&before);
            match self.settings.status {
                Some(_) if is_news => self.change(after, rules, out),
                _ => self.show(after, rules, out),
            }
        }
        Ok(())
    }
}
