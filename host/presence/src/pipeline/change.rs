//! A change of the pipeline, the same for all commands that make one: it shows the difference, asks
//! for confirmation, has every node validate the revision, writes it unless somebody else has
//! written one meanwhile, and waits for every node.

use std::collections::BTreeSet;

use anyhow::{Context as _, bail, ensure};
use presence_config::Config;
use presence_config::escape::{eprint_line, line, print, print_json};
use presence_config::revision::{Candidate, Entry, Revision, toml_of};
use presence_kit::{ConfigArg, text};
use presence_node::clock;
use presence_node::store::operator::{FoundNode, Operator, RevisionStatus};
use presence_node::store::{FoundRevision, READ_MAX, WriteResult, next_number};
use serde_json::{Value, json};
use similar::TextDiff;

use super::file::PinnedPipeline;
use crate::confirmation::{ChangeOptions, unanswered_message, who};
use crate::secrets;
use crate::tenant;

/// The advice after somebody else has written a revision meanwhile.
const TRY_AGAIN: &str = "Look at `presence pipeline show`, and try again";

/// The plugin store, as it was read at the start of a command.
pub(crate) struct StoreSession {
    pub(crate) config: Config,
    pub(crate) operator: Operator,
    /// The revisions, in order.
    pub(crate) revisions: Vec<FoundRevision>,
    /// The highest revision that a node runs, if the bucket has no revisions.
    running: Option<Revision>,
}

impl StoreSession {
    /// Connects, and reads the revisions.
    pub(crate) async fn open(config: &ConfigArg) -> anyhow::Result<Self> {
        let config = tenant::load(config).await?;
        let operator = Operator::connect(&config).await?;
        let revisions = operator.store().revisions(READ_MAX).await;
        let revisions = revisions.map_err(|error| operator.with_broker_error(error))?;
        let mut session = Self {
            config,
            operator,
            revisions,
            running: None,
        };
        if session.revisions.is_empty() {
            session.running = session.highest_running().await;
        }
        if let Some(unread) = session.unreadable_newest() {
            let error = unread.revision.as_ref().err();
            let error = error.map(|error| format!("{error:#}")).unwrap_or_default();
            let holds = session.newest().map(|it| it.revision);
            let holds = holds.map_or("no revision".into(), |it| format!("revision {it}"));
            eprint_line(format_args!("warning: {error}; going by {holds}"));
        }
        Ok(session)
    }

    /// The highest revision that a node runs. It is needed if the bucket was lost.
    async fn highest_running(&self) -> Option<Revision> {
        let mut highest: Option<(String, Revision)> = None;
        // Errors are left out here: a command that needs a revision reports that there is none.
        for node in self.operator.nodes().await.unwrap_or_default() {
            let Ok(Some(revision)) = self.operator.in_force(&node).await else {
                continue;
            };
            let before = highest.as_ref().map_or(0, |(_, it)| it.revision);
            if revision.revision > before {
                highest = Some((node.name, revision));
            }
        }
        let (node, revision) = highest?;
        eprint_line(format_args!(
            "warning: the bucket `{}` has no revisions; going by revision {}, which the node {} runs",
            self.operator.store().pipeline(),
            revision.revision,
            line(&node)
        ));
        Some(revision)
    }

    /// The entry that was written last, if it can't be read and is newer than every entry that can.
    /// Nodes refuse it, and keep what they run.
    pub(crate) fn unreadable_newest(&self) -> Option<&FoundRevision> {
        let place = |it: &&FoundRevision| it.place;
        let good = self.revisions.iter().filter(|it| it.revision.is_ok());
        let good = good.map(|it| it.place).max().unwrap_or_default();
        let last = self.revisions.iter().max_by_key(place);
        last.filter(|it| it.revision.is_err() && it.place > good)
    }

    /// The revisions that can be read, in order.
    pub(crate) fn readable(&self) -> impl DoubleEndedIterator<Item = &Revision> {
        let revisions = self.revisions.iter();
        revisions.filter_map(|found| found.revision.as_ref().ok())
    }

    /// The newest revision that can be read. If the bucket has none, the one that nodes run.
    pub(crate) fn newest(&self) -> Option<&Revision> {
        self.readable().next_back().or(self.running.as_ref())
    }

