//! Explaining to an operator why a viewer can or can't see a user.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::tell::context;
use super::{Output, Shard};
use crate::body::explain::{Basis, Found, Standing};
use crate::event::{Change, Event};
use crate::metadata::Metadata;
use crate::rules::{Decision, Rules};
use crate::verdicts::Verdict;

impl Shard {
    /// Decides on what was last announced of a user, and tells how that comes about
    /// for a viewer. It changes nothing of what anyone is told.
    pub fn explain(
        &mut self,
        now: u64,
        viewer: &str,
        user: &str,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) -> Found {
        let now = self.clock.wall_at(self.now.max(now));
        let viewer = self.names.intern(viewer);
        let (user, name) = self.names.intern_name(user);
        let entry = self.ledger.get(user);
        let told = entry.is_some_and(|entry| entry.told.contains(viewer));
        let pending = self.agenda.pending_until(user);
        let pending = pending.map(|at| self.clock.wall_at(at));
        let (event, basis) = match entry {
            Some(entry) => (Arc::clone(entry.judged()), Basis::Online),
            None => match self.departed.event(user, &self.names) {
                Some(event) => (Arc::new(event), Basis::Departed),
                None => {
                    let event = Event {
                        user,
                        name,
                        timestamp: now,
                        change: Change::Online,
                        metadata: Metadata::default(),
                    };
                    (Arc::new(event), Basis::Hypothetical)
                }
            },
        };
        let context = context(&self.clock, now, &event, &self.directory, &self.names);
        let explanation = rules.explain(context, viewer);
        self.notice_replaced(rules);
        let (rendition, not_at_hand, failure) = match explanation.decision {
            Decision::Decided(renditions, reads) => {
                let verdict = match basis {
                    Basis::Departed => self.departed.admitted(user, renditions, &reads),
                    Basis::Online | Basis::Hypothetical => Verdict::new(user, renditions),
                };
                (verdict.rendition(viewer).cloned(), BTreeSet::new(), None)
            }
            Decision::NotAtHand(questions) => {
                out.push(Output::Fetch(questions.clone()));
                (None, questions, None)
            }
            Decision::Failed(failure) => {
                self.counters.failures += 1;
                (None, BTreeSet::new(), Some(failure))
            }
        };
        let standing = match (basis, rendition.is_some()) {
            (Basis::Departed | Basis::Hypothetical, _) => Standing::Offline,
            (Basis::Online, _)
                if pending.is_some() || !not_at_hand.is_empty() || failure.is_some() =>
            {
                Standing::Pending(pending)
            }
            (Basis::Online, sees) if sees == told => Standing::Settled,
            (Basis::Online, _) => Standing::Correcting,
        };
        Found {
            event,
            basis,
            stages: explanation.stages,
            rendition,
            not_at_hand,
            failure,
            told,
            standing,
            is_self: viewer == user,
        }
    }
}
