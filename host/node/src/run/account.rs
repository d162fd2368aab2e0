//! An account of NATS, as this process uses it: its connections, and the threads whose messages
//! go out on them. The tenants of one account share all of it, but isolated ones share another one.

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
use crate::link::hello::Doubts;
use crate::link::progress::{DeliveryProgress, Sources};
use crate::link::publisher::Publisher;
use crate::link::pulse::Pulse;
use crate::ops::http::AccountFigures;
use crate::pool::{OutboxSettings, Pool, Priority};
use crate::tasks::Tasks;

/// How long a client may take to note that it is to close.
const CLOSE: Duration = Duration::from_millis(500);

/// Of several tenants, one shard may have a part of the outbox in so many, and no fewer bytes: what
/// others have to say waits behind it.
const SHARD_PART: usize = 16;
const SHARD_BYTES_MIN: usize = 262_144;

/// An account. Each part of it is made when it is first needed.
pub(super) struct Account {
    pub(super) access: BrokerAccess,
    pub(super) broker: Arc<BrokerHealth>,
    pub(super) doubts: Doubts,
    /// How many threads its shards live on.
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

/// Which tenant has which subjects, by their prefix. What runs goes before what a file says: one
/// may stand there that can't be had yet.
#[derive(Clone, Default)]
struct Claims {
    by_prefix: Arc<Mutex<BTreeMap<Option<String>, String>>>,
    freed: Arc<Notify>,
}

/// A tenant's right to its subjects, for as long as this is there.
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

    /// Has a tenant have its subjects.
    ///
    /// # Errors
    /// With the tenant that has them.
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

/// The connections by which its tenants are heard.
pub(super) struct Link {
    pub(super) connection: Connection,
    /// How often it has been connected. Nothing has been read of it.
    pub(super) connects: watch::Receiver<u64>,
    /// Up to when everything has been heard.
    pub(super) heard: watch::Receiver<u64>,
    pub(super) sources: Sources,
    /// What each thread hands to the broker's client.
    handed: Vec<Arc<DeliveryProgress>>,
}

impl Account {
    /// The account that a configuration says, with so many threads. Nothing is connected yet.
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
            doubts: Doubts::start(Arc::clone(&broker), &tasks),
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

    /// The same account for isolated tenants: with connections of its own, since what one reads
    /// and writes on them keeps others waiting, and threads of its own, which are of lower priority.
    pub(super) fn isolated(&self, config: &Config, tasks: &Tasks) -> Self {
        Self {
            priority: Priority::Lower,
            claims: self.claims.clone(),
            ..Self::new(config, self.threads, tasks)
        }
    }

    /// As metrics tell of it, for tenants that share it.
    pub(super) fn figures(&self) -> AccountFigures {
        let pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        AccountFigures {
            broker: Arc::clone(&self.broker),
            pool: pool.clone(),
            is_shared: true,
        }
    }

    /// Whether it is one that a tenant of this configuration can have for its own.
    pub(super) fn is_for(&self, config: &Config) -> bool {
        let is_isolated = self.priority == Priority::Lower;
        self.access.is_of(config) && is_isolated == config.tenant.isolated
    }

    /// Has a tenant have the subjects of its prefix, once no other has them. `wait`: is told of
    /// each that does.
    pub(super) async fn claim(&self, config: &Config, name: &str, wait: impl Fn(String)) -> Claim {
        let prefix = &config.tenant.prefix;
        loop {
            let mut freed = pin!(self.claims.freed.notified());
            // Before it is looked who has them.
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

    /// Closes the connections, and has none be made any more.
    pub(super) async fn close(&self) {
        self.access.close();
        self.tasks.end();
        let admin = self.admin.get().map(|admin| admin.client.clone());
        let main = self.link.get().map(|link| link.connection.client().clone());
        for client in admin.into_iter().chain(main) {
            // One that isn't connected may have no room for it, and is not connected again.
            let _ = timeout(CLOSE, client.drain()).await;
        }
    }

    /// The connections by which its tenants are heard. A broker that isn't there is waited for
    /// elsewhere.
    ///
    /// # Errors
    /// If what it takes to connect can't be read.
    pub(super) async fn link(&self) -> anyhow::Result<&Link> {
        self.link.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> anyhow::Result<Link> {
        let (changes, connects) = watch::channel(0);
        let connection = self.access.main(&self.broker, changes).await?;
        // Also while nothing is served yet: nodes need some of them to find each other.
        let permissions = broker::follow_permissions(connection.clone(), Arc::clone(&self.broker));
        self.tasks.spawn("rights", permissions);
        let mut sources = Sources::new(presence_config::pulse_ms(self.timeout_ms));
        let handed = (0..self.threads).map(|_| sources.add()).collect();
        let (health, known) = (Arc::clone(&self.broker), sources.clone());
        let heard = Pulse::start(&self.access, &connection, health, known, &self.tasks).await?;
        Ok(Link {
            connection,
            connects,
            heard,
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

    /// The threads.
    ///
    /// # Errors
    /// As [`Self::link`], and if the system has no thread to give.
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