    /// As [`Self::newest`].
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn newest_or_error(&self) -> anyhow::Result<&Revision> {
        self.newest().with_context(|| {
            format!(
                "there is no pipeline revision in the bucket `{}`: `presence pipeline apply FILE` \
                 makes the first",
                self.operator.store().pipeline()
            )
        })
    }

    /// A revision by its number, however old it is.
    ///
    /// # Errors
    /// If there is none of that number, or it can't be read.
    pub(crate) async fn find_revision(&self, number: u64) -> anyhow::Result<Revision> {
        let found = self.operator.store().revision(number).await;
        let found = found.map_err(|error| self.operator.with_broker_error(error))?;
        let found = found.with_context(|| {
            format!("there is no revision {number}: `presence pipeline history` lists them")
        })?;
        found.revision
    }

    /// Who runs this command: the NATS user, or the user of this machine.
    pub(crate) fn who(&self) -> String {
        who(&self.config)
    }

    /// The running canary, according to the newest revision.
    pub(crate) fn canary(&self) -> Option<&Candidate> {
        self.newest()?.candidate.as_ref()
    }

    /// The difference from the newest revision to `chain` without a canary, as a patch. Empty if
    /// there is none.
    pub(crate) fn difference(&self, chain: &[Entry]) -> String {
        self.difference_to(chain, None)
    }

    fn difference_to(&self, chain: &[Entry], candidate: Option<&Candidate>) -> String {
        let before = self.newest();
        let old = before.map_or_else(String::new, |it| {
            it.to_toml() + &canary_line(it.candidate.as_ref())
        });
        let name = before.map_or_else(
            || "nothing".to_owned(),
            |it| format!("revision {}", it.revision),
        );
        let new = toml_of(chain) + &canary_line(candidate);
        let patch = TextDiff::from_lines(&old, &new)
            .unified_diff()
            .header(&name, "the next revision")
            .to_string();
        if patch.is_empty() {
            return patch;
        }
        secrets::masked(patch, [&*old, &*new].into_iter()).unwrap_or_else(|| {
            "the difference isn't shown, since it writes a secret in an unusual way\n".to_owned()
        })
    }

    /// Makes `chain` the next revision, without a canary: a running one ends. `pinned` has the
    /// built-in plugins of the chain that may have to be uploaded first.
    ///
    /// # Errors
    /// If the revision isn't written, or a node doesn't run it.
    pub(crate) async fn change(
        &self,
        chain: Vec<Entry>,
        how: &ChangeOptions,
        why: &str,
        pinned: Option<&PinnedPipeline>,
    ) -> anyhow::Result<()> {
        self.change_to((chain, None), how, why, pinned).await
    }

    /// Makes `chain`, with `candidate` as its canary, the next revision.
    ///
    /// # Errors
    /// As [`Self::change`].
    pub(crate) async fn change_to(
        &self,
        (chain, candidate): (Vec<Entry>, Option<Candidate>),
        how: &ChangeOptions,
        why: &str,
        pinned: Option<&PinnedPipeline>,
    ) -> anyhow::Result<()> {
        let difference = self.difference_to(&chain, candidate.as_ref());
        let is_target = |it: &&Revision| it.chain == chain && it.candidate == candidate;
        // A revision is written even without a difference in two cases: after an entry that can't
        // be read, which it supersedes, and if the bucket has lost the revision that nodes run.
        let newest = self.newest();
        let newest =
            newest.filter(|_| self.unreadable_newest().is_none() && self.running.is_none());
        if let Some(newest) = newest.filter(is_target) {
            return self.print_unchanged(newest.revision, how);
        }
        let why = how.why(why)?;
        how.confirm_change(&difference, "Make this the next revision?")?;
        let nodes = self.operator.nodes().await?;
        ensure!(
            nodes.iter().any(|node| !node.waits),
            "no node serves: {} of them wait for their turn",
            nodes.len()
        );
        if let Some(pinned) = pinned {
            pinned.upload(self).await?;
        }
        let silent = self.operator.silent(&nodes).await;
        let revision = Revision {
            revision: self.next_revision_number(&nodes).await?,
            chain,
            candidate,
            who: self.who(),
            when: clock::now_ms(),
            why,
        };
        self.write(&revision, (&nodes, &silent), &difference, how.json)
            .await
    }

