//! Who answers viewers, and operators.

use super::{Out, Replica};
use crate::body::explain::ExplainReport;
use crate::body::query::Answers;
use crate::rules::Rules;

impl Replica {
    /// Answers a viewer on users of this shard; none where another node is to be asked, or
    /// this one doesn't know enough yet.
    pub fn query<'a>(
        &mut self,
        now: u64,
        viewer: &str,
        users: impl Iterator<Item = &'a str>,
        rules: &mut dyn Rules,
        out: &mut Vec<Out>,
    ) -> Option<Answers> {
        if !self.may_answer(now, out) {
            return None;
        }
        let mut outputs = Vec::new();
        let answers = self.shard.query(now, viewer, users, rules, &mut outputs);
        self.tell(outputs, out);
        Some(answers)
    }

    /// Explains a decision on a user of this shard; none as of [`Self::query`].
    pub fn explain(
        &mut self,
        now: u64,
        (viewer, user): (&str, &str),
        rules: &mut dyn Rules,
        out: &mut Vec<Out>,
    ) -> Option<ExplainReport> {
        if !self.may_answer(now, out) {
            return None;
        }
        let mut outputs = Vec::new();
        let report = self.shard.explain(now, viewer, user, rules, &mut outputs);
        self.tell(outputs, out);
        Some(report)
    }

    /// Whether it knows enough to answer: what viewers have been told. Of a shard that never had another
    /// owner, nobody knows more. One that is its own successor knows that, though it may have missed
    /// inputs.
    fn may_answer(&mut self, now: u64, out: &mut Vec<Out>) -> bool {
        self.settle(now, out);
        let is_sure = self.shard.unsure_ms() == 0 || self.is_first;
        self.is_leading && !self.is_behind && (is_sure || self.has_ledger)
    }
}
