//! A change of the tenants in the store: it shows the difference, asks for confirmation, has every
//! node validate the change, writes it unless somebody else has changed the tenants meanwhile, and
//! waits for every node.

use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesOrdered;
use presence_config::escape::{eprint_line, line, print, print_json};
use presence_config::{Config, StoredTenant, TENANTS_BUCKET, Text};
use presence_kit::text::plain;
use presence_node::clock;
use presence_node::store::operator::{FoundNode, Operator, TenantNodes};
use presence_node::store::tenants::{BucketPlace, Entry, Snapshot, WriteOutcome};
use serde_json::{Value, json};
use similar::TextDiff;

use super::Command;
use crate::confirmation::{ChangeOptions, unanswered_message, who};
use crate::secrets;

/// The advice after somebody else has changed the tenants meanwhile.
const TRY_AGAIN: &str = "look at `presence tenants list`, and try again";

/// How many times a change is validated and written, while others keep changing other tenants.
const ATTEMPTS: usize = 10;

#[derive(clap::Args)]
pub(crate) struct ApplyArgs {
    /// A file with `[[tenant]]` sections.
    file: PathBuf,
    /// On how many servers of a cluster the bucket is kept, where it is made.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
    replicas: u8,
    #[command(flatten)]
    how: ChangeOptions,
}

#[derive(clap::Args)]
pub(crate) struct NameArgs {
    /// The tenant's name.
    name: String,
    #[command(flatten)]
    how: ChangeOptions,
}

/// A tenant's name and new content. `None`: the tenant is removed.
type Change = (String, Option<StoredTenant>);

/// The outcome of writing changes.
enum Written {
    /// All of them are written. This is the bucket's place after the last one.
    All(BucketPlace),
    /// Somebody else has written to the bucket since it was read.
    Changed,
}

/// Runs a command that changes tenants.
pub(super) async fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Apply(args) => {
            let text = Text::read(Some(&args.file))?.context("there is no such file")?;
            let sections = StoredTenant::of_file(&args.file, &text)?;
            let session = TenantStoreSession::open(&args.how).await?;
            let changes = sections.into_iter().map(|(name, mut tenant)| {
                let before = session.stored(&name);
                tenant.paused |= before.is_some_and(|it| it.paused);
                (name, Some(tenant))
            });
            let changes = changes.collect();
            session.change(changes, usize::from(args.replicas)).await
        }
        Command::Pause(args) => set_paused(args, true).await,
        Command::Resume(args) => set_paused(args, false).await,
        Command::Remove(args) => {
            let session = TenantStoreSession::open(&args.how).await?;
            // A tenant that can't be read can be removed.
            let entry = session.read.entries.get(&args.name);
            let is_bad = entry.is_some_and(|it| matches!(it.tenant, Some(Err(_))));
            if !is_bad {
                session.stored_or_error(&args.name)?;
            }
            session.change(vec![(args.name.clone(), None)], 1).await
        }
        Command::List(_) | Command::Show(_) => Ok(()),
    }
}

async fn set_paused(args: &NameArgs, paused: bool) -> anyhow::Result<()> {
    let session = TenantStoreSession::open(&args.how).await?;
    let tenant = StoredTenant {
        paused,
        ..session.stored_or_error(&args.name)?.clone()
    };
    session
        .change(vec![(args.name.clone(), Some(tenant))], 1)
        .await
}

/// The tenants in the store, as they are when a command begins.
struct TenantStoreSession<'a> {
    how: &'a ChangeOptions,
    config: Config,
    operator: Operator,
    /// What was read from the bucket, with what this command has written since.
    read: Snapshot,
}

