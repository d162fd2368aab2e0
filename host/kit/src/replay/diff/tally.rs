//! Counts the differences.

use presence_core::comparison::Pairs;
use presence_core::names::Id;

use super::online_period::Difference;

#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) messages: u64,
    /// The times of the first and the last message, in milliseconds since the Unix epoch.
    pub(super) span: Option<(u64, u64)>,
    pub(super) periods: u64,
    /// Stays without any difference.
    pub(super) same: u64,
    pub(super) gained: Pairs,
    pub(super) lost: Pairs,
    pub(super) otherwise: Pairs,
}

impl Tally {
    pub(super) fn message(&mut self, at: u64) {
        self.messages += 1;
        let (first, last) = self.span.unwrap_or((at, at));
        self.span = Some((first.min(at), last.max(at)));
    }

    pub(super) fn period(&mut self, user: Id, difference: &Difference) {
        self.periods += 1;
        self.same += u64::from(difference.is_empty());
        self.gained.add(user, &difference.gained);
        self.lost.add(user, &difference.lost);
        self.otherwise.add(user, &difference.otherwise);
    }
}
