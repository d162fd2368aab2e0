//! The connection to the broker: it is kept up for as long as the node runs.

mod cause;
mod health;
mod permissions;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::anyhow;
use async_nats::{Client, ConnectOptions, Event, ServerAddr};
use presence_config::{Config, Nats};
use tokio::sync::watch;
use tracing::{Instrument as _, Span};

use crate::clock;
use crate::link::connection::Connection;
use crate::link::login::Login;

use cause::Cause;
pub(crate) use health::BrokerHealth;
pub(crate) use permissions::{Operation, Permission, Permissions};

/// Limits on the client's ping interval, in milliseconds. Between them, it is a quarter of the
/// timeout.
const PING_MS_MIN: u64 = 500;
const PING_MS_MAX: u64 = 30_000;

/// The longest delay between two attempts to connect: viewers must see the true state within
/// seconds of the broker's return.
const RECONNECT_MS_MAX: u64 = 2_000;

/// The end of the client's error if a server's name could not be looked up.
const UNRESOLVED: &str = "DNS error";

/// How often forbidden permissions are tested again.
const RIGHTS_RETRY: Duration = Duration::from_secs(2);

/// How many unwritten messages the client holds. On a new connection, they go out before the
/// journal's messages are published again, so there are few. With fewer, shards would wait for
/// room.
const CLIENT_QUEUE: usize = 1_024;

/// How to reach the broker, from a configuration.
#[derive(Clone, Debug)]
pub(crate) struct BrokerAccess {
    nats: Nats,
    timeout_ms: u64,
    node: String,
    /// The login of all connections. It can be replaced.
    pub(crate) login: Login,
    /// Whether nobody uses it any more. The client itself would go on trying to connect.
    is_closed: Arc<AtomicBool>,
    /// The span in which events of the connections are logged.
    span: Span,
}

