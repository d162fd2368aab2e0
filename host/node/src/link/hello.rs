//! Nodes with the same subjects find each other: only one of them, or the nodes of one fleet, may
//! serve these subjects.
//!
//! Each node sends and answers requests on one subject. A node that serves has priority. Among nodes
//! that wait, or that both serve after a network partition, the one that started first has priority.
//! A missing answer proves nothing by itself: a node begins to serve only when the broker replies that there
//! is no other subscriber, or when no node has answered for some time although the broker did.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Client, Message};
use futures_util::StreamExt;
use presence_config::Config;
use presence_config::subjects::Subjects;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::clock;
use crate::link::broker::{BrokerAccess, BrokerHealth};
use crate::link::connection::Connection;
use crate::link::drops::{SubscriptionKind, WatchedSubscriber};
use crate::link::reply_guard::ReplyGuard;
use crate::link::request::{self, RequestError};
use crate::ops::http::StatusBoard;
use crate::tasks::Tasks;

/// The subject on which nodes ask for each other. It is not below a prefix that clients subscribe
/// to as a whole, so the broker can tell when nobody listens.
pub(crate) const SUBJECT: &str = "presence-nodes.hello";

/// The prefix of the reply subjects that the broker's client uses.
pub(crate) const INBOX: &str = "_INBOX.";

/// How long another node has to answer, and how long a waiting node pauses before it asks again.
const TIMEOUT: Duration = Duration::from_millis(500);

/// After this many unanswered questions (three seconds), although the broker responds, a node that
/// has answered before counts as gone.
const UNANSWERED_MAX: u32 = 6;

/// How often a serving node asks. This is shorter than the time after which a node counts as gone.
/// So a node that was paused asks as soon as it continues.
const CHECK_EVERY: Duration = Duration::from_secs(2);

/// How often a waiting node checks whether it is connected.
const CONNECT_CHECK_EVERY: Duration = Duration::from_millis(20);

/// With up to this many tenants in an account, each tenant asks every `CHECK_EVERY`. With more,
/// each asks less often.
const TENANTS: usize = 20;

/// How often it is checked whether serving nodes must ask at once.
const RECHECK_EVERY: Duration = Duration::from_millis(200);

/// If a check is this late, the node was paused.
const PAUSED: Duration = Duration::from_secs(1);

/// A node's description of itself, in its questions and its answers.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct NodeInfo {
    node: String,
    /// When it started, in milliseconds since the Unix epoch.
    epoch_ms: u64,
    /// Whether it serves, or is about to.
    ready: bool,
    /// Distinguishes nodes with the same name that started at the same time.
    #[serde(default)]
    id: String,
    /// Whether it has just stopped serving.
    #[serde(default)]
    gone: bool,
    /// Whether it is a node of a fleet, whose nodes serve together.
    #[serde(default)]
    fleet: bool,
    /// The tenant, if the node has several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
}

impl NodeInfo {
    /// Whether this node may not serve while the other one is there.
    fn yields_to(&self, other: &Self) -> bool {
        if self.serves_with(other) {
            return false;
        }
        let rank = |node: &Self| {
            (
                !node.ready,
                node.epoch_ms,
                node.node.clone(),
                node.id.clone(),
            )
        };
        !other.gone && rank(other) < rank(self)
    }
}

impl NodeInfo {
    /// Whether both are nodes of one fleet. Nodes of a fleet have different names.
    fn serves_with(&self, other: &Self) -> bool {
        self.fleet && other.fleet && self.node != other.node && !self.serves_other_tenant(other)
    }

    /// Whether they are known to serve different tenants. Then both logins are of the same account
    /// by mistake.
    fn serves_other_tenant(&self, other: &Self) -> bool {
        let tenants = self.tenant.as_ref().zip(other.tenant.as_ref());
        tenants.is_some_and(|(one, other)| one != other)
    }

