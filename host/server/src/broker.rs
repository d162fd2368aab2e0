//! The connection to the broker: it is kept up for as long as the node runs.

mod cause;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::anyhow;
use async_nats::{Client, ConnectOptions, Event};
use tokio::sync::mpsc;

use crate::clock;
use crate::config::{Config, Nats};
use crate::drops::Drops;
use crate::hello;
use crate::login::Login;

/// The longest body where no broker says otherwise, less room for headers.
pub(crate) const BODY_BYTES_MAX: usize = (1 << 20) - HEADER_BYTES_MAX;

/// More than the headers of any publication take.
const HEADER_BYTES_MAX: usize = 1_024;

/// How often the client asks a broker that says nothing for a sign of life, in
/// milliseconds: four times within a time-out, but for very short or long ones.
const PING_MS_MIN: u64 = 500;
const PING_MS_MAX: u64 = 30_000;

/// How long the client waits for its next attempt to connect, at most: what viewers
/// believe is to be true again within seconds of the broker's return.
const RECONNECT_MS_MAX: u64 = 2_000;

/// How often the log tells of a broker that can't be reached for the same reason.
const UNREACHABLE_TOLD_MS: u64 = 60_000;

/// What the client's error says where a server's name could not be looked up.
const UNRESOLVED: &str = "DNS error";

/// From when on a silence is one, in milliseconds: a pulse comes several times a second.
const SILENT_MS: u64 = 3_000;

/// How many messages the client holds that it hasn't written yet. They go out on a new
/// connection before those that are published again, so they are few; no fewer, since
/// workers would wait for room.
const CLIENT_QUEUE: usize = 1_024;

/// How often it is found out up to when everything has been heard, in milliseconds:
/// several times within a time-out.
pub(crate) fn pulse_ms(timeout_ms: u64) -> u64 {
    (timeout_ms / 8).clamp(1, 250)
}

/// What is known of the connection.
#[derive(Debug, Default)]
pub(crate) struct Health {
    pub(crate) connected: AtomicBool,
    pub(crate) connects: AtomicU64,
    /// What the client has dropped.
    pub(crate) drops: Drops,
    pub(crate) errors: AtomicU64,
    /// How many messages other subscriptions than the intake's have read.
    elsewhere: AtomicU64,
    /// Whether the broker forbids a subscription.
    pub(crate) forbidden: AtomicBool,
    /// Whether the broker forbids to listen to other nodes.
    is_hello_deaf: AtomicBool,
    /// Whether the broker has forbidden to ask other nodes, since that was tried last.
    is_hello_mute: AtomicBool,
    /// When the broker was last heard, by the host's clock; 0 if it hasn't been yet.
    heard_at: AtomicU64,
    /// When the last marker was sent of those that have come back, by the host's clock.
    heard_up_to: AtomicU64,
    /// When the node last had something to subscribe to, by the host's clock.
    subscribed_at: AtomicU64,
    is_silence_told: AtomicBool,
    /// Whether the pulse has to do without its own connection.
    is_pulse_away: AtomicBool,
    /// Whether the name of a server could not be looked up when that was last tried.
    is_unresolved: AtomicBool,
    /// Why the broker can't be reached; none while it is.
    unreachable: Mutex<Option<Unreachable>>,
}

/// Why the broker can't be reached.
#[derive(Debug)]
struct Unreachable {
    why: String,
    /// When the log was last told, by the host's clock.
    told_at: u64,
}

impl Health {
    /// Notes that the node has asked for its subscriptions.
    pub(crate) fn subscribed(&self) {
        let now = clock::now_ms();
        self.subscribed_at.fetch_max(now, Ordering::Relaxed);
    }

    /// Whether the broker is known to have the node's subscriptions: until then it has
    /// what clients publish go nowhere.
    pub(crate) fn hears(&self) -> bool {
        let asked = self.subscribed_at.load(Ordering::Relaxed);
        self.heard_up_to.load(Ordering::Relaxed) > asked
    }

    /// Notes that the broker was heard: a marker has come back that was sent at a time.
    pub(crate) fn heard(&self, sent_at: u64) {
        self.heard_up_to.fetch_max(sent_at, Ordering::Relaxed);
        let before = self.heard_at.swap(clock::now_ms(), Ordering::Relaxed);
        if before != 0 && self.is_silence_told.swap(false, Ordering::Relaxed) {
            let silent_ms = clock::now_ms().saturating_sub(before);
            tracing::info!(silent_ms, "NATS is heard again");
        }
    }

    /// Notes why the broker can't be reached, and has the log know: of a new reason at once,
    /// of the same one now and then.
    fn cannot_reach(&self, servers: &str, why: String) {
        let now = clock::now_ms();
        let mut unreachable = self.unreachable();
        let is_told = |it: &Unreachable| {
            it.why == why && now.saturating_sub(it.told_at) < UNREACHABLE_TOLD_MS
        };
        if unreachable.as_ref().is_some_and(is_told) {
            return;
        }
        tracing::warn!(servers, "can't reach NATS; trying again: {why}");
        *unreachable = Some(Unreachable { why, told_at: now });
    }

