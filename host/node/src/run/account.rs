//! A NATS account as this process uses it: its connections, and the threads that publish on them.
//! The tenants of an account share all of it. Isolated tenants share a second one.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use presence_config::Config;
use presence_config::subjects::Subjects;
use tokio::sync::{Notify, OnceCell, watch};
use tokio::time::timeout;

use crate::link::admin::Admin;
use crate::link::broker::{self, BrokerAccess, BrokerHealth};
use crate::link::connection::Connection;
use crate::link::hello::RecheckSignal;
use crate::link::progress::{DeliveryProgress, Sources};
use crate::link::publisher::Publisher;
use crate::link::pulse::Pulse;
use crate::ops::http::AccountFigures;
use crate::pool::{OutboxSettings, Pool, Priority};
use crate::tasks::Tasks;

/// How long a client may take to accept the order to close.
const CLOSE: Duration = Duration::from_millis(500);

/// With several tenants, a shard may have one part in `SHARD_PART` of the outbox, but at least
/// `SHARD_BYTES_MIN`: the messages of other shards wait behind its own.
const SHARD_PART: usize = 16;
const SHARD_BYTES_MIN: usize = 262_144;

/// An account. Each part of it is created when it is first needed.
pub(super) struct Account {
    pub(super) access: BrokerAccess,
    pub(super) broker: Arc<BrokerHealth>,
    pub(super) rechecks: RecheckSignal,
    /// How many threads its shards run on.
    threads: usize,
    outbox: OutboxSettings,
    timeout_ms: u64,
    tasks: Tasks,
    link: OnceCell<Link>,
    admin: OnceCell<Admin>,
    pool: Mutex<Option<Pool>>,
    pub(super) priority: Priority,
    claims: Claims,
}

/// Which tenant holds which subjects, by prefix. The tenant that runs holds them, whatever the file
/// says: another may be configured with them that has to wait.
#[derive(Clone, Default)]
struct Claims {
    by_prefix: Arc<Mutex<BTreeMap<Option<String>, String>>>,
    freed: Arc<Notify>,
}

/// A tenant's right to its subjects. Dropping it frees them.
pub(super) struct Claim {
    claims: Claims,
    prefix: Option<String>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.by_prefix().remove(&self.prefix);
        self.claims.freed.notify_waiters();
    }
}

impl Claims {
    fn by_prefix(&self) -> MutexGuard<'_, BTreeMap<Option<String>, String>> {
        self.by_prefix
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a tenant its subjects, if they are free.
    ///
    /// # Errors
    /// With the name of the tenant that holds them.
    fn try_claim(&self, prefix: &Option<String>, name: &str) -> Result<Claim, String> {
        let mut claims = self.by_prefix();
        if let Some(holder) = claims.get(prefix) {
            return Err(holder.clone());
        }
        claims.insert(prefix.clone(), name.to_owned());
        Ok(Claim {
            claims: self.clone(),
            prefix: prefix.clone(),
        })
    }
}

/// The connections for the traffic of the account's tenants.
pub(super) struct Link {
    pub(super) connection: Connection,
    /// Counts the connects. This receiver has never been read, so that each copy sees the first
    /// change.
    pub(super) connects: watch::Receiver<u64>,
    /// The time up to which every message has been received.
    pub(super) received_up_to: watch::Receiver<u64>,
    pub(super) sources: Sources,
    /// For each thread, the progress of what it has handed to the broker's client.
    handed: Vec<Arc<DeliveryProgress>>,
}

impl Account {
    /// The configured account, for this many threads. Nothing is connected yet.
    pub(super) fn new(config: &Config, threads: usize, tasks: &Tasks) -> Self {
        let broker = BrokerHealth::default();
        if config.tenants.is_some() {
            broker.drops.read_by_several();
        }
        let (broker, tasks) = (Arc::new(broker), tasks.group());
        let bytes_max = config.nats.journal_bytes / threads.max(1);
        let is_shared = config.tenants.is_some();
        let shard_bytes_max = is_shared.then(|| (bytes_max / SHARD_PART).max(SHARD_BYTES_MIN));
        Self {
            access: BrokerAccess::new(config),
            rechecks: RecheckSignal::start(Arc::clone(&broker), &tasks),
            broker,
            threads,
            outbox: OutboxSettings {
                bytes_max,
                shard_bytes_max,
                beacon_ms: config.nats.beacon_ms,
            },
            timeout_ms: config.tracker.timeout_ms,
            tasks,
            link: OnceCell::new(),
            admin: OnceCell::new(),
            pool: Mutex::default(),
            priority: match config.tenant.isolated {
                true => Priority::Lower,
                false => Priority::Usual,
            },
            claims: Claims::default(),
        }
    }

