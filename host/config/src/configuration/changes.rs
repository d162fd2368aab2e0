//! The differences between two configurations, and when each change takes effect.

use super::{Auth, Config, Engine, Nats, Plugins};

/// A section that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The section's name, or that of a key in it.
    pub section: &'static str,
    /// When the change takes effect.
    pub effect: Effect,
}

impl Change {
    /// Whether it changes something that the tenants of a process share.
    pub fn affects_process(&self) -> bool {
        let of_process = [
            "node",
            "nats",
            "plugins.cache",
            "plugins.compilers",
            "engine.workers",
            "http",
            "telemetry",
            "log",
        ];
        of_process.contains(&self.section)
    }
}

/// When a change takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// At once, in the running node.
    Live,
    /// At the next start of the node.
    Restart,
}

/// The sections and keys whose changes take effect at the next start only.
const RESTART: [&str; 20] = [
    "node",
    "nats",
    "tenant",
    "state",
    "fleet",
    "input",
    "plugins.source",
    "plugins.cache",
    "plugins.compilers",
    "engine.workers",
    "engine.worker_queue",
    "engine.worker_queue_bytes",
    "engine.question_queue",
    "engine.question_bytes_max",
    "directory.source",
    "directory.kv",
    "directory.request",
    "http",
    "telemetry",
    "log",
];

/// The keys in these sections whose changes take effect at once: those of the login.
const LIVE: [&str; 5] = [
    "nats.creds",
    "nats.nkey",
    "nats.user",
    "nats.password",
    "nats.token",
];

/// When a change of a key, such as `nats.tls.ca`, takes effect.
pub fn effect_of(key: &str) -> Effect {
    let is_in = |section: &&str| {
        let rest = key.strip_prefix(section);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    match RESTART.iter().any(is_in) && !LIVE.contains(&key) {
        true => Effect::Restart,
        false => Effect::Live,
    }
}

impl Nats {
    /// The login to use on a running connection. It is this one if the servers are the same as
    /// those of the connection. A login is never shown to other servers.
    pub fn login_for(&self, running: &Self) -> Auth {
        match self.url == running.url {
            true => self.auth.clone(),
            false => running.auth.clone(),
        }
    }
}

impl Config {
    /// Takes from the running configuration all values whose changes take effect at the next start
    /// only.
    pub fn keep_until_restart(&mut self, running: &Self) {
        let running = running.clone();
        self.node = running.node;
        self.nats = Nats {
            auth: self.nats.login_for(&running.nats),
            ..running.nats
        };
        self.tenant = running.tenant;
        self.state = running.state;
        self.fleet = running.fleet;
        self.input = running.input;
        self.plugins.source = running.plugins.source;
        self.plugins.cache = running.plugins.cache;
        self.plugins.compilers = running.plugins.compilers;
        if self.follows_store() {
            // The pipeline in the file has no effect.
            self.pipeline = running.pipeline;
        }
        self.engine.workers = running.engine.workers;
        self.engine.queues = running.engine.queues;
        self.http = running.http;
        self.telemetry = running.telemetry;
        self.log = running.log;
        if !self.directory.can_replace(&running.directory) {
            self.directory = running.directory;
        }
    }

    /// Takes from the running configuration what belongs to the process, for a tenant that shares
    /// the process with others. `own_account`: whether the tenant has a connection of its own.
    pub fn keep_process_values(&mut self, running: &Self, own_account: bool) {
        self.node = running.node.clone();
        self.http = running.http.clone();
        self.telemetry = running.telemetry.clone();
        self.log = running.log.clone();
        self.plugins.cache.clone_from(&running.plugins.cache);
        self.plugins.compilers = running.plugins.compilers;
        self.engine.workers = running.engine.workers;
        if !own_account {
            self.nats = Nats {
                auth: self.nats.login_for(&running.nats),
                reply_prefixes: self.nats.reply_prefixes.clone(),
                ..running.nats.clone()
            };
        }
    }

    /// The sections in which `new` differs from this configuration, in the
    /// order of the file.
    pub fn changes(&self, new: &Self) -> Vec<Change> {
        use Effect::{Live, Restart};
        // Threads and their queues are made once, and limits apply to each call.
        let engine_live = Engine {
            workers: new.engine.workers,
            queues: new.engine.queues.clone(),
            ..self.engine.clone()
        } != new.engine;
        let plugins_live = Plugins {
            source: new.plugins.source,
            cache: new.plugins.cache.clone(),
            compilers: new.plugins.compilers,
            ..self.plugins.clone()
        } != new.plugins;
        // The login is asked for at each connection.
        let nats_restart = Nats {
            auth: new.nats.auth.clone(),
            ..self.nats.clone()
        } != new.nats;
        [
            ("node", Restart, self.node != new.node),
            ("nats", Restart, nats_restart),
            ("nats login", Live, self.nats.auth != new.nats.auth),
            ("tenant", Restart, self.tenant != new.tenant),
            ("tracker", Live, self.tracker != new.tracker),
            ("state", Restart, self.state != new.state),
            ("fleet", Restart, self.fleet != new.fleet),
            ("input", Restart, self.input != new.input),
            (
                "directory",
                if self.directory.can_replace(&new.directory) {
                    Live
                } else {
                    Restart
                },
                self.directory != new.directory,
            ),
            ("plugins", Live, plugins_live),
            (
                "plugins.source",
                Restart,
                self.plugins.source != new.plugins.source,
            ),
            (
                "plugins.cache",
                Restart,
                self.plugins.cache != new.plugins.cache,
            ),
            (
                "plugins.compilers",
                Restart,
                self.plugins.compilers != new.plugins.compilers,
            ),
            ("pipeline", Live, self.pipeline != new.pipeline),
            ("engine", Live, engine_live),
            (
                "engine.workers",
                Restart,
                self.engine.workers != new.engine.workers,
            ),
            (
                "engine queues",
                Restart,
                self.engine.queues != new.engine.queues,
            ),
            ("limits", Live, self.limits != new.limits),
            ("correction", Live, self.correction != new.correction),
            ("query", Live, self.query != new.query),
            ("explain", Live, self.explain != new.explain),
            ("inbox", Live, self.inbox != new.inbox),
            ("status", Live, self.status != new.status),
            ("dead_letters", Live, self.dead_letters != new.dead_letters),
            ("http", Restart, self.http != new.http),
            ("telemetry", Restart, self.telemetry != new.telemetry),
            ("log", Restart, self.log != new.log),
        ]
        .into_iter()
        .filter(|(_, _, differs)| *differs)
        .map(|(section, effect, _)| Change { section, effect })
        .collect()
    }
}
