//! Metrics and traces for an OpenTelemetry collector, by OTLP over HTTP (`[telemetry]`).
//!
//! The metrics are those of `/metrics`, translated. A trace covers one message, from its arrival to
//! what is published because of it. It names no user and no connection, and contains nothing of a
//! message's body. A thread of its own sends both: if a collector is slow, gone or broken, only the
//! telemetry for it is lost.

// Without the feature, no traces are begun.
#![cfg_attr(not(feature = "otlp"), allow(dead_code))]

#[cfg(feature = "otlp")]
mod encode;
#[cfg(feature = "otlp")]
mod export;
mod parent;
mod trace;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use anyhow::bail;
use presence_config::Config;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::ops::http::Exposition;
use crate::tasks::Tasks;

pub(crate) use trace::{HandledTrace, OpenTrace, Trace, Tracer};

/// How many traces may wait for the sending thread.
const QUEUE: usize = 1_024;

/// How long the last requests may take when the process stops.
const LAST: Duration = Duration::from_secs(1);

/// Counts of what was sent and lost.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Requests that the collector accepted, and that it did not accept.
    pub(crate) sent: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Traces that it accepted, and that were given up.
    pub(crate) traces_sent: AtomicU64,
    pub(crate) traces_dropped: AtomicU64,
}

/// An order for the sending thread.
enum Order {
    Trace(Box<Trace>),
    /// Send what is left, and end.
    End(oneshot::Sender<()>),
}

/// The telemetry of a process. Without a configured collector it does nothing.
pub(crate) struct Telemetry {
    pub(crate) figures: Arc<Figures>,
    tracer: Option<Tracer>,
    orders: Option<SyncSender<Order>>,
}

/// Returns the current value of all metrics.
pub(crate) type MetricsSource = Box<dyn Fn() -> Exposition + Send>;

/// What is wrong with `[telemetry]` beyond its text: the program was built without OTLP, or the
/// file of headers can't be read. `None` if nothing is.
pub fn config_problem(config: &Config) -> Option<anyhow::Error> {
    usable(config, cfg!(feature = "otlp")).err()
}

fn usable(config: &Config, is_built_in: bool) -> anyhow::Result<()> {
    if config.telemetry.otlp.is_some() && !is_built_in {
        bail!(
            "`otlp` in [telemetry] is set, and this program was built without OTLP: remove the key, \
             or use a program that was built with the feature `otlp`"
        );
    }
    config.telemetry.headers().map(drop)
}

impl Telemetry {
    /// The configured telemetry. Nothing is sent before [`Pending::start`].
    ///
    /// # Errors
    /// If the program was built without OTLP, or the file of headers can't be read.
    pub(crate) fn new(config: &Config) -> anyhow::Result<(Self, Pending)> {
        usable(config, cfg!(feature = "otlp"))?;
        let figures = Arc::<Figures>::default();
        if config.telemetry.otlp.is_none() {
            let telemetry = Self {
                figures,
                tracer: None,
                orders: None,
            };
            return Ok((telemetry, Pending(None)));
        }
        let (orders, taken) = sync_channel(QUEUE);
        let sample = config.telemetry.sample;
        let tracer = (sample > 0.0).then(|| Tracer::new(sample, &orders, &figures));
        let telemetry = Self {
            figures,
            tracer,
            orders: Some(orders),
        };
        Ok((telemetry, Pending(Some(taken))))
    }

    /// The tracer for a tenant's messages. `None` if no traces are made.
    pub(crate) fn tracer(&self, tenant: Option<&str>) -> Option<Tracer> {
        let tracer = self.tracer.as_ref()?;
        Some(tracer.of_tenant(tenant))
    }

    /// Sends what is left, and ends the sending.
    pub(crate) async fn end(&self) {
        let Some(orders) = &self.orders else { return };
        let (done, ended) = oneshot::channel();
        if orders.try_send(Order::End(done)).is_ok() {
            // What isn't sent in time is lost.
            let _ = timeout(LAST, ended).await;
        }
    }
}

/// The receiving end of the orders, until the sending thread starts.
pub(crate) struct Pending(Option<Receiver<Order>>);

impl Pending {
    /// Starts the sending thread, if a collector is configured.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub(crate) fn start(
        self,
        config: &Config,
        telemetry: &Telemetry,
        source: MetricsSource,
        tasks: &Tasks,
    ) -> anyhow::Result<()> {
        let (Some(orders), Some(collector)) = (self.0, config.telemetry.otlp.clone()) else {
            return Ok(());
        };
        #[cfg(feature = "otlp")]
        {
            let figures = Arc::clone(&telemetry.figures);
            let exporter = export::Exporter::new(config, &collector, source, figures);
            tracing::info!(
                collector = collector.as_str(),
                "sending metrics{} by OTLP",
                if telemetry.tracer.is_some() {
                    " and traces"
                } else {
                    ""
                }
            );
            tasks.thread("telemetry", move || exporter.run(&orders))?;
        }
        #[cfg(not(feature = "otlp"))]
        let _ = (orders, collector, telemetry, source, tasks);
        Ok(())
    }
}

impl Figures {
    fn add(counter: &AtomicU64, count: usize) {
        counter.fetch_add(count as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_refused_by_a_program_without_otlp_alone() {
        let mut config = Config::default();
        assert!(usable(&config, false).is_ok());
        config.telemetry.otlp = Some("http://127.0.0.1:4318".parse().unwrap());
        assert!(usable(&config, true).is_ok());
        let error = usable(&config, false).unwrap_err().to_string();
        assert!(
            error.starts_with("`otlp` in [telemetry] is set, and"),
            "{error}"
        );
    }
}
