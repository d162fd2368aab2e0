//! A real cluster of three nats-servers with JetStream. All routes between the servers lead through
//! proxies. So do connections of those clients that ask for it. Each link can fail by itself.
//!
//! No server advertises addresses to others or to clients, so that nothing bypasses a proxy.

use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::jetstream;
use futures_util::future::try_join_all;

use crate::client::Client;
use crate::nats::{NatsServer, Options};
use crate::proxy::Proxy;
use crate::{tools, wait};

/// How many servers there are. With one less, there is still a majority.
pub const SERVERS: usize = 3;

/// Configuration that the servers have in common. A connection on which nothing answers, such as
/// one to a stopped process or on a route that hangs, is closed after one to two seconds.
const COMMON: &str = "ping_interval: \"500ms\"\nping_max: 2\n";

/// The cluster. Its servers are stopped when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    /// The servers: each can be stopped, killed, signalled and resumed.
    pub servers: Vec<NatsServer>,
    routes: Vec<Route>,
    /// The address that servers advertise to each other. It refuses all connections.
    _nowhere: Proxy,
}

/// The two links between two servers: each of them connects to the other.
#[derive(Debug)]
struct Route {
    ends: [usize; 2],
    proxies: [Proxy; 2],
}

impl Cluster {
    /// A bucket on all three servers.
    pub const BUCKET: &'static str = "cluster";

    /// Starts a cluster, and waits until it stores data on all servers.
    ///
    /// # Errors
    /// When a server doesn't start, or the servers don't form a cluster.
    pub async fn start() -> Result<Self> {
        Self::start_with("").await
    }

    /// As [`Self::start`], with further lines of each server's configuration.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(further: &str) -> Result<Self> {
        let nowhere = Proxy::start(0).await?;
        nowhere.cut();
        let ports = (0..SERVERS).map(|_| tools::free_port());
        let ports = ports.collect::<Result<Vec<_>>>()?;
        let mut routes = Vec::new();
        for (from, to) in [(0, 1), (0, 2), (1, 2)] {
            let [near, far] = [from, to].map(|end| ports.get(end).copied().unwrap_or_default());
            routes.push(Route {
                ends: [from, to],
                proxies: [Proxy::start(far).await?, Proxy::start(near).await?],
            });
        }
        let starting = ports.iter().enumerate().map(|(number, port)| {
            let addresses = routes.iter().filter_map(|route| route.from(number));
            let addresses = addresses.map(|proxy| proxy.port()).chain([*port]);
            let addresses = addresses.map(|port| format!("\"nats-route://127.0.0.1:{port}\""));
            let addresses = addresses.collect::<Vec<_>>().join(", ");
            let nowhere = nowhere.port();
            NatsServer::start_with(Options {
                config: format!(
                    "{COMMON}{further}\ncluster {{\n  name: \"test\"\n  listen: \"127.0.0.1:{port}\"\n  \
                     advertise: \"127.0.0.1:{nowhere}\"\n  no_advertise: true\n  \
                     routes: [{addresses}]\n}}"
                ),
                ..Options::default()
            })
        });
        let cluster = Self {
            servers: try_join_all(starting).await?,
            routes,
            _nowhere: nowhere,
        };
        cluster.wait_until_storing().await?;
        Ok(cluster)
    }

    /// The address of a server, without a proxy.
    #[must_use]
    pub fn url(&self, server: usize) -> String {
        self.servers
            .get(server)
            .map(NatsServer::url)
            .unwrap_or_default()
    }

    /// The addresses of all servers, `first` before the others.
    #[must_use]
    pub fn urls(&self, first: usize) -> Vec<String> {
        in_order(first).map(|server| self.url(server)).collect()
    }

    /// A client's own links to all servers.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn links(&self) -> Result<Links> {
        let proxies = self
            .servers
            .iter()
            .map(|server| Proxy::start(server.port()));
        Ok(Links {
            proxies: try_join_all(proxies).await?,
        })
    }

    /// The links between a server and the two others.
    pub fn routes_of(&self, server: usize) -> impl Iterator<Item = &Proxy> {
        let of = self
            .routes
            .iter()
            .filter(move |it| it.ends.contains(&server));
        of.flat_map(|route| &route.proxies)
    }

    /// The links between all servers.
    pub fn routes(&self) -> impl Iterator<Item = &Proxy> {
        self.routes.iter().flat_map(|route| &route.proxies)
    }

    /// Waits until the cluster stores data on all three servers.
    ///
    /// # Errors
    /// When it doesn't in time.
    pub async fn wait_until_storing(&self) -> Result<()> {
        let client = Client::connect(&self.url(0)).await?;
        let mut context = jetstream::new(client.nats.clone());
        context.set_timeout(Duration::from_secs(2));
        let config = jetstream::kv::Config {
            bucket: Self::BUCKET.into(),
            num_replicas: SERVERS,
            ..jetstream::kv::Config::default()
        };
        let stored = wait::until("the cluster to store", async || {
            let Ok(bucket) = context.create_key_value(config.clone()).await else {
                return Ok(None);
            };
            Ok(bucket.put("key", "value".into()).await.ok())
        });
        stored.await.context("three servers with JetStream")?;
        Ok(())
    }
}

impl Route {
    /// The proxy by which a server connects to the other one. `None` if the route isn't one of its
    /// own.
    fn from(&self, server: usize) -> Option<&Proxy> {
        let ends = self.ends.iter().zip(&self.proxies);
        let mut from = ends.filter(|(end, _)| **end == server);
        from.next().map(|(_, proxy)| proxy)
    }
}

/// A client's links to all servers, each through a proxy.
#[derive(Debug)]
pub struct Links {
    proxies: Vec<Proxy>,
}

impl Links {
    /// The addresses to give to the client, the one to the server `first` before the others.
    #[must_use]
    pub fn urls(&self, first: usize) -> Vec<String> {
        let proxies = in_order(first).filter_map(|server| self.proxies.get(server));
        proxies.map(Proxy::url).collect()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Proxy> {
        self.proxies.iter()
    }
}

/// The servers' numbers, beginning with one of them.
fn in_order(first: usize) -> impl Iterator<Item = usize> {
    (0..SERVERS).map(move |step| (first + step) % SERVERS)
}
