//! An account of NATS, as this process uses it: its connections, and the threads whose messages
//! go out on them. The tenants of one account share all of it.

use std::sync::{Arc, Mutex, PoisonError};

use presence_config::Config;
use tokio::sync::{OnceCell, watch};

use crate::link::admin::Admin;
use crate::link::broker::{self, Access, Health};
use crate::link::connection::Connection;
use crate::link::progress::{DeliveryProgress, Sources};
use crate::link::publisher::Publisher;
use crate::link::pulse::Pulse;
use crate::pool::{OutboxSettings, Pool};
use crate::tasks::Tasks;

/// An account. Each part of it is made when it is first needed.
pub(super) struct Account {
    pub(super) access: Access,
    pub(super) broker: Arc<Health>,
    /// How many threads its shards live on.
    threads: usize,
    outbox: OutboxSettings,
    timeout_ms: u64,
    tasks: Tasks,
    link: OnceCell<Link>,
    admin: OnceCell<Admin>,
    pool: Mutex<Option<Pool>>,
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
        let broker = Health::new(config);
        if config.tenants.is_some() {
            broker.drops.read_by_several();
        }
        Self {
            access: Access::new(config),
            broker: Arc::new(broker),
            threads,
            outbox: OutboxSettings {
                bytes_max: config.nats.journal_bytes / threads.max(1),
                beacon_ms: config.nats.beacon_ms,
            },
            timeout_ms: config.tracker.timeout_ms,
            tasks: tasks.group(),
            link: OnceCell::new(),
            admin: OnceCell::new(),
            pool: Mutex::default(),
        }
    }

    /// Ends what keeps the connections up. They close with the last that uses them.
    pub(super) fn close(&self) {
        self.tasks.end();
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
        let rights = broker::follow_rights(connection.clone(), Arc::clone(&self.broker));
        self.tasks.spawn("rights", rights);
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
        let connect = || Admin::connect(&self.access);
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
        let carrier = Publisher::new(link.connection.clone());
        let started = Pool::start(&carrier, link.handed.clone(), self.outbox, &self.tasks)?;
        Ok(pool.insert(started).clone())
    }
}
