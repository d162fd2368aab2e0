//! Metrics and traces for an OpenTelemetry collector, by OTLP over HTTP (`[telemetry]`).
//!
//! The metrics are those of `/metrics`, translated. A trace is of one message, from its arrival to
//! what is published because of it. It names no user, no connection and nothing of a message's
//! body. What sends is a thread of its own: a collector that is slow, gone or broken costs what
//! would have been sent to it, and nothing else.

// Without the feature, nothing begins a trace.
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

pub(crate) use trace::{Begun, Handled, Trace, Tracer};

/// How many traces wait to be taken by the thread that sends.
const QUEUE: usize = 1_024;

/// How long the last of it may take to send when the process stops.
const LAST: Duration = Duration::from_secs(1);

/// What has become of what was to be sent.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    /// Requests that the collector took, and that it did not take.
    pub(crate) sent: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Traces that it took, and that it never will.
    pub(crate) traces_sent: AtomicU64,
    pub(crate) traces_dropped: AtomicU64,
}

/// What the thread that sends is told.
enum Order {
    Trace(Box<Trace>),
    /// Send what there is, and end.
    End(oneshot::Sender<()>),
}

/// Telemetry of a process; it does nothing where there is no collector.
pub(crate) struct Telemetry {
    pub(crate) figures: Arc<Figures>,
    tracer: Option<Tracer>,
    orders: Option<SyncSender<Order>>,
}

/// Says all metrics, as they are now.
pub(crate) type Source = Box<dyn Fn() -> Exposition + Send>;

/// What is wrong with `[telemetry]` that its text alone doesn't show: this program can't do it, or
/// the file of headers can't be read.
pub fn doubt(config: &Config) -> Option<anyhow::Error> {
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
    /// What a configuration says. Nothing is sent before [`Self::start`].
    ///
    /// # Errors
    /// If this program can't do it, or the file of headers can't be read.
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

    /// What makes traces of a tenant's messages, if any are made.
    pub(crate) fn tracer(&self, tenant: Option<&str>) -> Option<Tracer> {
        let tracer = self.tracer.as_ref()?;
        Some(tracer.of_tenant(tenant))
    }

    /// Sends what there is once more, and no more after it.
    pub(crate) async fn end(&self) {
        let Some(orders) = &self.orders else { return };
        let (done, ended) = oneshot::channel();
        if orders.try_send(Order::End(done)).is_ok() {
            // What it can't send in time is lost.
            let _ = timeout(LAST, ended).await;
        }
    }
}

/// What is to be sent, until there is a thread for it.
pub(crate) struct Pending(Option<Receiver<Order>>);

impl Pending {
    /// Starts the thread that sends, if anything is to be sent.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub(crate) fn start(
        self,
        config: &Config,
        telemetry: &Telemetry,
        source: Source,
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
