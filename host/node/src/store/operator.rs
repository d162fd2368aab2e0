//! The work of operators' commands: on the store, and on the nodes that follow it.

use std::time::Duration;

use anyhow::bail;
use async_nats::{Client, Message};
use bytes::Bytes;
use futures_util::future::join_all;
use presence_config::Config;
use presence_config::digest::Digest;
use presence_config::revision::Revision;
use presence_config::subjects::{
    ADMIN_SHADOW, ADMIN_STATUS, ADMIN_TENANTS, ADMIN_VALIDATE, Subjects,
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::Store;
pub use super::nodes::{FoundNode, TenantNodes};
use super::tenants::{BucketPlace, TenantStore};
use crate::link::broker::BrokerAccess;
use crate::link::micro;
use crate::link::request;
use crate::link::request_client::{self, LastBrokerError};

/// How long a node may take to report its status, and the wait between two such requests.
pub(super) const STATUS: Duration = Duration::from_secs(5);
const STATUS_AGAIN: Duration = Duration::from_millis(100);

/// For how many tenants a node is asked in one request.
const NAMES_AT_ONCE: usize = 100;

/// How long a served tenant may have problems before a command reports them.
const IMPAIRED: Duration = Duration::from_secs(10);

/// An operator's connection.
pub struct Operator {
    pub(super) client: Client,
    pub(super) complaint: LastBrokerError,
    pub(super) subjects: Subjects,
    pub(super) prefix: String,
    store: Store,
    pub(super) servers: String,
    /// How long a node may take to load a pipeline.
    load_timeout: Duration,
}

/// The state of a revision on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RevisionStatus {
    /// This revision or a later one is in force, as this generation of the pipeline.
    InForce(u64),
    /// The node refuses it, for this reason.
    Refused(String),
    /// The node's pipeline comes from its folder.
    Folder,
    /// The state is not known, for this reason.
    Unknown(String),
}