    fn print_unchanged(&self, number: u64, how: &ChangeOptions) -> anyhow::Result<()> {
        if how.json {
            print_json(
                json!({"revision": number, "written": false, "difference": "", "nodes": []}),
            )?;
        } else {
            print(format_args!(
                "nothing changes: revision {number} is that already\n"
            ))?;
        }
        Ok(())
    }

    /// The number of the next revision. It is higher than any number in the bucket, and than any
    /// that a node runs: the bucket may have been lost.
    ///
    /// # Errors
    /// If the bucket has a revision that this command hasn't read, and that the change doesn't
    /// build on.
    async fn next_revision_number(&self, nodes: &[FoundNode]) -> anyhow::Result<u64> {
        let mut highest = 0;
        for node in nodes {
            // A node that can't be asked now fails the validation later.
            let status = self.operator.status(node).await.unwrap_or_default();
            let runs = status.pointer("/serving/store/revision");
            highest = highest.max(runs.and_then(Value::as_u64).unwrap_or_default());
        }
        // Read after the nodes were asked, so that it has every revision that they run, unless the
        // bucket was lost.
        let now = self.operator.store().revisions(READ_MAX).await;
        let now = now.map_err(|error| self.operator.with_broker_error(error))?;
        let seen = |it: &&FoundRevision| self.revisions.iter().any(|seen| seen.number == it.number);
        if let Some(other) = now.iter().rev().find(|it| !seen(it)) {
            bail!(
                "nothing was written: {}. {TRY_AGAIN}",
                conflict_message(other)
            );
        }
        next_number(&self.revisions, highest)
            .context("there is no higher number than that of the newest revision")
    }

    /// Fails if the store lacks a plugin of the revision. A node that has the plugin on its disk
    /// doesn't notice when it validates, but other nodes couldn't run the revision.
    async fn check_store(&self, revision: &Revision) -> anyhow::Result<()> {
        let store = self.operator.store();
        let stored = self.operator.attempt("OBJ_", store.plugins()).await?;
        let mut missing = revision.digests();
        missing.retain(|digest| !stored.iter().any(|it| it.digest == *digest));
        let Some(digest) = missing.first() else {
            return Ok(());
        };
        let entries = revision.chain.iter();
        let name = entries.clone().find(|it| it.digest == *digest);
        let name = name.map_or("the canary's plugin", |it| &it.plugin);
        let why = format!(
            "the store has lost {name}@{digest}, which a node has on its disk, and other nodes \
             can't run it: upload it again, with `presence plugins push`"
        );
        // A revision that only ends a canary is written nonetheless.
        let before = self.newest();
        let ends_canary = before.is_some_and(|it| {
            it.candidate.is_some() && revision.candidate.is_none() && it.chain == revision.chain
        });
        ensure!(ends_canary, why);
        eprint_line(format_args!("warning: {why}"));
        Ok(())
    }