    /// The same account for isolated tenants. It has connections of its own, since the traffic on a
    /// connection delays everyone on it, and threads of its own with a lower priority.
    pub(super) fn isolated(&self, config: &Config, tasks: &Tasks) -> Self {
        Self {
            priority: Priority::Lower,
            claims: self.claims.clone(),
            ..Self::new(config, self.threads, tasks)
        }
    }

    /// The account's metrics, for tenants that share it.
    pub(super) fn figures(&self) -> AccountFigures {
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        AccountFigures {
            broker: Arc::clone(&self.broker),
            pool: pool.clone(),
            is_shared: true,
        }
    }

    /// Whether a tenant with this configuration can have this account as its own.
    pub(super) fn is_for(&self, config: &Config) -> bool {
        let is_isolated = self.priority == Priority::Lower;
        self.access.is_of(config) && is_isolated == config.tenant.isolated
    }

    /// Gives a tenant the subjects of its prefix, once no other tenant holds them. `wait` is called
    /// with the reason for each wait.
    pub(super) async fn claim(&self, config: &Config, name: &str, wait: impl Fn(String)) -> Claim {
        let prefix = &config.tenant.prefix;
        loop {
            let mut freed = pin!(self.claims.freed.notified());
            // Registered before the check, so that no notification is missed.
            freed.as_mut().enable();
            match self.claims.try_claim(prefix, name) {
                Ok(claim) => return claim,
                Err(holder) => wait(format!(
                    "the tenant `{holder}` still has the subjects of `{}`: this one begins when \
                     that has ended, or has another prefix",
                    Subjects::new(prefix.as_deref()).of("presence.>"),
                )),
            }
            freed.await;
        }
    }

    /// Closes the connections, and prevents new ones.
    pub(super) async fn close(&self) {
        self.access.close();
        self.tasks.end();
        let admin = self.admin.get().map(|admin| admin.client.clone());
        let main = self.link.get().map(|link| link.connection.client().clone());
        for client in admin.into_iter().chain(main) {
            // A client that isn't connected may have no room for the order. It doesn't connect
            // again.
            let _ = timeout(CLOSE, client.drain()).await;
        }
    }

    /// The connections for the traffic of the account's tenants. It doesn't wait for a broker that
    /// is away.
    ///
    /// # Errors
    /// If the credentials can't be read.
    pub(super) async fn link(&self) -> anyhow::Result<&Link> {
        self.link.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> anyhow::Result<Link> {
        let (changes, connects) = watch::channel(0);
        let connection = self.access.main(&self.broker, changes).await?;
        // Begun before anything is served: nodes need some permissions to find each other.
        let permissions = broker::follow_permissions(connection.clone(), Arc::clone(&self.broker));
        self.tasks.spawn("rights", permissions);
        let mut sources = Sources::new(presence_config::pulse_ms(self.timeout_ms));
        let handed = (0..self.threads).map(|_| sources.add()).collect();
        let (health, known) = (Arc::clone(&self.broker), sources.clone());
        let received_up_to =
            Pulse::start(&self.access, &connection, health, known, &self.tasks).await?;
        Ok(Link {
            connection,
            connects,
            received_up_to,
            sources,
            handed,
        })
    }

    /// The connection for operators' commands and the plugin store.
    ///
    /// # Errors
    /// As [`Self::link`].
    pub(super) async fn admin(&self) -> anyhow::Result<&Admin> {
        let connect = async || {
            let admin = Admin::connect(&self.access, &self.tasks).await?;
            self.tasks.spawn("admin-again", admin.clone().renew());
            Ok(admin)
        };
        self.admin.get_or_try_init(connect).await
    }

    /// The threads of the account, which are started by the first call.
    ///
    /// # Errors
    /// As [`Self::link`], and if the system refuses a thread.
    pub(super) async fn pool(&self) -> anyhow::Result<Pool> {
        let link = self.link().await?;
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = &*pool {
            return Ok(pool.clone());
        }
        let transport = Publisher::new(link.connection.clone());
        let started = Pool::start(
            &transport,
            link.handed.clone(),
            self.outbox,
            self.priority,
            &self.tasks,
        )?;
        Ok(pool.insert(started).clone())
    }
}