    /// Why there is no connection, as far as that is known; none where there is one.
    pub(crate) fn disconnected(&self) -> Option<String> {
        if self.connected.load(Ordering::Relaxed) {
            return None;
        }
        let unreachable = self.unreachable();
        let why = unreachable.as_ref().map(|it| format!(": {}", it.why));
        Some(format!("not connected to NATS{}", why.unwrap_or_default()))
    }

    fn unreachable(&self) -> MutexGuard<'_, Option<Unreachable>> {
        let lock = self.unreachable.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// For how long nothing has been heard from the broker, in milliseconds, if that is
    /// longer than it should be. No lease runs in that time.
    pub(crate) fn silence(&self) -> Option<u64> {
        let silent_ms = match self.heard_at.load(Ordering::Relaxed) {
            0 => return None,
            at => clock::now_ms().saturating_sub(at),
        };
        (silent_ms >= SILENT_MS).then_some(silent_ms)
    }

    /// Tells of a silence in the log, once.
    pub(crate) fn tell_silence(&self) {
        if let Some(silent_ms) = self.silence()
            && self.connected.load(Ordering::Relaxed)
            && !self.is_silence_told.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                silent_ms,
                "nothing is heard from NATS, though the connection stands, and nobody times out \
                 until it is. If that lasts: may this node publish and subscribe below `_INBOX.`?"
            );
        }
    }

    /// Notes that other nodes are about to be asked.
    pub(crate) fn try_hello(&self) {
        self.is_hello_mute.store(false, Ordering::Relaxed);
    }

    /// Whether the broker forbids to ask other nodes, or to answer them.
    pub(crate) fn hello_is_forbidden(&self) -> bool {
        let is_mute = self.is_hello_mute.load(Ordering::Relaxed);
        is_mute || self.is_hello_deaf.load(Ordering::Relaxed)
    }

    /// Notes what the broker forbids, in its words.
    fn forbids(&self, text: &str) {
        let is_hello = text.contains(hello::SUBJECT);
        if text.contains("permissions violation for subscription") {
            self.forbidden.store(true, Ordering::Relaxed);
            self.is_hello_deaf.fetch_or(is_hello, Ordering::Relaxed);
        } else if text.contains("permissions violation") {
            self.is_hello_mute.fetch_or(is_hello, Ordering::Relaxed);
        }
    }

    /// Whether the pulse has a connection of its own.
    pub(crate) fn has_pulse(&self) -> bool {
        !self.is_pulse_away.load(Ordering::Relaxed)
    }

    /// Notes that the pulse's own connection isn't heard, while the main one is.
    pub(crate) fn pulse_is_away(&self) {
        if !self.is_pulse_away.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                "nothing is heard on the second connection to NATS (`… pulse`), and the main one \
                 does its work: does the broker, or the account, permit one more connection?"
            );
        }
    }

    /// Notes that it is heard.
    pub(crate) fn pulse_is_back(&self) {
        if self.is_pulse_away.swap(false, Ordering::Relaxed) {
            tracing::info!("the second connection to NATS is heard again");
        }
    }

    /// Counts a message that another subscription than the intake's has read.
    pub(crate) fn count_elsewhere(&self) {
        self.elsewhere.fetch_add(1, Ordering::Relaxed);
    }

    /// How many messages other subscriptions than the intake's have read.
    pub(crate) fn read_elsewhere(&self) -> u64 {
        self.elsewhere.load(Ordering::Relaxed)
    }
}

/// The longest body that the broker takes, once it is known.
pub(crate) fn body_bytes_max(client: &Client) -> usize {
    match client.server_info().max_payload {
        0 => BODY_BYTES_MAX,
        bytes => bytes.saturating_sub(HEADER_BYTES_MAX),
    }
}

/// How the broker is reached, as a configuration says.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    nats: Nats,
    timeout_ms: u64,
    node: String,
    /// The login of all connections, which may be replaced.
    pub(crate) login: Login,
}