    /// Why this node waits, and what to do so that both can serve.
    fn waits_for(&self, other: &Self) -> String {
        if let Some(tenant) = other
            .tenant
            .as_ref()
            .filter(|_| self.serves_other_tenant(other))
        {
            return format!(
                "waiting while the tenant `{tenant}` has the same subjects, on node `{}`: both logins \
                 are of one NATS account. Give one another `prefix`, or a login of another account",
                other.node
            );
        }
        let how = match (self.fleet, other.fleet) {
            (true, true) => {
                "give one another [node] name, or, if both are tenants of one node, another \
                 [tenant] prefix"
            }
            (true, false) | (false, true) => "have both be of the fleet ([fleet])",
            (false, false) => "give one another [tenant] prefix",
        };
        format!(
            "waiting while node `{}` serves the same subjects: this node begins when that stops. To \
             have both serve, {how}",
            other.node
        )
    }
}

/// Asks on a tenant's subjects, with its login, whether a node serves one of the tenants `others`
/// there. Returns the name of that tenant. `None` if no node says so.
///
/// # Errors
/// If the login can't be used.
pub(crate) async fn other_tenant(
    config: &Config,
    others: &[&str],
) -> anyhow::Result<Option<String>> {
    let access = BrokerAccess::new(config);
    let options = access
        .options()?
        .name(format!("presence {} hello", config.node.name));
    let client = access.connect(options).await?;
    let subject = Subjects::new(config.tenant.prefix.as_deref()).of(SUBJECT);
    // This rank is the lowest, so no node yields to it.
    let me = NodeInfo {
        node: config.node.name.clone(),
        epoch_ms: u64::MAX,
        ready: false,
        id: client.new_inbox(),
        gone: false,
        fleet: false,
        tenant: config.tenant.name.clone(),
    };
    let read = |reply: &Message| {
        let node = serde_json::from_slice::<NodeInfo>(&reply.payload).ok()?;
        node.tenant.filter(|it| others.contains(&it.as_str()))
    };
    let asked = request::ask(&client, &subject, body(&me).into(), TIMEOUT, read).await;
    match asked {
        Ok(tenant) => Ok(Some(tenant)),
        Err(RequestError::Nobody { .. } | RequestError::None { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The result of a question to other nodes.
enum HelloResult {
    /// A node to which this one must yield.
    YieldTo(NodeInfo),
    /// The broker says that nobody listens.
    NoListener,
    /// The broker responded all the time, and no node to which this one must yield has answered.
    Unanswered,
    /// It can't be known: why.
    Unknown(String),
}

/// State shared by the task that answers and the one that asks.
struct Shared {
    subject: String,
    me: NodeInfo,
    /// Whether the node serves, or is about to.
    serves: AtomicBool,
    /// Notified when another node that serves has asked.
    serving_node_asked: Notify,
    /// The id of the node that last said goodbye.
    farewell: watch::Sender<String>,
    leave: Notify,
}

impl Shared {
    fn me(&self) -> NodeInfo {
        NodeInfo {
            ready: self.serves.load(Ordering::Relaxed),
            ..self.me.clone()
        }
    }
}

/// A node's right to serve a tenant's subjects.
pub(crate) struct ServingTurn {
    client: Client,
    broker: Arc<BrokerHealth>,
    /// Up to when everything has been received from the broker, by the host's clock.
    received_up_to: watch::Receiver<u64>,
    shared: Arc<Shared>,
    answers: JoinHandle<()>,
    rechecks: watch::Receiver<u64>,
    /// Its count of references is the number of the account's tenants with a turn, plus one.
    tenants: Arc<()>,
}

/// Signals when serving nodes must ask at once, for all tenants of an account.
pub(crate) struct RecheckSignal {
    count: watch::Receiver<u64>,
    tenants: Arc<()>,
}

impl RecheckSignal {
    /// Starts the task that checks for it, for as long as the account is used.
    pub(crate) fn start(broker: Arc<BrokerHealth>, tasks: &Tasks) -> Self {
        let (signal, count) = watch::channel(0);
        tasks.spawn("doubts", signal_rechecks(broker, signal));
        Self {
            count,
            tenants: Arc::default(),
        }
    }
}

/// Signals after the node was paused, has reconnected, or has dropped hello messages: it may have
/// missed another node's question.
async fn signal_rechecks(broker: Arc<BrokerHealth>, signal: watch::Sender<u64>) {
    let missed = || {
        let connects = broker.connects.load(Ordering::Relaxed);
        (connects, broker.drops.reported_of(SubscriptionKind::Hellos))
    };
    let mut known = missed();
    loop {
        let began = Instant::now();
        sleep(RECHECK_EVERY).await;
        let now = missed();
        if now != known || began.elapsed() > PAUSED {
            known = now;
            signal.send_modify(|times| *times += 1);
        }
    }
}

impl Drop for ServingTurn {
    fn drop(&mut self) {
        self.broker.forget_hello(&self.shared.subject);
    }
}

impl ServingTurn {
    /// Starts to answer other nodes.
    ///
    /// # Errors
    /// If the connection is closed.
    pub(crate) async fn listen(
        connection: &Connection,
        subjects: &Subjects,
        (node, fleet, tenant): (String, bool, Option<String>),
        (broker, received_up_to): (Arc<BrokerHealth>, watch::Receiver<u64>),
        replies: Arc<ReplyGuard>,
        (rechecks, tasks): (&RecheckSignal, &Tasks),
    ) -> anyhow::Result<Self> {
        let client = connection.client().clone();
        let subject = subjects.of(SUBJECT);
        broker.try_hello(&subject);
        let hellos = client.subscribe(subject.clone()).await?;
        let hellos = broker
            .drops
            .watch(hellos, SubscriptionKind::Hellos, &subject);
        let shared = Arc::new(Shared {
            subject,
            me: NodeInfo {
                node,
                epoch_ms: clock::now_ms(),
                ready: false,
                id: client.new_inbox(),
                gone: false,
                fleet,
                tenant,
            },
            serves: AtomicBool::new(false),
            serving_node_asked: Notify::new(),
            farewell: watch::Sender::default(),
            leave: Notify::new(),
        });
        let answering = answer(
            client.clone(),
            hellos,
            Arc::clone(&shared),
            (Arc::clone(&broker), replies),
        );
        Ok(Self {
            client,
            broker,
            received_up_to,
            answers: tasks.spawn("hello", answering),
            shared,
            rechecks: rechecks.count.clone(),
            tenants: Arc::clone(&rechecks.tenants),
        })
    }

    /// Waits until the node may serve. Then the broker knows of all earlier subscriptions of this
    /// client, unless a client subscribes to every subject.
    pub(crate) async fn wait(&self, board: &StatusBoard) {
        let mut farewell = self.shared.farewell.subscribe();
        let mut unanswered = 0;
        let mut before_me = String::new();
        loop {
            // The first connection takes a moment. `/readyz` reports it as missing until then.
            while !self.broker.connected.load(Ordering::Relaxed) {
                sleep(CONNECT_CHECK_EVERY).await;
            }
            let mut found = self.ask().await;
            board.set_waits_for_other_node(matches!(found, HelloResult::YieldTo(_)));
            unanswered += u32::from(matches!(found, HelloResult::Unanswered));
            let has_left = !before_me.is_empty() && *farewell.borrow_and_update() == before_me;
            let is_free = match found {
                HelloResult::NoListener => true,
                HelloResult::Unanswered => has_left || unanswered >= UNANSWERED_MAX,
                HelloResult::YieldTo(_) | HelloResult::Unknown(_) => false,
            };
            if is_free {
                // Other nodes may have decided the same at this moment. So each announces that it
                // serves, and asks once more.
                self.shared.serves.store(true, Ordering::Relaxed);
                found = self.ask().await;
                if matches!(found, HelloResult::NoListener | HelloResult::Unanswered) {
                    return;
                }
                self.shared.serves.store(false, Ordering::Relaxed);
            }
            match found {
                HelloResult::YieldTo(other) => {
                    unanswered = 0;
                    board.set_wait_reason(self.shared.me.waits_for(&other));
                    before_me = other.id;
                }
                HelloResult::Unknown(why) => {
                    board.set_wait_reason(format!(
                        "waiting to know whether another node serves: {why}"
                    ));
                }
                HelloResult::NoListener | HelloResult::Unanswered => continue,
            }
            // It can't fail: `self` holds the sender.
            let _ = timeout(TIMEOUT, farewell.changed()).await;
        }
    }

    /// Waits until the node may not serve any more, and returns the reason.
    pub(crate) async fn until_over(&self) -> String {
        let mut rechecks = self.rechecks.clone();
        loop {
            // The account itself holds one reference.
            let tenants = Arc::strong_count(&self.tenants).saturating_sub(1);
            let every = CHECK_EVERY.mul_f64((tenants as f64 / TENANTS as f64).max(1.0));
            tokio::select! {
                () = self.shared.serving_node_asked.notified() => {}
                Ok(()) = rechecks.changed() => {}
                () = sleep(every) => {}
            }
            match self.ask().await {
                HelloResult::YieldTo(other) => {
                    return format!("node `{}` serves as well", other.node);
                }
                HelloResult::Unknown(why)
                    if self.broker.hello_is_forbidden(&self.shared.subject) =>
                {
                    return why;
                }
                // Either no other node is there, or none can reach the users.
                HelloResult::Unknown(_) | HelloResult::NoListener | HelloResult::Unanswered => {}
            }
        }
    }

    /// Says goodbye to other nodes. Everything else must have been published before.
    pub(crate) async fn leave(&mut self) {
        self.shared.leave.notify_one();
        // A failure of the task has been logged already.
        let _ = (&mut self.answers).await;
    }

    async fn ask(&self) -> HelloResult {
        let connects = || self.broker.connects.load(Ordering::Relaxed);
        let (began, link) = (clock::now_ms(), connects());
        if !self.broker.connected.load(Ordering::Relaxed) {
            return HelloResult::Unknown("not connected to NATS".into());
        }
        self.broker.try_hello(&self.shared.subject);
        let me = self.shared.me();
        // If a node of the same fleet answers, no node outside of the fleet serves.
        let is_of_fleet = AtomicBool::new(false);
        let before_me = |reply: &Message| {
            self.broker.count_elsewhere();
            let other = serde_json::from_slice::<NodeInfo>(&reply.payload).ok()?;
            is_of_fleet.fetch_or(me.serves_with(&other), Ordering::Relaxed);
            me.yields_to(&other).then_some(other)
        };
        let asked = request::ask(
            &self.client,
            &self.shared.subject,
            body(&me).into(),
            TIMEOUT,
            before_me,
        );
        let asked = asked.await;
        if self.broker.hello_is_forbidden(&self.shared.subject) {
            return HelloResult::Unknown(format!("NATS forbids `{}`", self.shared.subject));
        }
        // Whether a marker has come back that was sent after the question, so that the broker has
        // responded.
        let waited = u64::try_from(TIMEOUT.as_millis()).unwrap_or_default();
        let is_heard = *self.received_up_to.borrow() >= began.saturating_add(waited / 2);
        match asked {
            Ok(other) => HelloResult::YieldTo(other),
            Err(_) if connects() != link => HelloResult::Unknown("NATS was away".into()),
            Err(RequestError::Nobody { .. }) => {
                self.broker.count_elsewhere();
                HelloResult::NoListener
            }
            Err(RequestError::None { .. }) if is_heard && is_of_fleet.into_inner() => {
                HelloResult::NoListener
            }
            Err(RequestError::None { .. }) if is_heard => HelloResult::Unanswered,
            Err(RequestError::None { .. }) => HelloResult::Unknown("NATS is silent".into()),
            Err(why @ (RequestError::Closed { .. } | RequestError::Unaskable { .. })) => {
                HelloResult::Unknown(why.to_string())
            }
        }
    }
}

/// A node's description as JSON. Plain data always has a JSON form.
fn body(node: &NodeInfo) -> Vec<u8> {
    serde_json::to_vec(node).unwrap_or_default()
}

/// Answers other nodes until this one leaves.
async fn answer(
    client: Client,
    mut hellos: WatchedSubscriber,
    shared: Arc<Shared>,
    (broker, allowed): (Arc<BrokerHealth>, Arc<ReplyGuard>),
) {
    loop {
        let hello = tokio::select! {
            () = shared.leave.notified() => break,
            hello = hellos.next() => hello,
        };
        let Some(hello) = hello else { return };
        broker.count_elsewhere();
        let me = shared.me();
        // Nodes of earlier versions send an empty question.
        if let Ok(other) = serde_json::from_slice::<NodeInfo>(&hello.payload) {
            if other.gone {
                shared.farewell.send_replace(other.id);
            } else if other.ready && me.ready && me.yields_to(&other) {
                shared.serving_node_asked.notify_one();
            }
        }
        // Nodes are always answered on their inboxes, whatever `[nats] reply_prefixes` permits: a
        // node without an answer would serve as well.
        let reply = match hello.reply {
            Some(reply) if reply.starts_with(INBOX) => Some(reply),
            reply => allowed.accept(reply),
        };
        if let Some(reply) = reply {
            let _ = client.publish(reply, body(&me).into()).await;
        }
    }
    // Unsubscribes first: a node that asks because of the goodbye then hears that nobody listens.
    let _ = hellos.unsubscribe().await;
    let gone = NodeInfo {
        gone: true,
        ..shared.me()
    };
    let _ = client
        .publish(shared.subject.clone(), body(&gone).into())
        .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ready: bool, epoch_ms: u64, name: &str, id: &str) -> NodeInfo {
        NodeInfo {
            node: name.into(),
            epoch_ms,
            ready,
            id: id.into(),
            gone: false,
            fleet: false,
            tenant: None,
        }
    }

    #[test]
    fn of_any_two_nodes_exactly_one_goes_before() {
        // In the order of their priority.
        let nodes = [
            node(true, 1, "b", "2"),
            node(true, 2, "a", "1"),
            node(false, 0, "a", "1"),
            node(false, 1, "a", "2"),
            node(false, 1, "b", "0"),
            node(false, 1, "b", "1"),
        ];
        for (place, one) in nodes.iter().enumerate() {
            for (other_place, other) in nodes.iter().enumerate() {
                assert_eq!(
                    one.yields_to(other),
                    other_place < place,
                    "{one:?} {other:?}"
                );
            }
        }
    }

    #[test]
    fn nodes_of_a_fleet_serve_together_unless_they_have_one_name() {
        let of_fleet = |name: &str, id: &str| NodeInfo {
            fleet: true,
            ..node(true, 1, name, id)
        };
        let (a, b) = (of_fleet("a", "1"), of_fleet("b", "2"));
        assert!(!a.yields_to(&b) && !b.yields_to(&a));
        // Of one tenant, or of a tenant whose name isn't known.
        let of_tenant = |mut node: NodeInfo, tenant: &str| {
            node.tenant = Some(tenant.into());
            node
        };
        let named = of_tenant(b.clone(), "one");
        assert!(!a.yields_to(&named) && !named.yields_to(&a));
        assert!(!named.yields_to(&of_tenant(a.clone(), "one")));
        let other = of_tenant(a.clone(), "two");
        assert!(named.yields_to(&other) && !other.yields_to(&named));
        let why = named.waits_for(&other);
        assert!(
            why.contains("the tenant `two`") && why.contains("one NATS account"),
            "{why}"
        );
        let again = of_fleet("a", "3");
        assert!(!a.yields_to(&again) && again.yields_to(&a));
        let alone = node(true, 2, "c", "4");
        assert!(alone.yields_to(&a) && !a.yields_to(&alone));
    }

    #[test]
    fn nobody_yields_to_a_node_that_is_gone_and_earlier_versions_are_understood() {
        let mut gone = node(true, 1, "a", "1");
        gone.gone = true;
        let me = node(false, 2, "b", "2");
        assert!(!me.yields_to(&gone));
        let earlier = br#"{"node":"a","epoch_ms":1,"ready":true}"#;
        assert!(me.yields_to(&serde_json::from_slice(earlier).unwrap()));
    }
}
