//! The state of the connection to the broker, and its log lines.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use presence_config::{Config, HEADER_BYTES_MAX};

use super::RECONNECT_MS_MAX;
use super::permissions::{BrokerErrorKind, Operation, Permissions, Refusal, refusal};
use crate::clock;
use crate::link::drops::Drops;
use crate::link::login::RefusedLogin;

/// How often the log repeats that the broker can't be reached, for the same reason.
const UNREACHABLE_LOG_EVERY_MS: u64 = 60_000;

/// The least time between two log lines about errors that the broker reports.
const ERROR_LOG_EVERY_MS: u64 = 1_000;

/// How long nothing must have been heard from the broker to count as silence, in milliseconds.
/// Markers of the pulse come several times a second.
const SILENT_MS: u64 = 3_000;

/// The shortest limit on bodies, in bytes, with which the node is useful.
const BODY_BYTES_MIN: usize = 1_024;

/// What is known about the connection.
#[derive(Debug, Default)]
pub(crate) struct BrokerHealth {
    pub(crate) connected: AtomicBool,
    pub(crate) connects: AtomicU64,
    /// What the client has dropped.
    pub(crate) drops: Drops,
    pub(crate) errors: AtomicU64,
    /// How many messages were read by subscriptions other than the intake's.
    elsewhere: AtomicU64,
    /// The permissions that the node needs, and those that are forbidden.
    pub(crate) permissions: Permissions,
    /// When another error of the broker was last logged, by the host's clock.
    complained_at: AtomicU64,
    /// The subjects on which nodes find each other, in lower case, and what the broker forbids on
    /// each.
    hellos: Mutex<BTreeMap<String, Hello>>,
    /// When the broker was last heard, by the host's clock; 0 if it hasn't been yet.
    pub(super) heard_at: AtomicU64,
    /// When the newest marker that has come back was sent, by the host's clock.
    heard_up_to: AtomicU64,
    /// When the connection was last made, by the host's clock. The client subscribes again at that
    /// time.
    connected_at: AtomicU64,
    is_silence_told: AtomicBool,
    /// By how many bytes the broker's limit on bodies falls short of what the node needs; 0 if it
    /// doesn't.
    lacks_bytes: AtomicUsize,
    /// Whether the second connection isn't heard, so that the pulse has to do without it.
    is_pulse_away: AtomicBool,
    /// Whether the lookup of a server's name failed in the last attempt to connect.
    pub(super) is_unresolved: AtomicBool,
    /// Why the broker can't be reached. `None` while there is a connection.
    unreachable: Mutex<Option<Unreachable>>,
}

/// What the broker forbids on a subject on which nodes find each other.
#[derive(Debug, Default)]
struct Hello {
    /// Whether it forbids the subscription.
    subscribe_forbidden: bool,
    /// Whether it has refused the last question.
    publish_forbidden: bool,
}

/// Why the broker can't be reached.
#[derive(Debug)]
struct Unreachable {
    why: String,
    /// When it was last logged, by the host's clock.
    logged_at: u64,
    /// The login, if the broker refused it.
    refused: Option<RefusedLogin>,
}

/// The permissions that a tenant needs. Dropping this releases them.
#[derive(Debug)]
pub(crate) struct Needs {
    broker: Arc<BrokerHealth>,
    prefix: Option<String>,
}

impl Drop for Needs {
    fn drop(&mut self) {
        self.broker.permissions.release(self.prefix.as_deref());
    }
}

impl BrokerHealth {
    /// Registers the permissions that a tenant needs.
    pub(crate) fn need(self: &Arc<Self>, config: &Config) -> Needs {
        self.permissions.need(config);
        Needs {
            broker: Arc::clone(self),
            prefix: config.tenant.prefix.clone(),
        }
    }

    /// Notes that a new connection was made. The broker doesn't know the node's subscriptions yet.
    pub(super) fn note_connected(&self) {
        self.connected_at
            .fetch_max(clock::now_ms(), Ordering::Relaxed);
        for hello in self.hellos().values_mut() {
            hello.subscribe_forbidden = false;
        }
    }

    /// Whether the broker is known to have the subscriptions that were made before a time, by the
    /// host's clock. Until then, it delivers their messages to nobody.
    pub(crate) fn has_subscriptions_since(&self, subscribed_at: u64) -> bool {
        let asked = self.connected_at.load(Ordering::Relaxed).max(subscribed_at);
        self.heard_up_to.load(Ordering::Relaxed) > asked
    }