    async fn write(
        &self,
        revision: &Revision,
        (nodes, silent): (&[FoundNode], &BTreeSet<String>),
        difference: &str,
        json: bool,
    ) -> anyhow::Result<()> {
        let number = revision.revision;
        let mut report = Report {
            lines: Vec::new(),
            json,
        };
        let (waiting, nodes): (Vec<_>, Vec<_>) = nodes.iter().cloned().partition(|it| it.waits);
        let nodes = &*nodes;
        let validated = self.operator.validate(nodes, revision).await;
        let refused = validated.iter().filter(|it| it.is_err()).count();
        if refused > 0 {
            for (node, outcome) in nodes.iter().zip(validated) {
                let (what, why) = match outcome {
                    Ok(()) => ("valid", String::new()),
                    Err(why) => ("refused", why),
                };
                report.add(&node.name, what, None, &why)?;
            }
            report.end(number, false, difference)?;
            bail!(
                "nothing was written: refused by {refused} of {} nodes",
                nodes.len()
            );
        }
        if self.running.is_some() {
            let made = self.operator.store().make(1);
            self.operator.attempt("STREAM.CREATE", made).await?;
        }
        if let Err(error) = self.check_store(revision).await {
            report.end(number, false, difference)?;
            return Err(error.context("nothing was written"));
        }
        let write = self.operator.store().write(revision);
        match self.operator.attempt("$KV.", write).await? {
            WriteResult::Done => {}
            WriteResult::Conflict(other) => {
                report.end(number, false, difference)?;
                bail!(
                    "nothing was written: {}. {TRY_AGAIN}",
                    conflict_message(&other)
                );
            }
        }
        let mut failed = silent.len();
        for node in nodes {
            let status = self.operator.settled(node, number).await;
            failed += usize::from(matches!(
                status,
                RevisionStatus::Refused(_) | RevisionStatus::Unknown(_)
            ));
            let (what, generation, why) = match status {
                RevisionStatus::InForce(generation) => {
                    ("in force", Some(generation), String::new())
                }
                RevisionStatus::Refused(why) => ("refused", None, why),
                RevisionStatus::Folder => {
                    let why = "its [plugins] source is \"folder\"";
                    ("not followed", None, why.into())
                }
                RevisionStatus::Unknown(why) => ("unknown", None, why),
            };
            report.add(&node.name, what, generation, &why)?;
        }
        for node in waiting {
            let why = "it waits for its turn, and takes the newest revision then";
            report.add(&node.name, "not asked", None, why)?;
        }
        for node in silent {
            report.add(
                node,
                "unknown",
                None,
                &unanswered_message("the newest revision"),
            )?;
        }
        report.end(number, true, difference)?;
        ensure!(
            failed == 0,
            "revision {number} is written, and not in force on {failed} of {} nodes: `presence \
             pipeline rollback` goes back",
            nodes.len() + silent.len()
        );
        Ok(())
    }
}

/// The outcome of a change, for each node.
struct Report {
    lines: Vec<Value>,
    json: bool,
}

impl Report {
    fn add(
        &mut self,
        node: &str,
        what: &str,
        generation: Option<u64>,
        why: &str,
    ) -> anyhow::Result<()> {
        if !self.json {
            let generation = generation.map(|number| format!(" (generation {number})"));
            let colon = if why.is_empty() { "" } else { ": " };
            print(format_args!(
                "{}  {what}{}{colon}{}\n",
                line(node),
                generation.unwrap_or_default(),
                line(why)
            ))?;
        }
        self.lines.push(json!({
            "node": node,
            "outcome": what.replace(' ', "-"),
            "generation": generation,
            "why": why,
        }));
        Ok(())
    }

    fn end(self, revision: u64, written: bool, difference: &str) -> anyhow::Result<()> {
        if self.json {
            print_json(json!({
                "revision": revision,
                "written": written,
                "difference": difference,
                "nodes": self.lines,
            }))?;
        } else if written {
            print(format_args!("revision {revision} is written\n"))?;
        }
        Ok(())
    }
}

/// The line about a canary in a difference. Empty without a canary.
fn canary_line(candidate: Option<&Candidate>) -> String {
    let Some(candidate) = candidate else {
        return String::new();
    };
    let Candidate {
        plugin,
        digest,
        percent,
        abort_on,
        promote_after_ms,
        started_at: _,
    } = candidate;
    let mut line = format!("\n# canary: {plugin}@{digest} decides on {percent} % of the users");
    if !abort_on.is_empty() {
        line += &format!(", aborted on {abort_on}");
    }
    if let Some(ms) = promote_after_ms {
        line += &format!(", promoted after {} s", ms / 1_000);
    }
    line + "\n"
}

/// The message that another revision was written meanwhile, and by whom.
fn conflict_message(other: &FoundRevision) -> String {
    let number = other.number;
    match &other.revision {
        Ok(revision) => {
            let why = match &*revision.why {
                "" => String::new(),
                why => format!(" ({})", line(why)),
            };
            format!(
                "revision {number} was written by {} at {}{why}, while this one was made",
                line(&revision.who),
                text::time(revision.when)
            )
        }
        Err(error) => format!("{error:#}"),
    }
}
