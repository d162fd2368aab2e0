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

/// How often the client asks a broker that says nothing for a sign of life, in
/// milliseconds: four times within a time-out, but for very short or long ones.
const PING_MS_MIN: u64 = 500;
const PING_MS_MAX: u64 = 30_000;

/// How long the client waits for its next attempt to connect, at most: what viewers
/// believe is to be true again within seconds of the broker's return.
const RECONNECT_MS_MAX: u64 = 2_000;

/// What the client's error says where a server's name could not be looked up.
const UNRESOLVED: &str = "DNS error";

/// How often is tried whether what was forbidden still is.
const RIGHTS_RETRY: Duration = Duration::from_secs(2);

/// How many messages the client holds that it hasn't written yet. They go out on a new
/// connection before those that are published again, so they are few; no fewer, since
/// shards would wait for room.
const CLIENT_QUEUE: usize = 1_024;

/// How the broker is reached, as a configuration says.
#[derive(Clone, Debug)]
pub(crate) struct BrokerAccess {
    nats: Nats,
    timeout_ms: u64,
    node: String,
    /// The login of all connections, which may be replaced.
    pub(crate) login: Login,
    /// Whether nobody uses it any more: the client itself would try to connect for ever.
    is_closed: Arc<AtomicBool>,
    /// In which what befalls the connections is logged.
    span: Span,
}

impl BrokerAccess {
    /// By a configuration.
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

    /// Whether a configuration says the same of the connection, be it with another secret.
    pub(crate) fn is_of(&self, config: &Config) -> bool {
        let nats = Nats {
            auth: self.nats.auth.clone(),
            ..config.nats.clone()
        };
        nats == self.nats && self.nats.auth.who() == config.nats.auth.who()
    }

    /// Uses what a configuration says to log in with, from the next connection on, if it is for
    /// these servers.
    pub(crate) fn log_in_by(&self, config: &Config) {
        if config.nats.url == self.nats.url {
            self.login.replace(config.nats.auth.clone());
        }
    }

    /// Has no connection be made any more.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// Waits for ever once no connection is to be made any more.
    fn unless_closed(&self) -> impl Future<Output = ()> + Send + use<> {
        let is_closed = Arc::clone(&self.is_closed);
        async move {
            if is_closed.load(Ordering::Relaxed) {
                std::future::pending().await
            }
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
        let servers = self.nats.url.iter().cloned().map(ServerAddr::from_url);
        let servers: Vec<_> = servers.collect::<Result<_, _>>()?;
        match options.connect(servers.clone()).await {
            Ok(client) => Ok(client),
            // Not as the source of another error: it says its own source itself.
            Err(error) => {
                let why = cause::of_attempt(&error, &servers).await;
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
        let access = self.clone();
        let options = self
            .options()?
            .name(format!("presence {}{purpose}", self.node))
            .retry_on_initial_connect()
            // Called before each attempt. The client chooses the server by itself.
            .reconnect_to_server_callback(move |_, _| {
                let is_wanted = access.unless_closed();
                async move {
                    is_wanted.await;
                    None
                }
            })
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
    /// back-off; `connects` counts how often there has been a connection.
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
            // Called before each attempt: the client tells only here why earlier ones failed.
            .reconnect_to_server_callback(move |pool, _| {
                let (health, servers) = (Arc::clone(&known), tried.clone());
                let (access, tried_by) = (access.clone(), Arc::clone(&tried_by));
                let is_wanted = access.unless_closed();
                let span = access.span.clone();
                let telling = async move {
                    is_wanted.await;
                    let unresolved = health.is_unresolved.swap(false, Ordering::Relaxed);
                    // What is known so far is of the attempt before this one.
                    let now = access.login.version();
                    let before = tried_by.swap(now, Ordering::Relaxed);
                    if let Some(Cause { why, is_login }) = cause::of(pool, unresolved).await {
                        let refused = is_login.then(|| access.login.refused(before));
                        health.cannot_reach(&servers, why, refused);
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

/// Tries for as long as the node runs whether what was forbidden is permitted again.
pub(crate) async fn follow_permissions(connection: Connection, health: Arc<BrokerHealth>) {
    let client = connection.client();
    loop {
        tokio::time::sleep(RIGHTS_RETRY).await;
        if !health.connected.load(Ordering::Relaxed) {
            continue;
        }
        let mut is_deaf = false;
        for permission in health.permissions.retry(client).await {
            tracing::info!("NATS permits this node again {permission}");
            is_deaf |= permission.operation == Operation::Subscribe;
        }
        if is_deaf {
            // The broker has forgotten a subscription that it refused.
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
            health.reached();
            health.permissions.connected();
            health.connects.fetch_add(1, Ordering::Relaxed);
            // A silence begins at the first connection, at the earliest.
            let relaxed = Ordering::Relaxed;
            let now = clock::now_ms();
            // The client asks for its subscriptions again from here on.
            health.connected();
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
                // It isn't noted with the server, as other causes are.
                health.is_unresolved.store(true, Ordering::Relaxed);
            }
        }
        Event::LameDuckMode | Event::Draining | Event::Closed => tracing::info!(%event, "NATS"),
    }
}
