//! A transport, as a chat server is in production: it reports its users' connections, and sends a
//! heartbeat for each that is alive.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use presence_tests::client::{Client, now_ms};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

pub(crate) const CONNECT: &str = "presence.connect";
pub(crate) const DISCONNECT: &str = "presence.disconnect";
pub(crate) const HEARTBEAT: &str = "presence.heartbeat";

/// How many inputs were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub(crate) connects: u64,
    pub(crate) disconnects: u64,
    pub(crate) heartbeats: u64,
    pub(crate) invalid: u64,
}

/// A transport. Clones share their state.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    client: Client,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The living connections: user and connection id.
    living: BTreeSet<(String, String)>,
    sent: Sent,
}

impl Transport {
    pub(crate) fn new(client: Client) -> Self {
        Self {
            client,
            state: Arc::default(),
        }
    }

    /// Reports a new connection, and waits for the host's acknowledgement.
    pub(crate) async fn connect(&self, user: &str, conn: &str, device: &str) -> Result<()> {
        self.client
            .input(CONNECT, connect(user, conn, device))
            .await?;
        self.connected(user, conn);
        Ok(())
    }

    /// As [`Self::connect`], without waiting for the acknowledgement.
    pub(crate) async fn send_connect(&self, user: &str, conn: &str, device: &str) -> Result<()> {
        self.client
            .publish(CONNECT, &connect(user, conn, device))
            .await?;
        self.connected(user, conn);
        Ok(())
    }

    /// Reports that a connection is closed, and waits for the host's acknowledgement.
    pub(crate) async fn disconnect(&self, user: &str, conn: &str) -> Result<()> {
        // Notes it first, so that no heartbeat comes after the disconnect.
        self.disconnected(user, conn);
        self.client.input(DISCONNECT, disconnect(user, conn)).await
    }

    /// As [`Self::disconnect`], without waiting for the acknowledgement.
    pub(crate) async fn send_disconnect(&self, user: &str, conn: &str) -> Result<()> {
        self.disconnected(user, conn);
        self.client
            .publish(DISCONNECT, &disconnect(user, conn))
            .await
    }

    /// Makes a connection silent: nobody reports that it is closed.
    pub(crate) fn crash(&self, user: &str, conn: &str) {
        self.state()
            .living
            .remove(&(user.to_owned(), conn.to_owned()));
    }

    /// Sends an invalid connect, and returns the host's answer.
    pub(crate) async fn send_invalid(&self, body: &Value) -> Result<Value> {
        let answer = self.client.request(CONNECT, body.to_string()).await?;
        self.state().sent.invalid += 1;
        Ok(answer)
    }

    /// Sends a heartbeat for each living connection, again and again, until the returned value is
    /// dropped.
    pub(crate) fn heartbeats(&self, period: Duration) -> Heartbeats {
        let transport = self.clone();
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Heartbeats(tokio::spawn(async move {
            loop {
                ticks.tick().await;
                let living = transport.state().living.clone();
                for (user, conn) in living {
                    let body = json!({"userId": user, "connId": conn, "timestamp": now_ms()});
                    if transport.client.publish(HEARTBEAT, &body).await.is_err() {
                        return;
                    }
                    transport.state().sent.heartbeats += 1;
                }
            }
        }))
    }

    /// How many inputs were sent so far.
    pub(crate) fn sent(&self) -> Sent {
        self.state().sent
    }

    /// How many connections are alive.
    pub(crate) fn connections(&self) -> usize {
        self.state().living.len()
    }

    /// Who has a living connection.
    pub(crate) fn online(&self) -> BTreeSet<String> {
        self.state()
            .living
            .iter()
            .map(|(user, _)| user.clone())
            .collect()
    }

    fn connected(&self, user: &str, conn: &str) {
        let mut state = self.state();
        state.sent.connects += 1;
        state.living.insert((user.to_owned(), conn.to_owned()));
    }

    fn disconnected(&self, user: &str, conn: &str) {
        let mut state = self.state();
        state.sent.disconnects += 1;
        state.living.remove(&(user.to_owned(), conn.to_owned()));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Heartbeats that go on until this is dropped.
#[derive(Debug)]
pub(crate) struct Heartbeats(JoinHandle<()>);

impl Drop for Heartbeats {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A connect. Of its metadata, viewers see only the device.
fn connect(user: &str, conn: &str, device: &str) -> Value {
    json!({
        "userId": user,
        "connId": conn,
        "timestamp": now_ms(),
        "metadata": {"device": device, "userAgent": "Mozilla/5.0", "ip": "192.0.2.7"},
    })
}

fn disconnect(user: &str, conn: &str) -> Value {
    json!({
        "userId": user,
        "connId": conn,
        "timestamp": now_ms(),
        "reason": "client_disconnect",
    })
}