impl BrokerAccess {
    /// From a configuration.
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            nats: config.nats.clone(),
            timeout_ms: config.tracker.timeout_ms,
            node: config.node.name.clone(),
            login: Login::new(config.nats.auth.clone()),
            is_closed: Arc::default(),
            span: Span::current(),
        }
    }

    /// Whether a configuration has the same connection settings, apart from a secret.
    pub(crate) fn is_of(&self, config: &Config) -> bool {
        let nats = Nats {
            auth: self.nats.auth.clone(),
            ..config.nats.clone()
        };
        nats == self.nats && self.nats.auth.who() == config.nats.auth.who()
    }

    /// Uses the login of a configuration from the next connection on, if the configuration has the
    /// same servers.
    pub(crate) fn log_in_by(&self, config: &Config) {
        if config.nats.url == self.nats.url {
            self.login.replace(config.nats.auth.clone());
        }
    }

    /// Stops all further attempts to connect.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// Returns at once, or never after [`Self::close`].
    fn unless_closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let is_closed = Arc::clone(&self.is_closed);
        async move {
            if is_closed.load(Ordering::Relaxed) {
                std::future::pending().await
            }
        }
    }

    /// The servers, as text.
    pub(crate) fn servers(&self) -> String {
        self.nats.servers()
    }

    /// The client's options: login, TLS, timeout of an attempt, queue of a subscription.
    ///
    /// # Errors
    /// If a named file can't be read, or has the wrong content.
    pub(crate) fn options(&self) -> anyhow::Result<ConnectOptions> {
        // Checked first, because the client would only report it at each attempt to connect.
        if let Some(problem) = self.nats.unreadable_files().into_iter().next() {
            return Err(problem);
        }
        let mut options = self
            .login
            .options()?
            .connection_timeout(Duration::from_millis(self.nats.connect_timeout_ms))
            .subscription_capacity(self.nats.intake_queue)
            // The first server that answers is used.
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

    /// Connects with these options.
    ///
    /// # Errors
    /// If no server is reached, or none takes the login.
    pub(crate) async fn connect(&self, options: ConnectOptions) -> anyhow::Result<Client> {
        let servers = self.nats.url.iter().cloned().map(ServerAddr::from_url);
        let servers: Vec<_> = servers.collect::<Result<_, _>>()?;
        match options.connect(servers.clone()).await {
            Ok(client) => Ok(client),
            // The client's error isn't kept as a source: its text already contains its own source.
            Err(error) => {
                let why = cause::of_attempt(&error, &servers).await;
                Err(anyhow!(
                    "can't connect to NATS at {}: {why}",
                    self.servers()
                ))
            }
        }
    }

    /// Options for a connection that lasts as long as the node. The client waits for a broker that
    /// isn't there, and gives up a connection that is silent for a timeout.
    ///
    /// # Errors
    /// As [`Self::options`].
    pub(crate) fn lasting(&self, purpose: &str) -> anyhow::Result<ConnectOptions> {
        let access = self.clone();
        let options = self
            .options()?
            .name(format!("presence {}{purpose}", self.node))
            .retry_on_initial_connect()
            // This is called before each attempt. With `None`, the client chooses the server
            // itself.
            .reconnect_to_server_callback(move |_, _| {
                let is_wanted = access.unless_closed();
                async move {
                    is_wanted.await;
                    None
                }
            })
            // The client gives up the connection at the third ping without an answer.
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

    /// Makes the node's main connection. The client waits for a broker that isn't there yet, with
    /// back-off. `connects` counts the connections made.
    ///
    /// # Errors
    /// As [`Self::options`].
    pub(crate) async fn main(
        &self,
        health: &Arc<BrokerHealth>,
        connects: watch::Sender<u64>,
    ) -> anyhow::Result<Connection> {
        let (health, servers) = (Arc::clone(health), self.servers());
        let (known, tried) = (Arc::clone(&health), servers.clone());
        let (access, span) = (self.clone(), self.span.clone());
        let tried_by = Arc::new(AtomicU64::new(self.login.version()));
        let options = self
            .lasting("")?
            .no_echo()
            // This is called before each attempt. Only here does the client tell why earlier
            // attempts failed.
            .reconnect_to_server_callback(move |pool, _| {
                let (health, servers) = (Arc::clone(&known), tried.clone());
                let (access, tried_by) = (access.clone(), Arc::clone(&tried_by));
                let is_wanted = access.unless_closed();
                let span = access.span.clone();
                let telling = async move {
                    is_wanted.await;
                    let unresolved = health.is_unresolved.swap(false, Ordering::Relaxed);
                    // The errors known now are those of the previous attempt, which used the login
                    // of that time.
                    let now = access.login.version();
                    let before = tried_by.swap(now, Ordering::Relaxed);
                    if let Some(Cause { why, is_login }) = cause::of(pool, unresolved).await {
                        let refused = is_login.then(|| access.login.refused(before));
                        health.note_unreachable(&servers, why, refused);
                    }
                    None
                };
                telling.instrument(span)
            })
            .client_capacity(CLIENT_QUEUE)
            .event_callback(move |event| {
                span.in_scope(|| observe(&event, &servers, &health, &connects));
                std::future::ready(())
            });
        Ok(Connection::new(self.connect(options).await?))
    }
}

/// Tests forbidden permissions again and again, for as long as the node runs.
pub(crate) async fn follow_permissions(connection: Connection, health: Arc<BrokerHealth>) {
    let client = connection.client();
    loop {
        tokio::time::sleep(RIGHTS_RETRY).await;
        if !health.connected.load(Ordering::Relaxed) {
            continue;
        }
        let mut subscribe_forbidden = false;
        for permission in health.permissions.retry(client).await {
            tracing::info!("NATS permits this node again {permission}");
            subscribe_forbidden |= permission.operation == Operation::Subscribe;
        }
        if subscribe_forbidden {
            // The broker has dropped the subscription that it refused, so the client must reconnect
            // to subscribe again.
            tracing::info!("reconnecting, to renew refused subscriptions");
            // The client is gone only when the node ends.
            let _ = client.force_reconnect().await;
        }
    }
}

fn observe(event: &Event, servers: &str, health: &BrokerHealth, connects: &watch::Sender<u64>) {
    match event {
        Event::Connected => {
            health.connected.store(true, Ordering::Relaxed);
            health.note_reached();
            health.permissions.note_connected();
            health.connects.fetch_add(1, Ordering::Relaxed);
            // Silence is counted from the first connection on.
            let relaxed = Ordering::Relaxed;
            let now = clock::now_ms();
            // From here on, the client sends its subscriptions again.
            health.note_connected();
            let _ = health.heard_at.compare_exchange(0, now, relaxed, relaxed);
            tracing::info!(servers, "connected to NATS");
            connects.send_modify(|connects| *connects += 1);
        }
        Event::Disconnected => {
            health.connected.store(false, Ordering::Relaxed);
            tracing::warn!("lost the connection to NATS; reconnecting");
        }
        Event::SlowConsumer(number) => health.drops.note_report(*number),
        Event::ServerError(error) => health.complaint(&error.to_string()),
        Event::ClientError(error) => {
            health.errors.fetch_add(1, Ordering::Relaxed);
            if health.connected.load(Ordering::Relaxed) {
                tracing::warn!(%error, "NATS client error");
            } else if error.to_string().ends_with(UNRESOLVED) {
                // Unlike other causes, this one isn't kept with the server.
                health.is_unresolved.store(true, Ordering::Relaxed);
            }
        }
        Event::LameDuckMode | Event::Draining | Event::Closed => tracing::info!(%event, "NATS"),
    }
}
