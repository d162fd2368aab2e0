//! Answers to the questions of viewers and operators.

use super::{Replica, ReplicaOutput};
use crate::body::explain::ExplainReport;
use crate::body::query::Answers;
use crate::rules::Rules;

impl Replica {
    /// Answers a viewer's query about users of this shard. `None` if another node must be asked, or
    /// this one doesn't know enough yet.
    pub fn query<'a>(
        &mut self,
        now: u64,
        viewer: &str,
        users: impl Iterator<Item = &'a str>,
        rules: &mut dyn Rules,
        out: &mut Vec<ReplicaOutput>,
    ) -> Option<Answers> {
        if !self.may_answer(now, out) {
            return None;
        }
        let mut outputs = Vec::new();
        let answers = self.shard.query(now, viewer, users, rules, &mut outputs);
        self.tell(outputs, out);
        Some(answers)
    }

    /// Explains a decision about a user of this shard. `None` as in [`Self::query`].
    pub fn explain(
        &mut self,
        now: u64,
        (viewer, user): (&str, &str),
        rules: &mut dyn Rules,
        out: &mut Vec<ReplicaOutput>,
    ) -> Option<ExplainReport> {
        if !self.may_answer(now, out) {
            return None;
        }
        let mut outputs = Vec::new();
        let report = self.shard.explain(now, viewer, user, rules, &mut outputs);
        self.tell(outputs, out);
        Some(report)
    }

    /// Whether the replica knows enough to answer, which is what viewers have been told. On a shard
    /// that never had another owner, nobody knows more. An owner that succeeds itself knows it too,
    /// though it may have missed inputs.
    fn may_answer(&mut self, now: u64, out: &mut Vec<ReplicaOutput>) -> bool {
        self.settle(now, out);
        let is_sure = self.shard.unsure_ms() == 0 || self.is_first;
        self.is_leading && !self.is_behind && (is_sure || self.has_ledger)
    }
}
