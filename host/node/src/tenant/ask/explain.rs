//! Explaining a decision: the shard that owns the user makes it again, and records a trace of the
//! stages.

use std::sync::atomic::Ordering;

use presence_core::body::explain::explanation;
use presence_core::query::{Explain, Refusal};
use tokio::sync::oneshot;

use super::{QueryService, TRIES};
use crate::pool::ShardQuestion;

impl QueryService {
    /// Returns an error if explanations are turned off.
    pub(super) fn explain_if_enabled(&self) -> Result<(), Refusal> {
        if self.explains.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err(Refusal::not_enabled(
            "explanations are off: set enabled = true in [explain] of the configuration",
        ))
    }

    /// Explains a decision. `None` if a shard could not answer.
    pub(super) async fn explain(&self, asked: Explain) -> Result<Option<Vec<u8>>, Refusal> {
        match &self.fleet {
            Some(fleet) => self.ask_owner(fleet, asked).await,
            None => self.explain_by_shard(asked).await,
        }
    }

    /// Explains a decision with a shard of this node. `None` if it could not answer.
    pub(super) async fn explain_by_shard(
        &self,
        asked: Explain,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let Some(shard) = self.shards.get(self.shards.place_of(&asked.user)) else {
            return Ok(None);
        };
        let mut tries = 0;
        loop {
            let (answer, answered) = oneshot::channel();
            if !shard.ask(ShardQuestion::Explain(asked.clone(), answer)) {
                return Err(Refusal::overloaded());
            }
            let Ok((generation, found)) = answered.await else {
                return Ok(None);
            };
            tries += 1;
            let missing = &found.cache_misses;
            if !missing.is_empty() && tries < TRIES && self.has_answers(missing).await {
                continue;
            }
            let body = explanation(&asked.viewer, &asked.user, generation, &found);
            return Ok(Some(body));
        }
    }
}
