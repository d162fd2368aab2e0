//! Users who send heartbeats all the time, as transports do for them. No outage and no clock may
//! make the host report them as gone.

use std::time::Duration;

use presence_tests::client::{Client, now_ms};
use tokio::task::JoinHandle;

use crate::inputs::{self, HEARTBEAT};

/// The interval of heartbeats: many in each timeout of the tests.
const EVERY: Duration = Duration::from_millis(100);

/// Sends heartbeats until it is dropped.
pub(crate) struct HeartbeatSenders(JoinHandle<()>);

impl HeartbeatSenders {
    /// Sends heartbeats of these users' connection `c1`. A heartbeat that can't be sent is lost, as
    /// in the network.
    pub(crate) fn start(client: &Client, users: &[String]) -> Self {
        Self::start_on(client, HEARTBEAT.into(), users)
    }

    /// As [`Self::start`], on a subject with a tenant's prefix.
    pub(crate) fn start_on(client: &Client, subject: String, users: &[String]) -> Self {
        let (client, users) = (client.clone(), users.to_vec());
        Self(tokio::spawn(async move {
            let mut every = tokio::time::interval(EVERY);
            every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                every.tick().await;
                for user in &users {
                    let heartbeat = inputs::heartbeat(user, "c1", now_ms());
                    let _ = client.publish(&subject, &heartbeat).await;
                }
            }
        }))
    }
}

impl Drop for HeartbeatSenders {
    fn drop(&mut self) {
        self.0.abort();
    }
}