impl<'a> TenantStoreSession<'a> {
    async fn open(how: &'a ChangeOptions) -> anyhow::Result<Self> {
        let file = how.config.config.as_deref();
        #[expect(
            clippy::disallowed_methods,
            reason = "it is about all tenants, and none of them"
        )]
        let config = Config::load(file, presence_config::variables())?;
        ensure!(
            config.follows_store() && config.tenants.is_some(),
            "tenants are in the configuration file: change its [[tenant]] sections, and the node \
             follows it. With `source = \"store\"` in [plugins], this command changes those in the \
             store; a node of which none are in the file needs `tenant = []` in it"
        );
        let operator = Operator::connect(&config).await?;
        let store = operator.tenants();
        let read = operator
            .attempt("presence-tenants", store.snapshot())
            .await?;
        Ok(Self {
            how,
            config,
            operator,
            read,
        })
    }

    /// A tenant in the store. `None` if it isn't there, or can't be read.
    fn stored(&self, name: &str) -> Option<&StoredTenant> {
        self.read.entries.get(name)?.tenant.as_ref()?.as_ref().ok()
    }

    /// As [`Self::stored`].
    ///
    /// # Errors
    /// If it isn't there, or can't be read.
    fn stored_or_error(&self, name: &str) -> anyhow::Result<&StoredTenant> {
        let in_file = self.config.tenants.iter().flat_map(|it| it.iter());
        let in_file = in_file.filter(|it| it.name == name).count() > 0;
        let entry = self.read.entries.get(name);
        let entry = entry.and_then(|it| it.tenant.as_ref());
        match entry {
            Some(Ok(tenant)) => Ok(tenant),
            Some(Err(why)) => bail!(
                "the tenant `{name}` in the store can't be read ({}): write it again \
                 (`presence tenants apply FILE`), or remove it",
                line(why)
            ),
            None if in_file => bail!(
                "the tenant `{name}` is in the configuration file, and not in the store: change it \
                 there"
            ),
            None => bail!(
                "there is no tenant `{name}` in the bucket `{TENANTS_BUCKET}`. A node that serves it still \
                 knows it from before: apply its section again, and then change it"
            ),
        }
    }

    /// Makes those changes that differ from the store, and waits for the nodes.
    async fn change(mut self, changes: Vec<Change>, replicas: usize) -> anyhow::Result<()> {
        let how = self.how;
        let why = how.why("")?;
        let is_same = |(name, tenant): &Change| match (self.stored(name), tenant) {
            (Some(before), Some(tenant)) => {
                (&before.section, before.paused) == (&tenant.section, tenant.paused)
            }
            (None, None) => {
                let entry = self.read.entries.get(name);
                entry.is_none_or(|it| it.tenant.is_none())
            }
            _ => false,
        };
        let changes: Vec<_> = changes.into_iter().filter(|it| !is_same(it)).collect();
        if changes.is_empty() {
            return self.print_unchanged();
        }
        let differences = changes
            .iter()
            .map(|(name, tenant)| match (self.stored(name), tenant) {
                (None, None) => format!("{}: what can't be read is removed\n", line(name)),
                (before, tenant) => difference(name, before, tenant.as_ref()),
            });
        how.confirm_change(differences.collect::<String>(), "Make this change?")?;
        let nodes = self.operator.nodes_with_tenants().await?;
        let (who, when) = (who(&self.config), clock::now_ms());
        let changes = changes.into_iter().map(|(name, tenant)| {
            let tenant = tenant.map(|tenant| StoredTenant {
                who: who.clone(),
                when,
                why: why.clone(),
                ..tenant
            });
            (name, tenant)
        });
        let changes: Vec<Change> = changes.collect();
        let mut written = Vec::new();
        for _ in 0..ATTEMPTS {
            self.validate(&nodes.nodes, &changes).await?;
            match self.write(&changes, replicas, &mut written).await? {
                Written::All(place) => return self.wait(&nodes, &changes, place).await,
                // What was validated is not what is in the bucket now.
                Written::Changed => self.read_again(&changes, &written).await?,
            }
        }
        bail!(
            "other tenants are changed again and again meanwhile, and nothing was written{}: {TRY_AGAIN}",
            written_part(&written)
        )
    }

    fn print_unchanged(&self) -> anyhow::Result<()> {
        match self.how.json {
            true => Ok(print_json(
                json!({"written": false, "tenants": [], "nodes": []}),
            )?),
            false => Ok(print("nothing changes: the store has it so already\n")?),
        }
    }

    /// Has the nodes validate changes, once they have read as much of the bucket as this command.
    async fn validate(&self, nodes: &[FoundNode], changes: &[Change]) -> anyhow::Result<()> {
        // A removal conflicts with nothing, so it works also if a node can't read the bucket.
        if changes.iter().any(|(_, tenant)| tenant.is_some())
            && let Some(place) = self.read.place
        {
            for node in nodes {
                let read = self.operator.tenants_settled(node, &[], place).await;
                read.with_context(|| {
                    format!(
                        "nothing was written: node {} has not read what is in the bucket \
                         `{TENANTS_BUCKET}`",
                        line(&node.name)
                    )
                })?;
            }
        }
        let all = changes
            .iter()
            .map(|(name, tenant)| (name.clone(), json!(tenant)));
        let all = Value::Object(all.collect());
        let validated = self.operator.validate_tenants(nodes, &all).await;
        let mut refused = 0;
        for (node, outcome) in nodes.iter().zip(validated) {
            if let Err(why) = outcome {
                refused += 1;
                for part in why.lines() {
                    eprint_line(format_args!(
                        "node {}: refused: {}",
                        line(&node.name),
                        line(part)
                    ));
                }
            }
        }
        ensure!(
            refused == 0,
            "nothing was written: {refused} of {} nodes refuse it",
            nodes.len()
        );
        Ok(())
    }

    /// Writes the changes that aren't written yet, and adds their names to `written`. Stops if
    /// somebody else has written to the bucket since it was read.
    async fn write(
        &mut self,
        changes: &[Change],
        replicas: usize,
        written: &mut Vec<String>,
    ) -> anyhow::Result<Written> {
        let store = self.operator.tenants();
        self.operator
            .attempt("presence-tenants", store.make(replicas))
            .await?;
        let current = self
            .operator
            .attempt("presence-tenants", store.place())
            .await?
            .with_context(|| format!("the bucket `{TENANTS_BUCKET}` is gone"))?;
        let read = BucketPlace { last: 0, ..current };
        let mut place = *self.read.place.get_or_insert(read);
        if place.made != current.made {
            return Ok(Written::Changed);
        }
        for (name, tenant) in changes {
            if written.contains(name) {
                continue;
            }
            let put = store.write(name, tenant.as_ref(), &self.read);
            match self.operator.attempt("presence-tenants", put).await? {
                WriteOutcome::Done(last) => place.last = last,
                WriteOutcome::Changed => return Ok(Written::Changed),
            }
            let entry = Entry {
                place: place.last,
                tenant: tenant.clone().map(Ok),
            };
            self.read.entries.insert(name.clone(), entry);
            self.read.place = Some(place);
            written.push(name.clone());
        }
        Ok(Written::All(place))
    }

    /// Reads the bucket again.
    ///
    /// # Errors
    /// If somebody else has changed one of these tenants since it was read.
    async fn read_again(&mut self, changes: &[Change], written: &[String]) -> anyhow::Result<()> {
        let store = self.operator.tenants();
        let read = self
            .operator
            .attempt("presence-tenants", store.snapshot())
            .await?;
        let place = |read: &Snapshot, name: &str| read.entries.get(name).map(|it| it.place);
        let is_other = |(name, _): &&Change| place(&read, name) != place(&self.read, name);
        if let Some((name, _)) = changes.iter().find(is_other) {
            let entry = read.entries.get(name).and_then(|it| it.tenant.as_ref());
            let who = match entry {
                Some(Ok(tenant)) if !tenant.who.is_empty() => line(&tenant.who),
                _ => "somebody else".to_owned(),
            };
            bail!(
                "{who} has changed the tenant `{}` meanwhile, and nothing was written{}: {TRY_AGAIN}",
                line(name),
                written_part(written)
            );
        }
        self.read = read;
        Ok(())
    }

    /// Waits until every node has taken the changes, and prints the outcome of each.
    async fn wait(
        &self,
        nodes: &TenantNodes,
        changes: &[Change],
        place: BucketPlace,
    ) -> anyhow::Result<()> {
        let names: Vec<_> = changes.iter().map(|(name, _)| name.clone()).collect();
        let (mut failed, mut reports) = (nodes.silent.len(), Vec::new());
        let settled = nodes.nodes.iter().map(async |node| {
            let settled = self.operator.tenants_settled(node, &names, place);
            (node, settled.await)
        });
        // Waits for all nodes at once, and reports them in their order.
        let mut settled: FuturesOrdered<_> = settled.collect();
        while let Some((node, settled)) = settled.next().await {
            let (tenants, error) = match settled {
                Ok(tenants) => {
                    let error = missing(changes, &tenants);
                    (tenants, error)
                }
                Err(error) => (Vec::new(), Some(format!("{error:#}"))),
            };
            failed += usize::from(error.is_some() || tenants.iter().any(is_bad));
            if !self.how.json {
                print_node(&node.name, &names, &tenants, error.as_deref())?;
            }
            reports.push(json!({"node": node.name, "tenants": tenants, "error": error}));
        }
        for node in &nodes.silent {
            let error = format!("unknown: {}", unanswered_message("what the store says"));
            if !self.how.json {
                print_node(node, &names, &[], Some(&error))?;
            }
            reports.push(json!({"node": node, "tenants": [], "error": error}));
        }
        if self.how.json {
            print_json(json!({"written": true, "tenants": &names, "nodes": &reports}))?;
        }
        ensure!(
            failed == 0,
            "it is written, and {failed} of {} nodes don't do it",
            nodes.nodes.len() + nodes.silent.len()
        );
        let unserved: Vec<_> = names.iter().filter(|it| waits(it, &reports)).collect();
        ensure!(
            unserved.is_empty(),
            "it is written, and no node serves {}: another tenant, or a node that this one doesn't know \
             of, has the same subjects",
            unserved.iter().map(line).collect::<Vec<_>>().join(", ")
        );
        Ok(())
    }
}