impl Access {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            nats: config.nats.clone(),
            timeout_ms: config.tracker.timeout_ms,
            node: config.node.name.clone(),
            login: Login::new(config.nats.auth.clone()),
        }
    }

    /// The servers that are connected to.
    pub(crate) fn servers(&self) -> String {
        self.nats.servers()
    }

    /// How to log in, how to encrypt, how long an attempt may take.
    ///
    /// # Errors
    /// A file that is named and can't be read, or doesn't hold what it should.
    pub(crate) fn options(&self) -> anyhow::Result<ConnectOptions> {
        // The client would only say so each time it tries to connect.
        if let Some(problem) = self.nats.unreadable().into_iter().next() {
            return Err(problem);
        }
        let mut options = self
            .login
            .options()?
            .connection_timeout(Duration::from_millis(self.nats.connect_timeout_ms))
            .subscription_capacity(self.nats.intake_queue)
            // The first that answers is used.
            .retain_servers_order();
        let tls = &self.nats.tls;
        if tls.required {
            options = options.require_tls(true);
        }
        if let Some(ca) = &tls.ca {
            options = options.add_root_certificates(ca.clone());
        }
        if let Some(identity) = &tls.identity {
            options = options.add_client_certificate(identity.cert.clone(), identity.key.clone());
        }
        Ok(options)
    }

    /// Connects with such options.
    ///
    /// # Errors
    /// If no server is reached, or none takes the login.
    pub(crate) async fn connect(&self, options: ConnectOptions) -> anyhow::Result<Client> {
        match options.connect(self.nats.url.clone()).await {
            Ok(client) => Ok(client),
            // Not as the source of another error: it says its own source itself.
            Err(error) => {
                let why = cause::of_attempt(&error, &self.nats.url).await;
                Err(anyhow!(
                    "can't connect to NATS at {}: {why}",
                    self.servers()
                ))
            }
        }
    }

    /// Options for a connection that lasts for as long as the node runs: a broker that
    /// isn't there is waited for, and one that is silent is given up within a time-out.
    ///
    /// # Errors
    /// As [`Self::options`].
    pub(crate) fn lasting(&self, purpose: &str) -> anyhow::Result<ConnectOptions> {
        let options = self
            .options()?
            .name(format!("presence {}{purpose}", self.node))
            .retry_on_initial_connect()
            // The client gives up at the third that isn't answered.
            .ping_interval(Duration::from_millis(
                (self.timeout_ms / 4).clamp(PING_MS_MIN, PING_MS_MAX),
            ))
            .reconnect_delay_callback(|attempts| {
                Duration::from_millis(
                    100_u64
                        .saturating_mul(1 << attempts.min(5))
                        .min(RECONNECT_MS_MAX),
                )
            });
        Ok(options)
    }

    /// The node's main connection. A broker that isn't there yet is waited for, with
    /// back-off; each loss (false) and return (true) of the connection is reported.
    ///
    /// # Errors
    /// As [`Self::options`].
    pub(crate) async fn main(
        &self,
        health: &Arc<Health>,
        changes: mpsc::UnboundedSender<bool>,
    ) -> anyhow::Result<Client> {
        let (health, servers) = (Arc::clone(health), self.servers());
        let (known, tried) = (Arc::clone(&health), servers.clone());
        let options = self
            .lasting("")?
            .no_echo()
            // Called before each attempt: the client tells only here why earlier ones failed.
            .reconnect_to_server_callback(move |pool, _| {
                let (health, servers) = (Arc::clone(&known), tried.clone());
                async move {
                    let unresolved = health.is_unresolved.swap(false, Ordering::Relaxed);
                    if let Some(why) = cause::of(pool, unresolved).await {
                        health.cannot_reach(&servers, why);
                    }
                    // The client chooses by itself.
                    None
                }
            })
            .client_capacity(CLIENT_QUEUE)
            .event_callback(move |event| {
                observe(&event, &servers, &health, &changes);
                std::future::ready(())
            });
        self.connect(options).await
    }
}

fn observe(event: &Event, servers: &str, health: &Health, changes: &mpsc::UnboundedSender<bool>) {
    match event {
        Event::Connected => {
            health.connected.store(true, Ordering::Relaxed);
            *health.unreachable() = None;
            health.forbidden.store(false, Ordering::Relaxed);
            health.is_hello_deaf.store(false, Ordering::Relaxed);
            health.connects.fetch_add(1, Ordering::Relaxed);
            // A silence begins at the first connection, at the earliest.
            let relaxed = Ordering::Relaxed;
            let now = clock::now_ms();
            // The client asks for its subscriptions again from here on.
            health.subscribed();
            let _ = health.heard_at.compare_exchange(0, now, relaxed, relaxed);
            tracing::info!(servers, "connected to NATS");
            // Nobody listens any more when the node is stopping.
            let _ = changes.send(true);
        }
        Event::Disconnected => {
            health.connected.store(false, Ordering::Relaxed);
            tracing::warn!("lost the connection to NATS; reconnecting");
            let _ = changes.send(false);
        }
        Event::SlowConsumer(number) => health.drops.said(*number),
        Event::ServerError(error) => {
            health.forbids(&error.to_string().to_lowercase());
            health.errors.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%error, "NATS reports an error");
        }
        Event::ClientError(error) => {
            health.errors.fetch_add(1, Ordering::Relaxed);
            if health.connected.load(Ordering::Relaxed) {
                tracing::warn!(%error, "NATS client error");
            } else if error.to_string().ends_with(UNRESOLVED) {
                // It isn't noted with the server, as other causes are.
                health.is_unresolved.store(true, Ordering::Relaxed);
            }
        }
        Event::LameDuckMode | Event::Draining | Event::Closed => tracing::info!(%event, "NATS"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_sent_before_the_subscriptions_says_nothing_of_them() {
        let health = Health::default();
        assert!(!health.hears(), "nothing was subscribed to");
        let before = clock::now_ms();
        health.subscribed();
        health.heard(before);
        assert!(!health.hears(), "the marker may have gone out before");
        let asked = health.subscribed_at.load(Ordering::Relaxed);
        health.heard(asked + 1);
        assert!(health.hears());
        // A new connection has none of them yet.
        let asked = asked + 2;
        health.subscribed_at.store(asked, Ordering::Relaxed);
        health.heard(asked);
        assert!(!health.hears());
    }
}
