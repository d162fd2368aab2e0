//! Asking the rules. It is done here and nowhere else in the shard.

use std::sync::Arc;

use super::env::{Common, Env};
use crate::audience::Audience;
use crate::event::Event;
use crate::names::Id;
use crate::rules::{Context, Decision, Enriched, Explanation};

impl Env<'_> {
    /// What the enrichers make of an event.
    pub(super) fn ask_enrichers(&mut self, event: &Arc<Event>) -> Enriched {
        let wall = self.common.clock.wall();
        self.rules.enrich(self.common.context(wall, event))
    }

    /// Who may see an event at a wall time, and what each of them gets.
    pub(super) fn ask_rules(&mut self, wall: u64, event: &Arc<Event>) -> Decision {
        self.common.counters.decided += 1;
        self.rules.decide(self.common.context(wall, event))
    }

    /// Notes that an earlier decision is reused for an event at a wall time.
    pub(super) fn reuse_decision(&mut self, wall: u64, event: &Arc<Event>) {
        self.common.counters.reused += 1;
        self.rules.reused(self.common.context(wall, event));
    }

    /// What the redactor shows each of these viewers of an event.
    pub(super) fn ask_redactor(&mut self, event: &Arc<Event>, viewers: &Audience) -> Decision {
        let wall = self.common.clock.wall();
        self.rules.redact(self.common.context(wall, event), viewers)
    }

    /// As [`Self::ask_rules`], with what each stage does to a viewer.
    pub(super) fn ask_why(&mut self, wall: u64, event: &Arc<Event>, viewer: Id) -> Explanation {
        self.rules.explain(self.common.context(wall, event), viewer)
    }

    /// Whether the last good generation of a filter or redactor has taken over since the
    /// last call of this method.
    pub(super) fn rules_were_replaced(&mut self) -> bool {
        self.rules.take_replaced()
    }
}

impl Common {
    /// What a call at a wall time may know.
    fn context<'a>(&'a self, wall: u64, event: &'a Arc<Event>) -> Context<'a> {
        Context {
            now: wall,
            monotonic: self.clock.now_at(wall),
            event,
            directory: &self.directory,
            names: &self.names,
        }
    }
}