/// Whether a tenant waits for another node on every node that has it, so that none serves it.
fn waits(name: &str, reports: &[Value]) -> bool {
    let tenants = reports
        .iter()
        .filter_map(|it| it.get("tenants")?.as_array());
    let found = tenants
        .flatten()
        .filter(|it| it.get("tenant") == Some(&json!(name)));
    let mut states = found.filter_map(|it| it.get("state")?.as_str()).peekable();
    states.peek().is_some() && states.all(|state| state == "waiting")
}

/// The end of an error message: what was written before the failure. Empty if nothing was.
fn written_part(written: &[String]) -> String {
    match written.is_empty() {
        true => String::new(),
        false => format!(" but {}", line(written.join(", "))),
    }
}

/// The error about tenants that were written, and that a node doesn't have. `None` if it has all.
fn missing(changes: &[Change], tenants: &[Value]) -> Option<String> {
    let is_there = |name: &String| {
        let name = json!(name);
        tenants.iter().any(|it| it.get("tenant") == Some(&name))
    };
    let written = changes.iter().filter(|(_, tenant)| tenant.is_some());
    let missing = written.filter(|(name, _)| !is_there(name));
    let missing: Vec<_> = missing.map(|(name, _)| &**name).collect();
    (!missing.is_empty()).then(|| format!("it does not have {}: see its log", missing.join(", ")))
}