impl Operator {
    /// Connects.
    ///
    /// # Errors
    /// If NATS can't be reached.
    pub async fn connect(config: &Config) -> anyhow::Result<Self> {
        let access = BrokerAccess::new(config);
        let complaint = LastBrokerError::default();
        let options = access
            .options()?
            .name("presence command")
            .custom_inbox_prefix(request_client::inbox(config, None))
            .event_callback(complaint.listener());
        let client = access.connect(options).await?;
        let prefix = config.tenant.prefix.as_deref();
        Ok(Self {
            store: Store::new(&client, prefix),
            client,
            complaint,
            subjects: Subjects::new(prefix),
            prefix: prefix.unwrap_or_default().to_owned(),
            servers: access.servers(),
            load_timeout: config.plugins.load_timeout,
        })
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The tenants in the store.
    pub fn tenants(&self) -> TenantStore {
        TenantStore::new(&self.client)
    }

    /// Adds the broker's last error message, if there is one, to an error.
    pub fn with_broker_error(&self, error: anyhow::Error) -> anyhow::Error {
        match self.complaint.take() {
            Some(said) => error.context(format!("NATS says: {said}")),
            None => error,
        }
    }

    /// Does work with the store. It ends early if NATS denies the subject `needs`, because then no
    /// answer would come.
    ///
    /// # Errors
    /// If it fails, or is forbidden.
    pub async fn attempt<T>(
        &self,
        needs: &str,
        work: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<T> {
        tokio::select! {
            done = work => done.map_err(|error| self.with_broker_error(error)),
            said = self.complaint.wait_for(needs) => bail!("NATS says: {said}"),
        }
    }

    /// Has all nodes check changes of tenants, concurrently. Returns each node's result.
    pub async fn validate_tenants(
        &self,
        nodes: &[FoundNode],
        changes: &Value,
    ) -> Vec<Result<(), String>> {
        let body = Bytes::from(json!({"validate": changes}).to_string());
        let asked = nodes.iter().map(|node| async {
            let answer = self.ask_long(node, ADMIN_TENANTS, body.clone()).await;
            answer.map(drop).map_err(|error| format!("{error:#}"))
        });
        join_all(asked).await
    }

    /// The states of tenants on a node, once it has read the store up to `place` and none of these
    /// tenants is starting.
    ///
    /// # Errors
    /// If that takes too long, or the node doesn't answer.
    pub async fn tenants_settled(
        &self,
        node: &FoundNode,
        names: &[String],
        place: BucketPlace,
    ) -> anyhow::Result<Vec<Value>> {
        let until = Instant::now() + self.load_timeout;
        let mut begun = None;
        loop {
            let (seen, tenants) = self.tenant_states(node, names).await?;
            // A place in a deleted bucket can't be compared with one in the bucket that was
            // written.
            let seen = seen.filter(|it| it.made == place.made);
            let all = tenants.iter().map(TenantReadiness::of);
            let stand = all.max().unwrap_or(TenantReadiness::Settled);
            if seen.is_some_and(|seen| seen.last >= place.last) && stand != TenantReadiness::Starts
            {
                let since = *begun.get_or_insert_with(Instant::now);
                if stand == TenantReadiness::Settled || since.elapsed() > IMPAIRED {
                    return Ok(tenants);
                }
            }
            if Instant::now() >= until {
                let seconds = self.load_timeout.as_secs_f32();
                let mut all = tenants.iter();
                let starting = all.find(|it| TenantReadiness::of(it) == TenantReadiness::Starts);
                let word = |key: &str| starting?.pointer(key).and_then(Value::as_str);
                let why = match (word("/tenant"), word("/reasons/0")) {
                    (Some(name), Some(why)) => format!(": {name} is starting: {why}"),
                    _ => String::new(),
                };
                bail!("not done within {seconds} s ([plugins] load_timeout_ms){why}");
            }
            sleep(STATUS_AGAIN).await;
        }
    }

    /// How far a node has read the store, and the states of the tenants with these names.
    async fn tenant_states(
        &self,
        node: &FoundNode,
        names: &[String],
    ) -> anyhow::Result<(Option<BucketPlace>, Vec<Value>)> {
        let (mut place, mut tenants) = (None, Vec::new());
        let mut rest = names;
        loop {
            let (asked, _) = rest.split_at(rest.len().min(NAMES_AT_ONCE));
            let body = Bytes::from(json!({"states": asked}).to_string());
            let answer = self.ask(node, ADMIN_TENANTS, body, STATUS).await?;
            let (made, last) = (answer.get("made"), answer.get("place"));
            let made = made.and_then(Value::as_i64);
            let last = last.and_then(Value::as_u64);
            // The place of the first answer counts for all: the later states are newer.
            place = place.or(made
                .zip(last)
                .map(|(made, last)| BucketPlace { made, last }));
            let listed = answer.get("tenants").and_then(Value::as_array);
            tenants.extend(listed.into_iter().flatten().cloned());
            let left_out = answer.get("leftOut").and_then(Value::as_u64);
            let left_out = usize::try_from(left_out.unwrap_or_default()).unwrap_or_default();
            let done = asked.len().saturating_sub(left_out);
            rest = rest.get(done..).unwrap_or_default();
            // A node that leaves out all of them would do so again.
            if rest.is_empty() || done == 0 {
                return Ok((place, tenants));
            }
        }
    }

    /// Has all nodes validate a revision, concurrently. Returns each node's result.
    pub async fn validate(
        &self,
        nodes: &[FoundNode],
        revision: &Revision,
    ) -> Vec<Result<(), String>> {
        let body = Bytes::from(revision.to_json());
        let asked = nodes.iter().map(|node| async {
            let answer = self.ask_long(node, ADMIN_VALIDATE, body.clone()).await;
            answer.map(drop).map_err(|error| format!("{error:#}"))
        });
        join_all(asked).await
    }

    /// Has a node run a plugin as a shadow for this number of milliseconds.
    ///
    /// # Errors
    /// Why the node doesn't do so.
    pub async fn shadow(
        &self,
        node: &FoundNode,
        plugin: &str,
        digest: &Digest,
        for_ms: u64,
    ) -> anyhow::Result<()> {
        let body = json!({"plugin": plugin, "digest": digest, "for_ms": for_ms});
        let body = Bytes::from(body.to_string());
        self.ask_long(node, ADMIN_SHADOW, body).await.map(drop)
    }

    /// Ends the shadow of a node.
    ///
    /// # Errors
    /// If it runs none, or doesn't answer.
    pub async fn end_shadow(&self, node: &FoundNode) -> anyhow::Result<()> {
        let body = Bytes::from_static(micro::END);
        self.ask(node, ADMIN_SHADOW, body, STATUS).await.map(drop)
    }

    /// Whether a node runs a shadow.
    ///
    /// # Errors
    /// If it doesn't answer.
    pub async fn runs_shadow(&self, node: &FoundNode) -> anyhow::Result<bool> {
        let status = self.status(node).await?;
        let kind = status.pointer("/serving/beside/kind");
        Ok(kind.and_then(Value::as_str) == Some("shadow"))
    }

    /// A node's reports on its canary or shadow, and on its last shadow.
    ///
    /// # Errors
    /// If it doesn't answer.
    pub async fn reports(&self, node: &FoundNode) -> anyhow::Result<Value> {
        let answer = self.ask(node, ADMIN_SHADOW, Bytes::new(), STATUS).await?;
        Ok(answer.get("reports").cloned().unwrap_or_default())
    }

    /// A node's state with regard to the store, as the node reports it.
    ///
    /// # Errors
    /// If it doesn't answer.
    pub async fn status(&self, node: &FoundNode) -> anyhow::Result<Value> {
        let answer = self.ask(node, ADMIN_STATUS, Bytes::new(), STATUS).await?;
        Ok(answer.get("status").cloned().unwrap_or_default())
    }

    /// The revision that is in force on a node, if one is.
    ///
    /// # Errors
    /// If it doesn't answer, or its answer can't be read.
    pub async fn in_force(&self, node: &FoundNode) -> anyhow::Result<Option<Revision>> {
        let body = Bytes::from_static(micro::REVISION);
        let answer = self.ask(node, ADMIN_STATUS, body, STATUS).await?;
        let revision = answer.get("revision").filter(|it| it.is_object());
        revision
            .map(|it| Revision::parse(it.to_string().as_bytes()))
            .transpose()
    }

    /// Waits until a node has put a revision in force, or refused it.
    pub async fn settled(&self, node: &FoundNode, revision: u64) -> RevisionStatus {
        if !node.follows_store {
            return RevisionStatus::Folder;
        }
        let until = Instant::now() + self.load_timeout;
        loop {
            let stand = match self.status(node).await {
                Ok(status) => revision_status(&status, revision),
                Err(error) => Some(RevisionStatus::Unknown(format!("{error:#}"))),
            };
            match stand {
                Some(stand) => return stand,
                None if Instant::now() >= until => {
                    let seconds = self.load_timeout.as_secs_f32();
                    return RevisionStatus::Unknown(format!(
                        "not in force within {seconds} s ([plugins] load_timeout_ms)"
                    ));
                }
                None => sleep(STATUS_AGAIN).await,
            }
        }
    }

    /// Like [`Self::ask`], for requests that take long. It doesn't wait for a node that has ended
    /// meanwhile.
    async fn ask_long(&self, node: &FoundNode, what: &str, body: Bytes) -> anyhow::Result<Value> {
        // The node fetches plugins, and may have to finish another validation first.
        let limit = self.load_timeout * 3;
        tokio::select! {
            answer = self.ask(node, what, body, limit) => answer,
            error = self.gone_error(node, what) => {
                Err(error.context("it was asked, and doesn't answer any more"))
            }
        }
    }

    /// Returns when a node has failed to report its status twice in a row. `asked`: the request
    /// that it works on.
    async fn gone_error(&self, node: &FoundNode, asked: &str) -> anyhow::Error {
        let mut has_failed = false;
        loop {
            sleep(STATUS).await;
            let said = match asked {
                // The service for all tenants of a node has no status request.
                ADMIN_TENANTS => self.tenant_states(node, &[]).await.map(drop),
                _ => self.status(node).await.map(drop),
            };
            match said {
                Ok(()) => has_failed = false,
                Err(error) if has_failed => return error,
                Err(_) => has_failed = true,
            }
        }
    }

    pub(super) async fn ask(
        &self,
        node: &FoundNode,
        what: &str,
        body: Bytes,
        limit: Duration,
    ) -> anyhow::Result<Value> {
        let subject = format!("{}.{}", self.subjects.of(what), node.id);
        let read = |reply: &Message| {
            let answer: Value = serde_json::from_slice(&reply.payload).ok()?;
            answer.get("ok")?.as_bool()?;
            Some(answer)
        };
        let asked = tokio::select! {
            asked = request::ask(&self.client, &subject, body, limit, read) => asked,
            said = self.complaint.wait_for(&subject) => bail!("NATS says: {said}"),
        };
        let answer = asked.map_err(|error| self.with_broker_error(error.into()))?;
        if answer.get("ok") == Some(&Value::Bool(true)) {
            return Ok(answer);
        }
        let error = answer.get("error").and_then(Value::as_str);
        bail!(error.unwrap_or("refused, and nothing says why").to_owned())
    }
}

/// Whether a tenant must be waited for. Of several tenants, the greatest value counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum TenantReadiness {
    /// The tenant stays in its state until somebody changes something.
    Settled,
    /// The tenant is served with problems, which may last only a moment if it has just started.
    Lacks,
    /// The tenant hasn't reached its wanted state yet.
    Starts,
}

impl TenantReadiness {
    /// Judges a tenant by a node's report about it.
    fn of(tenant: &Value) -> Self {
        let is = |what: &str| tenant.get(what) == Some(&Value::Bool(true));
        let state = tenant.get("state").and_then(Value::as_str);
        match state {
            _ if is("changing") => Self::Starts,
            _ if is("lasts") => Self::Settled,
            Some("starting") => Self::Starts,
            Some("impaired") => Self::Lacks,
            _ => Self::Settled,
        }
    }
}

/// The state of a revision by a node's status. `None` while the node hasn't decided.
fn revision_status(status: &Value, revision: u64) -> Option<RevisionStatus> {
    let serving = status.get("serving")?;
    let store = serving.get("store")?;
    let number = |value: Option<&Value>| value.and_then(Value::as_u64);
    let refused = store.get("refused").filter(|it| it.is_object());
    // Checked first: the chain may be in force without the canary. Refusals of other revisions
    // don't matter, whatever their number.
    if let Some(refused) = refused
        && number(refused.get("revision")) == Some(revision)
    {
        let why = refused.get("why").and_then(Value::as_str);
        return Some(RevisionStatus::Refused(why.unwrap_or_default().to_owned()));
    }
    if number(store.get("revision")).is_some_and(|it| it >= revision) {
        return Some(RevisionStatus::InForce(
            number(serving.get("generation")).unwrap_or_default(),
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lasts_is_not_waited_for_unless_it_is_about_to_change() {
        let of = |state: &str, lasts: bool, changing: bool| {
            let tenant = json!({"state": state, "lasts": lasts, "changing": changing});
            TenantReadiness::of(&tenant)
        };
        for state in ["starting", "impaired"] {
            assert_eq!(of(state, true, false), TenantReadiness::Settled);
            assert_eq!(of(state, true, true), TenantReadiness::Starts);
        }
        assert_eq!(of("starting", false, false), TenantReadiness::Starts);
        assert_eq!(of("impaired", false, false), TenantReadiness::Lacks);
        assert!(TenantReadiness::Starts > TenantReadiness::Lacks);
        for state in ["serving", "waiting", "paused", "refused"] {
            assert_eq!(of(state, false, false), TenantReadiness::Settled);
        }
        // Like a node of an earlier version.
        let impaired = json!({"state": "impaired", "changing": false});
        assert_eq!(TenantReadiness::of(&impaired), TenantReadiness::Lacks);
    }

    #[test]
    fn a_node_stands_to_a_revision_as_it_says() {
        let with = |store: Value| json!({"serving": {"generation": 4, "store": store}});
        let refused = json!({"revision": 6, "refused": {"revision": 7, "why": "broken"}});
        assert_eq!(
            revision_status(&with(refused.clone()), 6),
            Some(RevisionStatus::InForce(4))
        );
        assert_eq!(
            revision_status(&with(refused.clone()), 7),
            Some(RevisionStatus::Refused("broken".into()))
        );
        assert_eq!(revision_status(&with(refused), 8), None);
        let canary = json!({"revision": 7, "refused": {"revision": 7, "why": "its canary"}});
        assert_eq!(
            revision_status(&with(canary.clone()), 6),
            Some(RevisionStatus::InForce(4))
        );
        assert_eq!(
            revision_status(&with(canary), 7),
            Some(RevisionStatus::Refused("its canary".into()))
        );
        let none = json!({"revision": 6, "refused": null});
        assert_eq!(revision_status(&with(none), 7), None);
        assert_eq!(revision_status(&json!({"serving": null}), 1), None);
    }
}
