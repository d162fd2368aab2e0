//! Users who say that they are there, again and again, as transports have them do: those
//! of whom no outage and no clock may make the host believe that they are gone.

use std::time::Duration;

use presence_tests::client::{Client, now_ms};
use tokio::task::JoinHandle;

use crate::inputs::{self, HEARTBEAT};

/// How often they say so: many times within the time-outs of the tests.
const EVERY: Duration = Duration::from_millis(100);

/// Speaks until it is dropped.
pub(crate) struct Speakers(JoinHandle<()>);

impl Speakers {
    /// Heartbeats of these users' connection `c1`. What can't be sent is lost, as it
    /// would be in the network.
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

impl Drop for Speakers {
    fn drop(&mut self) {
        self.0.abort();
    }
}