/// Whether a node doesn't run a tenant as the store says.
fn is_bad(tenant: &Value) -> bool {
    let state = tenant.get("state").and_then(Value::as_str);
    // A tenant that is still starting after the wait can't be served.
    matches!(state, Some("refused" | "starting"))
        || tenant.get("notTaken").is_some_and(Value::is_string)
}

fn print_node(
    node: &str,
    names: &[String],
    tenants: &[Value],
    error: Option<&str>,
) -> anyhow::Result<()> {
    let name = line(node);
    if let Some(error) = error {
        return Ok(print(format_args!("node {name}: {}\n", line(error)))?);
    }
    for tenant in names {
        let found = tenants
            .iter()
            .find(|it| it.get("tenant") == Some(&json!(tenant)));
        let state = match found {
            Some(found) => {
                let word = found.get("state").map(plain).unwrap_or_default();
                let why = found.pointer("/reasons/0").or(found.get("notTaken"));
                let why = why.filter(|why| why.is_string()).map(plain);
                why.map_or(word.clone(), |why| format!("{word}: {}", line(why)))
            }
            None => "removed".to_owned(),
        };
        print(format_args!("node {name}: {} {state}\n", line(tenant)))?;
    }
    Ok(())
}

/// The change of a tenant, as a patch with its secrets masked.
fn difference(name: &str, before: Option<&StoredTenant>, after: Option<&StoredTenant>) -> String {
    let text = |tenant: Option<&StoredTenant>| {
        tenant.map_or_else(String::new, |it| {
            let paused = if it.paused { "# paused\n" } else { "" };
            format!("{paused}{}\n", it.section)
        })
    };
    let patch = TextDiff::from_lines(&text(before), &text(after))
        .unified_diff()
        .header(
            &format!("{name}, as it is"),
            &format!("{name}, as it is to be"),
        )
        .to_string();
    let sections = [before, after].into_iter().flatten().map(|it| &*it.section);
    secrets::masked(patch, sections).unwrap_or_else(|| {
        format!("{name}: changes, and isn't shown, since it writes a secret in an unusual way\n")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_shown_without_its_secrets() {
        let tenant = |section: &str| StoredTenant {
            section: section.to_owned(),
            ..StoredTenant::default()
        };
        let before = tenant("name = 'a'\n[nats]\nurl = 'nats://u:pw1@h:1,nats://tok3n@i'\n");
        let after = tenant("name = 'a'\n[nats]\nuser = 'u'\npassword = \"pw22\"\n");
        let shown = difference("a", Some(&before), Some(&after));
        for secret in ["pw1", "tok3n", "pw22"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        for kept in [
            "-url = 'nats://***@h:1,nats://***@i'",
            "+password = \"***\"",
        ] {
            assert!(shown.contains(kept), "{shown}");
        }
        let escaped = tenant("name = 'a'\n[nats]\npassword = \"pw\\u0032\"\n");
        let shown = difference("a", None, Some(&escaped));
        assert!(
            !shown.contains("pw") && shown.contains("isn't shown"),
            "{shown}"
        );
    }

    #[test]
    fn a_node_that_lacks_what_was_written_has_not_done_it() {
        let written = vec![
            ("a".to_owned(), Some(StoredTenant::default())),
            ("b".to_owned(), None),
        ];
        let why = missing(&written, &[]);
        assert_eq!(why.as_deref(), Some("it does not have a: see its log"));
        assert_eq!(missing(&written, &[json!({"tenant": "a"})]), None);
    }

    #[test]
    fn a_tenant_that_waits_on_all_nodes_is_served_by_none() {
        let reports = |states: &[&str]| -> Vec<Value> {
            let node =
                |state: &&str| json!({"node": "n", "tenants": [{"tenant": "a", "state": state}]});
            states.iter().map(node).collect()
        };
        assert!(waits("a", &reports(&["waiting", "waiting"])));
        for states in [
            &["waiting", "serving"][..],
            &["paused"],
            &["impaired", "waiting"],
            &[],
        ] {
            assert!(!waits("a", &reports(states)), "{states:?}");
        }
        assert!(!waits("b", &reports(&["waiting"])));
    }
}
