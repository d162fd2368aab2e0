//! What the node's page does with the store: it reads the history, and makes an earlier
//! pipeline the next revision, as `presence pipeline rollback` does.

use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use presence_config::revision::Revision;

use super::trial::Trials;
use super::{Found, Store, Written};
use crate::clock;

/// The store, for a page of this node.
pub(crate) struct PageStore {
    pub(crate) store: Store,
    pub(crate) trials: Arc<Trials>,
    /// The node's name.
    pub(crate) node: String,
}

impl PageStore {
    /// All revisions, in the order of their numbers.
    ///
    /// # Errors
    /// As [`Store::revisions`].
    pub(crate) async fn history(&self) -> anyhow::Result<Vec<Found>> {
        self.store.revisions().await
    }

    /// Makes the pipeline of a revision the next one, once this node has validated it.
    /// `seen` is the newest revision that the operator has seen. Returns the new one's
    /// number.
    ///
    /// # Errors
    /// If there is a newer one than was seen, the node refuses it, or it can't be written.
    pub(crate) async fn roll_back(&self, to: u64, seen: u64) -> anyhow::Result<u64> {
        let revisions = self.store.revisions().await?;
        let newest = revisions.last().context("there is no revision")?;
        ensure!(
            newest.number == seen,
            "{} meanwhile: look at it first",
            written(newest)
        );
        let target = revisions.iter().find(|it| it.number == to);
        let target = target.with_context(|| format!("there is no revision {to}"))?;
        let target = target.revision.as_ref();
        let target = target.map_err(|error| anyhow::anyhow!("{error:#}"))?;
        if let Ok(newest) = &newest.revision {
            ensure!(
                newest.chain != target.chain,
                "revision {seen} has the same pipeline"
            );
        }
        let next = Revision {
            revision: seen.saturating_add(1),
            chain: target.chain.clone(),
            candidate: None,
            who: format!("page@{}", self.node),
            when: clock::now_ms(),
            why: format!("rollback to revision {to}"),
        };
        let validated = self.trials.validate(&next.to_json()).await;
        validated.map_err(|why| anyhow::anyhow!("this node refuses it: {why}"))?;
        match self.store.write(&next).await? {
            Written::Done => Ok(next.revision),
            Written::Taken(other) => bail!("{} meanwhile: look at it first", written(&other)),
        }
    }
}

/// By whom a revision was written.
fn written(found: &Found) -> String {
    match &found.revision {
        Ok(revision) => format!("{} has written revision {}", revision.who, found.number),
        Err(_) => format!("somebody has written revision {}", found.number),
    }
}
