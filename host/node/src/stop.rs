//! An orderly stop within a time limit. Each step may take until a certain part of the limit is
//! over, so that the later steps have their turn even if one hangs.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use crate::link::broker::BrokerHealth;
use crate::signals::Signals;

/// How long a stop waits for a broker that can't be reached. The client tries to connect more often
/// than that.
const AWAY_MAX: Duration = Duration::from_secs(3);

/// How often the connection to the broker is checked.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// Returns once the broker hasn't been reachable for [`AWAY_MAX`].
pub(crate) async fn until_broker_lost(broker: &BrokerHealth) {
    let mut reached = Instant::now();
    while reached.elapsed() < AWAY_MAX {
        sleep(CHECK_EVERY).await;
        if broker.connected.load(Ordering::Relaxed) {
            reached = Instant::now();
        }
    }
}

/// A stop that is under way.
pub(crate) struct Stop<'a> {
    /// `None` if a single tenant stops, and not the process.
    signals: Option<&'a Signals>,
    limit: Duration,
    /// The deadline of the whole stop.
    by: Instant,
}

impl<'a> Stop<'a> {
    /// Begins a stop of the process, or joins the one that a signal has begun.
    pub(crate) fn begin(signals: &'a Signals, limit: Duration) -> Self {
        let by = signals.stop(limit);
        Self {
            signals: Some(signals),
            limit,
            by,
        }
    }

    /// Begins to stop a tenant, while the process goes on.
    pub(crate) fn of_tenant(limit: Duration) -> Self {
        Self {
            signals: None,
            limit,
            by: Instant::now() + limit,
        }
    }

    /// Begins a step. Returns its deadline: when this part of the whole limit is over.
    pub(crate) fn step(&self, what: &'static str, part: f32) -> Instant {
        if let Some(signals) = self.signals {
            signals.step(what);
        }
        self.by - self.limit.mul_f32(1.0 - part)
    }
}

/// The tasks that read from the broker, with the sender that stops each.
#[derive(Default)]
pub(crate) struct Readers(Vec<(oneshot::Sender<()>, JoinHandle<()>)>);

impl Readers {
    pub(crate) fn add(&mut self, stop: oneshot::Sender<()>, reader: JoinHandle<()>) {
        self.0.push((stop, reader));
    }

    /// Stops the readers. They still read what has arrived, until the deadline.
    pub(crate) async fn stop(self, broker: &BrokerHealth, by: Instant) {
        let stops = self.0.into_iter().map(|(stop, mut reader)| async move {
            // Without a connection no message is on its way, and the end of the stream would never
            // come.
            if broker.connected.load(Ordering::Relaxed) && stop.send(()).is_ok() {
                if timeout_at(by, &mut reader).await.is_ok() {
                    return;
                }
                tracing::warn!("not all that had arrived could be read in time");
            }
            reader.abort();
        });
        join_all(stops).await;
    }
}
