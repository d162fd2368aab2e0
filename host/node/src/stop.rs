//! Stopping in order, within one time for all of it: each step may go on until a part of
//! that time is over, so that what comes after it has its turn whatever hangs before.

use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout_at};

use crate::link::broker::BrokerHealth;
use crate::signals::Signals;

/// How long a stop waits for a broker that can't be reached: the client tries to connect more
/// often.
const AWAY_MAX: Duration = Duration::from_secs(3);

/// How often is looked whether the broker can be reached.
const LOOK: Duration = Duration::from_millis(50);

/// Returns once the broker can't have been reached for [`AWAY_MAX`].
pub(crate) async fn broker_stays_away(broker: &BrokerHealth) {
    let mut reached = Instant::now();
    while reached.elapsed() < AWAY_MAX {
        sleep(LOOK).await;
        if broker.connected.load(Ordering::Relaxed) {
            reached = Instant::now();
        }
    }
}

/// A stop that is under way.
pub(crate) struct Stop<'a> {
    /// None where one tenant stops, and not the process.
    signals: Option<&'a Signals>,
    limit: Duration,
    /// When all of it must be done.
    by: Instant,
}

impl<'a> Stop<'a> {
    /// Begins, if no signal has done so.
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

    /// Comes to a step, which may go on until so much of all the time is over.
    pub(crate) fn step(&self, what: &'static str, part: f32) -> Instant {
        if let Some(signals) = self.signals {
            signals.step(what);
        }
        self.by - self.limit.mul_f32(1.0 - part)
    }
}

/// What reads from the broker, and how each is told to stop.
#[derive(Default)]
pub(crate) struct Readers(Vec<(oneshot::Sender<()>, JoinHandle<()>)>);

impl Readers {
    pub(crate) fn add(&mut self, stop: oneshot::Sender<()>, reader: JoinHandle<()>) {
        self.0.push((stop, reader));
    }

    /// Takes no more, but what has arrived, as far as it can be read by then.
    pub(crate) async fn stop(self, broker: &BrokerHealth, by: Instant) {
        let stops = self.0.into_iter().map(|(stop, mut reader)| async move {
            // Without a broker nothing is on its way, and nobody would say so.
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
