//! The page's access to the store: reads the history, and makes the next revision, like `presence
//! pipeline rollback`, `presence plugins promote` and `abort`.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use presence_config::revision::Revision;

use super::state::StoreState;
use super::trial::RevisionValidator;
use super::{FoundRevision, SCANNED_MAX, Store, WriteResult, next_number};
use crate::clock;

/// The store, for the page of this node.
pub(crate) struct PageStore {
    pub(crate) store: Store,
    pub(crate) validator: Arc<RevisionValidator>,
    /// The node's state with regard to the store.
    pub(crate) state: Arc<StoreState>,
    /// The node's name.
    pub(crate) node: String,
}

/// A change that an operator makes on the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageAction {
    /// Makes the pipeline of this revision the next one.
    RollBack(u64),
    /// Puts the canary in force for everyone.
    Promote,
    /// Ends the canary.
    Abort,
}

impl PageStore {
    /// The last revisions, in the order of their numbers.
    ///
    /// # Errors
    /// As [`Store::revisions`].
    pub(crate) async fn history(&self) -> anyhow::Result<Vec<FoundRevision>> {
        self.store.revisions(SCANNED_MAX).await
    }

    /// Makes another pipeline the next revision, after this node has validated it. `seen`: the
    /// number of the revision that was current when the operator looked. Returns the new number.
    ///
    /// # Errors
    /// If a newer revision exists than was seen, the node refuses the new one, or it can't be
    /// written.
    pub(crate) async fn change(&self, step: PageAction, seen: u64) -> anyhow::Result<u64> {
        let revisions = self.store.revisions(SCANNED_MAX).await?;
        let mut good = revisions.iter().rev();
        let newest = good.find_map(|it| Some((it, it.revision.as_ref().ok()?)));
        let (found, newest) = newest.context("there is no revision")?;
        ensure!(
            found.number == seen,
            "{} meanwhile: look at it first",
            written(found)
        );
        let (chain, why) = match step {
            PageAction::RollBack(to) => {
                let target = self.store.revision(to).await?;
                let target = target.with_context(|| format!("there is no revision {to}"))?;
                let chain = target.revision?.chain;
                ensure!(
                    newest.chain != chain,
                    "revision {seen} has the same pipeline"
                );
                (chain, format!("rollback to revision {to}"))
            }
            PageAction::Promote | PageAction::Abort => {
                let candidate = newest.candidate.as_ref();
                let candidate = candidate.context("no canary runs by now")?;
                let named = candidate.label();
                match step {
                    PageAction::Promote => (
                        candidate.applied_to(&newest.chain),
                        format!("promote the canary {named}"),
                    ),
                    _ => (newest.chain.clone(), format!("abort the canary {named}")),
                }
            }
        };
        // If the bucket was lost, nodes run a higher number than it has, and accept only higher
        // ones.
        let in_force = self.state.in_force().map_or(0, |it| it.revision);
        let number = next_number(&revisions, seen.max(in_force));
        let next = Revision {
            revision: number.context("there is no higher number of a revision")?,
            chain,
            candidate: None,
            who: format!("page@{}", self.node),
            when: clock::now_ms(),
            why,
        };
        let validated = self.validator.validate(&next.to_json()).await;
        validated.map_err(|why| anyhow::anyhow!("this node refuses it: {why}"))?;
        match self.store.write(&next).await? {
            WriteResult::Done => Ok(next.revision),
            WriteResult::Conflict(other) => {
                bail!("{} meanwhile: look at it first", written(&other))
            }
        }
    }
}

/// Who has written a revision, for an error text.
fn written(found: &FoundRevision) -> String {
    match &found.revision {
        Ok(revision) => format!("{} has written revision {}", revision.who, found.number),
        Err(_) => format!("somebody has written revision {}", found.number),
    }
}
