//! The base of nearly every test: a broker, a host in its site, a client, and a recording of all
//! that is published.

use anyhow::{Context, Result};
use presence_tests::client::{Client, ReceivedMessage, Recording, now_ms};
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::site::Site;
use serde_json::{Value, json};

use crate::inputs::{self, DISCONNECT, EVENTS, OFFLINE};

/// Earlier than any time in a test, and than the host's clock.
const MARK_MS: u64 = inputs::SEED_MS - 1_000_000_000;

/// A broker of the test's own with a host on it. The fields are dropped in this
/// order: the host goes before the broker.
pub(crate) struct World {
    pub(crate) host: Host,
    pub(crate) client: Client,
    pub(crate) tape: Recording,
    pub(crate) site: Site,
    pub(crate) server: NatsServer,
}

impl World {
    /// The default pipeline with the contract's directory.
    pub(crate) async fn start() -> Result<Self> {
        Self::start_with(Ok).await
    }

    /// With a site that the test prepares.
    pub(crate) async fn start_with(prepare: impl FnOnce(Site) -> Result<Site>) -> Result<Self> {
        let server = NatsServer::start().await?;
        let site = prepare(Site::new(&server.url())?)?;
        let client = Client::connect(&server.url()).await?;
        let tape = client.record("presence.>").await?;
        let host = Host::start(&site).await?;
        Ok(Self {
            host,
            client,
            tape,
            site,
            server,
        })
    }

    /// Stops the host, which must end cleanly.
    pub(crate) async fn end(self) -> Result<()> {
        self.host.stop().await
    }

    /// All that the host has published about a user so far, in order. It waits until all effects of
    /// the user's earlier inputs are there: an application's statement about the same user is
    /// handled after them, and its event on the common subject is the sign. (It says "offline", so
    /// viewers count the user as offline.)
    pub(crate) async fn all_about(&mut self, user: &str) -> Result<Vec<ReceivedMessage>> {
        // No other event has this time.
        let mark = MARK_MS + self.tape.seen().len() as u64;
        self.client
            .publish(OFFLINE, &inputs::offline(user, mark))
            .await?;
        let is_end = |seen: &ReceivedMessage| {
            seen.is_from_host() && seen.subject == EVENTS && *seen.field("timestamp") == mark
        };
        self.tape
            .until("the statement that ends the test", |seen| {
                seen.last().is_some_and(is_end)
            })
            .await?;
        let about = |seen: &&ReceivedMessage| {
            seen.is_from_host()
                && seen.text("userId") == user
                && seen
                    .field("timestamp")
                    .as_u64()
                    .is_some_and(|at| at >= inputs::SEED_MS)
        };
        Ok(self.tape.seen().iter().filter(about).cloned().collect())
    }

    /// Connects a user with a connection of its own, and disconnects it. Returns the filtered
    /// online, which shows what the rules say now.
    pub(crate) async fn probe(&mut self, user: &str) -> Result<ReceivedMessage> {
        let conn = format!("probe-{}", self.tape.seen().len());
        self.client
            .input(inputs::CONNECT, inputs::connect(user, &conn, now_ms()))
            .await?;
        let came = self.tape.next("the probed user's online", |seen| {
            seen.is_from_host()
                && seen.subject == EVENTS
                && seen.text("type") == "user_online"
                && seen.text("userId") == user
        });
        let came = came.await?;
        self.client
            .input(
                DISCONNECT,
                inputs::disconnect(user, &conn, now_ms(), "client_disconnect"),
            )
            .await?;
        let went = self.tape.next("the probed user's offline", |seen| {
            seen.is_from_host()
                && seen.subject == EVENTS
                && seen.text("type") == "user_offline"
                && seen.text("userId") == user
        });
        went.await?;
        self.filtered(user, &came).await
    }

    /// Probes a user again and again until exactly these viewers see them.
    pub(crate) async fn until_visible_to(&mut self, user: &str, viewers: &[&str]) -> Result<()> {
        let begin = std::time::Instant::now();
        loop {
            let seen = self.probe(user).await?;
            if seen.visible_to() == viewers {
                return Ok(());
            }
            if begin.elapsed() > presence_tests::wait::GUARD {
                anyhow::bail!(
                    "{user} should come to be visible to {viewers:?}, but is to {:?}\n{}",
                    seen.visible_to(),
                    self.host.process.log_tail(),
                );
            }
        }
    }

    /// The filtered message of an online event. If there is none, a message to nobody.
    async fn filtered(&mut self, user: &str, event: &ReceivedMessage) -> Result<ReceivedMessage> {
        self.all_about(user).await.context("probing")?;
        let filtered = self.tape.seen().iter().rev().find(|seen| {
            seen.subject == inputs::FILTERED_ONLINE
                && seen.text("userId") == user
                && seen.field("timestamp") == event.field("timestamp")
        });
        let mut nobody = event.clone();
        nobody.body["visibleTo"] = json!([]);
        Ok(filtered.cloned().unwrap_or(nobody))
    }
}

/// The bodies on a subject.
pub(crate) fn on(seen: &[ReceivedMessage], subject: &str) -> Vec<Value> {
    seen.iter()
        .filter(|seen| seen.subject == subject)
        .map(|seen| seen.body.clone())
        .collect()
}