    /// Notes that a marker has come back that was sent at `sent_at`: the broker responds.
    pub(crate) fn note_heard(&self, sent_at: u64) {
        self.heard_up_to.fetch_max(sent_at, Ordering::Relaxed);
        let before = self.heard_at.swap(clock::now_ms(), Ordering::Relaxed);
        if before != 0 && self.is_silence_told.swap(false, Ordering::Relaxed) {
            let silent_ms = clock::now_ms().saturating_sub(before);
            tracing::info!(silent_ms, "NATS responds again");
        }
    }

    /// Notes why the broker can't be reached. A new reason is logged at once, the same one once a
    /// minute.
    pub(super) fn note_unreachable(
        &self,
        servers: &str,
        why: String,
        refused: Option<RefusedLogin>,
    ) {
        let now = clock::now_ms();
        let mut unreachable = self.unreachable();
        if let Some(known) = &mut *unreachable
            && known.why == why
            && now.saturating_sub(known.logged_at) < UNREACHABLE_LOG_EVERY_MS
        {
            known.refused = refused;
            return;
        }
        tracing::warn!(
            servers,
            "can't reach NATS, and tries again at least every {} s: {why}",
            RECONNECT_MS_MAX / 1_000
        );
        *unreachable = Some(Unreachable {
            why,
            logged_at: now,
            refused,
        });
    }

    /// Whether there is no connection because the broker refuses the current login.
    pub(crate) fn refuses_login(&self) -> bool {
        let unreachable = self.unreachable();
        let refused = unreachable.as_ref().and_then(|it| it.refused.as_ref());
        refused.is_some_and(RefusedLogin::is_used) && !self.connected.load(Ordering::Relaxed)
    }

    /// Why there is no connection, as far as it is known. `None` if there is one.
    pub(crate) fn disconnected(&self) -> Option<String> {
        if self.connected.load(Ordering::Relaxed) {
            return None;
        }
        let unreachable = self.unreachable();
        let why = unreachable.as_ref().map(|it| format!(": {}", it.why));
        Some(format!("not connected to NATS{}", why.unwrap_or_default()))
    }

    /// Whether there is no connection, and this is a problem: it was lost, or an attempt has
    /// failed. While the first attempt runs, there is none yet.
    pub(crate) fn is_away(&self) -> bool {
        let is_expected =
            self.connects.load(Ordering::Relaxed) == 0 && self.unreachable().is_none();
        !self.connected.load(Ordering::Relaxed) && !is_expected
    }

    /// Notes that there is a connection.
    pub(super) fn note_reached(&self) {
        *self.unreachable() = None;
    }

    /// Notes the longest body that the broker takes, in bytes, and logs an error if it is too
    /// short.
    pub(crate) fn set_body_bytes_max(&self, bytes_max: usize) {
        let lacks = BODY_BYTES_MIN.saturating_sub(bytes_max);
        let before = self.lacks_bytes.swap(lacks, Ordering::Relaxed);
        if let Some(why) = self.body_limit_error().filter(|_| before != lacks) {
            tracing::error!("{why}. Until then the node isn't ready");
        }
    }

    /// The error if the broker's limit on messages is too small for this node.
    pub(crate) fn body_limit_error(&self) -> Option<String> {
        let needed = HEADER_BYTES_MAX + BODY_BYTES_MIN;
        (self.lacks_bytes.load(Ordering::Relaxed) > 0).then(|| {
            format!(
                "NATS takes only messages that are too short for events and answers: raise \
                 max_payload in the server's configuration to {needed} bytes at least (its \
                 default is 1 MiB)"
            )
        })
    }

    fn unreachable(&self) -> MutexGuard<'_, Option<Unreachable>> {
        let lock = self.unreachable.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long nothing has been heard from the broker, in milliseconds, if it counts as
    /// silence. No lease runs out in that time.
    pub(crate) fn silence(&self) -> Option<u64> {
        let silent_ms = match self.heard_at.load(Ordering::Relaxed) {
            0 => return None,
            at => clock::now_ms().saturating_sub(at),
        };
        (silent_ms >= SILENT_MS).then_some(silent_ms)
    }

    /// Logs a silence, once.
    pub(crate) fn log_silence(&self) {
        if let Some(silent_ms) = self.silence()
            && self.connected.load(Ordering::Relaxed)
            && !self.is_silence_told.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                silent_ms,
                "NATS doesn't respond, although the connection is up; connections don't time out \
                 meanwhile. If this lasts, permit this node to publish and subscribe below `_INBOX.`"
            );
        }
    }

    fn hellos(&self) -> MutexGuard<'_, BTreeMap<String, Hello>> {
        self.hellos.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that other nodes are about to be asked on a subject, so that only a refusal of this
    /// question counts.
    pub(crate) fn try_hello(&self, subject: &str) {
        let mut hellos = self.hellos();
        hellos
            .entry(subject.to_lowercase())
            .or_default()
            .publish_forbidden = false;
    }

    /// Whether the broker forbids to ask other nodes on a subject, or to answer them.
    pub(crate) fn hello_is_forbidden(&self, subject: &str) -> bool {
        let hellos = self.hellos();
        let hello = hellos.get(&subject.to_lowercase());
        hello.is_some_and(|it| it.subscribe_forbidden || it.publish_forbidden)
    }

    /// Forgets a subject on which this node doesn't look for others any more.
    pub(crate) fn forget_hello(&self, subject: &str) {
        self.hellos().remove(&subject.to_lowercase());
    }

    /// Notes an error that the broker reports. A forbidden permission is logged once, other errors
    /// at most once a second.
    pub(super) fn complaint(&self, text: &str) {
        match self.permissions.note(text) {
            BrokerErrorKind::TestAnswer => return,
            BrokerErrorKind::New(permission) => tracing::error!(
                "NATS forbids this node {permission}: permit it, as docs/permissions.conf does. Until \
                 then the node isn't ready"
            ),
            BrokerErrorKind::Known => {}
            BrokerErrorKind::Other => {
                let now = clock::now_ms();
                let due = |at: u64| (now >= at + ERROR_LOG_EVERY_MS).then_some(now);
                let (order, failure) = (Ordering::Relaxed, Ordering::Relaxed);
                if self.complained_at.fetch_update(order, failure, due).is_ok() {
                    tracing::warn!(error = text, "NATS reports an error");
                }
            }
        }
        self.errors.fetch_add(1, Ordering::Relaxed);
        // The text may contain a subject that a client has chosen, so only exactly this subject
        // counts.
        if let Some(Refusal::Of(operation, subject)) = refusal(text)
            && let Some(hello) = self.hellos().get_mut(&subject.to_lowercase())
        {
            match operation {
                Operation::Subscribe => hello.subscribe_forbidden = true,
                Operation::Publish => hello.publish_forbidden = true,
            }
        }
    }

    /// Whether the second connection is heard.
    pub(crate) fn has_pulse(&self) -> bool {
        !self.is_pulse_away.load(Ordering::Relaxed)
    }

    /// Notes that the second connection isn't heard, while the main one is.
    pub(crate) fn mark_pulse_lost(&self) {
        if !self.is_pulse_away.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "no message arrives on the second connection to NATS (`… pulse`), while the main one \
                 works: does the broker, or the account, permit one more connection?"
            );
        }
    }

    /// Notes that the second connection is heard.
    pub(crate) fn mark_pulse_back(&self) {
        if self.is_pulse_away.swap(false, Ordering::Relaxed) {
            tracing::info!("the second connection to NATS is heard again");
        }
    }

    /// Counts a message that a subscription other than the intake's has read.
    pub(crate) fn count_elsewhere(&self) {
        self.elsewhere.fetch_add(1, Ordering::Relaxed);
    }

    /// How many messages were read by subscriptions other than the intake's.
    pub(crate) fn read_elsewhere(&self) -> u64 {
        self.elsewhere.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use presence_config::Auth;

    use super::*;
    use crate::link::login::Login;

    #[test]
    fn a_broker_that_cannot_be_reached_is_told_of_once_for_each_reason() {
        let health = BrokerHealth::default();
        let reported = |why: &str| {
            health.note_unreachable("a:1", why.into(), None);
            let unreachable = health.unreachable();
            unreachable
                .as_ref()
                .map(|it| (it.why.clone(), it.logged_at))
        };
        let first = reported("refused");
        // Some time ago, and less than the interval at which the log repeats the reason.
        let ago = clock::now_ms() - UNREACHABLE_LOG_EVERY_MS / 2;
        health.unreachable().as_mut().unwrap().logged_at = ago;
        assert_eq!(reported("refused"), Some(("refused".into(), ago)));
        assert_ne!(reported("timed out"), first);
        assert_eq!(
            health.disconnected().unwrap(),
            "not connected to NATS: timed out"
        );
        health.note_reached();
        assert_eq!(health.disconnected().unwrap(), "not connected to NATS");
    }

    #[test]
    fn a_login_that_was_replaced_is_refused_no_more() {
        let (health, login) = (BrokerHealth::default(), Login::new(Auth::Anonymous));
        let why = || "authorization violation".to_owned();
        assert!(!health.refuses_login());
        health.note_unreachable("a:1", why(), Some(login.refused(login.version())));
        assert!(health.refuses_login());
        let before = login.version();
        login.replace(Auth::Nkey("another.nk".into()));
        assert!(!health.refuses_login());
        // This attempt began before the login was replaced.
        health.note_unreachable("a:1", why(), Some(login.refused(before)));
        assert!(!health.refuses_login());
        health.note_unreachable("a:1", why(), Some(login.refused(login.version())));
        assert!(health.refuses_login());
        login.replace(Auth::Nkey("another.nk".into()));
        assert!(health.refuses_login(), "it is the same");
        health.connected.store(true, Ordering::Relaxed);
        assert!(!health.refuses_login());
    }

    #[test]
    fn one_that_is_just_being_connected_to_is_not_away() {
        let health = BrokerHealth::default();
        assert!(!health.is_away());
        health.note_unreachable("a:1", "refused".into(), None);
        assert!(health.is_away());
        health.note_reached();
        health.connected.store(true, Ordering::Relaxed);
        health.connects.fetch_add(1, Ordering::Relaxed);
        assert!(!health.is_away());
        health.connected.store(false, Ordering::Relaxed);
        assert!(health.is_away());
    }

    #[test]
    fn what_was_sent_before_the_subscriptions_says_nothing_of_them() {
        let health = BrokerHealth::default();
        assert!(
            !health.has_subscriptions_since(u64::MAX),
            "nothing was subscribed to"
        );
        let asked = clock::now_ms();
        health.note_heard(asked);
        assert!(
            !health.has_subscriptions_since(asked),
            "the marker may have gone out before"
        );
        health.note_heard(asked + 1);
        assert!(health.has_subscriptions_since(asked));
        // A later subscription doesn't change what is known about earlier ones.
        assert!(!health.has_subscriptions_since(asked + 1));
        assert!(health.has_subscriptions_since(asked));
        // On a new connection, the broker has none of the subscriptions yet.
        health.connected_at.store(asked + 2, Ordering::Relaxed);
        assert!(!health.has_subscriptions_since(asked));
    }

    #[test]
    fn that_nodes_may_not_find_each_other_is_known_of_each_subject() {
        let health = BrokerHealth::default();
        let (acme, zeta) = ("Acme.presence-nodes.hello", "zeta.presence-nodes.hello");
        health.try_hello(acme);
        health.try_hello(zeta);
        health.complaint("Permissions Violation for Subscription to \"zeta.presence-nodes.hello\"");
        // A client has chosen this reply subject.
        let chosen = "_INBOX.private.presence-nodes.hello";
        health.complaint(&format!(
            "Permissions Violation for Publish to \"{chosen}\""
        ));
        assert!(!health.hello_is_forbidden(acme) && !health.hello_is_forbidden(chosen));
        assert!(health.hello_is_forbidden(zeta));
        health.note_connected();
        assert!(!health.hello_is_forbidden(zeta));
        health.complaint("permissions violation for publish to \"acme.presence-nodes.hello\"");
        assert!(health.hello_is_forbidden(acme));
        health.try_hello(acme);
        assert!(!health.hello_is_forbidden(acme));
    }

    #[test]
    fn a_broker_that_takes_short_messages_alone_is_of_no_use() {
        let health = BrokerHealth::default();
        assert_eq!(health.body_limit_error(), None);
        // This is the limit with a max_payload of 1,024.
        health.set_body_bytes_max(0);
        let why = health.body_limit_error().unwrap_or_default();
        assert!(
            why.contains("max_payload") && why.contains("2048 bytes"),
            "{why}"
        );
        health.set_body_bytes_max(BODY_BYTES_MIN);
        assert_eq!(health.body_limit_error(), None);
    }
}
