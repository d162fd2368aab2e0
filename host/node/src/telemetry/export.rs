//! The thread that sends to the collector: metrics at each interval, traces in batches. While the
//! collector refuses one of the two, attempts become less frequent, and the log reports it once a
//! minute. The other isn't affected: some collectors accept only one.

use std::io::Read as _;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use presence_config::escape::Line;
use presence_config::{self as config, Config};
use presence_otlp::{DecodeError, Message as _, Response};
use rustls::crypto::ring::default_provider as ring_provider;
use tokio::sync::oneshot;
use ureq::Agent;
use ureq::http::{Uri, header};
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use super::encode::Encoder;
use super::{Figures, LAST, MetricsSource, Order, Trace};
use crate::pool::log_limiter::LogLimiter;

/// How many traces one request contains, at most.
const BATCH: usize = 512;

/// How many traces are kept until the collector accepts them.
const KEPT: usize = 2_048;

/// The limits for the timeout of a request. Between them, the timeout is the interval.
const REQUEST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// The longest wait while the collector refuses requests, unless the interval is longer.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// How much of a response is read, in bytes.
const ANSWER_BYTES_MAX: u64 = 65_536;

/// How much of an error text is logged, in characters: the collector may have written it.
const WHY_CHARS_MAX: usize = 500;

/// The shortest time between two log lines about refused requests, in milliseconds.
const LOG_EVERY_MS: u64 = 60_000;

/// The HTTP statuses after which the same request may be repeated, as OTLP defines.
const LATER: [u16; 4] = [429, 502, 503, 504];

/// Sends to the collector.
pub(super) struct Exporter {
    agent: Agent,
    /// The timeout of a request.
    limit: Duration,
    settings: config::Telemetry,
    metrics_uri: String,
    traces_uri: String,
    interval: Duration,
    source: MetricsSource,
    figures: Arc<Figures>,
    encoder: Encoder,
    /// The traces that the collector hasn't accepted yet.
    traces: Vec<Trace>,
    of_metrics: Attempts,
    of_traces: Attempts,
}

/// The state of sending metrics or traces.
struct Attempts {
    /// `metrics` or `traces`, for the log.
    what: &'static str,
    /// When to send next.
    next: Instant,
    /// How many requests in a row have failed.
    failures: u32,
    log: LogLimiter,
}

/// Why the collector hasn't accepted a request.
enum ExportError {
    /// It may accept the request later.
    Later(anyhow::Error),
    /// It will never accept the request.
    Never(anyhow::Error),
}

impl Exporter {
    pub(super) fn new(
        config: &Config,
        collector: &impl ToString,
        source: MetricsSource,
        figures: Arc<Figures>,
    ) -> Self {
        let settings = config.telemetry.clone();
        let interval = Duration::from_millis(settings.interval_ms);
        let base = collector.to_string();
        let base = base.trim_end_matches('/');
        Self {
            agent: agent(base),
            limit: interval.clamp(REQUEST.0, REQUEST.1),
            metrics_uri: format!("{base}/v1/metrics"),
            traces_uri: format!("{base}/v1/traces"),
            interval,
            source,
            figures,
            encoder: Encoder::new(&config.node.name, SystemTime::now()),
            traces: Vec::new(),
            of_metrics: Attempts::new("metrics", interval),
            of_traces: Attempts::new("traces", interval),
            settings,
        }
    }

    /// Sends until the order to end comes.
    pub(super) fn run(mut self, orders: &Receiver<Order>) {
        loop {
            let next = self.of_metrics.next.min(self.of_traces.next);
            let wait = next.saturating_duration_since(Instant::now());
            match orders.recv_timeout(wait) {
                Ok(Order::Trace(trace)) => {
                    self.keep(*trace);
                    // After a failure, traces are sent only when the wait is over.
                    if self.traces.len() >= BATCH && self.of_traces.failures == 0 {
                        self.send_traces();
                    }
                }
                Ok(Order::End(done)) => return self.end(done),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    if self.of_metrics.next <= Instant::now() {
                        self.send_metrics();
                    }
                    if self.of_traces.next <= Instant::now() {
                        self.send_traces();
                    }
                }
            }
        }
    }

    /// Sends what is left, to a collector that accepted the last request.
    fn end(mut self, done: oneshot::Sender<()>) {
        self.limit = LAST;
        if self.of_metrics.failures == 0 {
            self.send_metrics();
        }
        if self.of_traces.failures == 0 {
            self.send_traces();
        }
        // The receiver may have given up waiting.
        let _ = done.send(());
    }

    fn keep(&mut self, trace: Trace) {
        if self.traces.len() < KEPT {
            self.traces.push(trace);
        } else {
            Figures::add(&self.figures.traces_dropped, 1);
        }
    }

    fn send_metrics(&mut self) {
        let request = self.encoder.metrics(&(self.source)(), SystemTime::now());
        let sent = self.post(&self.metrics_uri, request.encode_to_vec());
        let sent = sent.and_then(|answer| rejected(&answer));
        let sent = sent.map_err(|untaken| match untaken {
            ExportError::Later(error) | ExportError::Never(error) => error,
        });
        let sent = sent.map(|rejected| {
            self.of_metrics.count_rejected(rejected, "data points");
        });
        self.of_metrics.note(sent, &self.figures, self.interval);
    }

    /// Sends all traces, until a request fails.
    fn send_traces(&mut self) {
        self.of_traces.next = Instant::now() + self.interval;
        while !self.traces.is_empty() {
            let rest = self.traces.split_off(self.traces.len().min(BATCH));
            let batch = std::mem::replace(&mut self.traces, rest);
            let request = self.encoder.traces(&batch);
            let sent = self.post(&self.traces_uri, request.encode_to_vec());
            let sent = match sent.and_then(|answer| rejected(&answer)) {
                Ok(rejected) => {
                    let rejected = self.of_traces.count_rejected(rejected, "spans");
                    let rejected = rejected.min(batch.len());
                    Figures::add(&self.figures.traces_dropped, rejected);
                    Figures::add(&self.figures.traces_sent, batch.len() - rejected);
                    Ok(())
                }
                Err(ExportError::Later(error)) => {
                    self.traces.splice(..0, batch);
                    Err(error)
                }
                Err(ExportError::Never(error)) => {
                    Figures::add(&self.figures.traces_dropped, batch.len());
                    Err(error)
                }
            };
            if !self.of_traces.note(sent, &self.figures, self.interval) {
                return;
            }
        }
    }

    /// Posts one message. Returns the response's body.
    fn post(&self, uri: &str, body: Vec<u8>) -> Result<Vec<u8>, ExportError> {
        let mut request = self
            .agent
            .post(uri)
            .config()
            .timeout_global(Some(self.limit))
            .build()
            .header(header::CONTENT_TYPE, "application/x-protobuf");
        for (name, value) in self.settings.headers().map_err(ExportError::Later)? {
            request = request.header(name, value);
        }
        let answer = request.send(&*body);
        let mut answer = answer
            .with_context(|| uri.to_owned())
            .map_err(ExportError::Later)?;
        let status = answer.status();
        let mut bytes = Vec::new();
        let body = answer.body_mut().as_reader().take(ANSWER_BYTES_MAX);
        let read = { body }.read_to_end(&mut bytes);
        if status.is_success() {
            read.with_context(|| uri.to_owned())
                .map_err(ExportError::Later)?;
            return Ok(bytes);
        }
        let error = anyhow::anyhow!("{uri} answers {status}");
        match LATER.contains(&status.as_u16()) {
            true => Err(ExportError::Later(error)),
            false => Err(ExportError::Never(error)),
        }
    }
}

impl Attempts {
    fn new(what: &'static str, interval: Duration) -> Self {
        Self {
            what,
            next: Instant::now() + interval,
            failures: 0,
            log: LogLimiter::default(),
        }
    }

    /// Logs that the collector has accepted a request but for a part, which must not be sent again.
    /// Returns how many items that is.
    fn count_rejected(&mut self, rejected: Option<Rejected>, items: &str) -> usize {
        let Some(Rejected { count, why }) = rejected else {
            return 0;
        };
        if let Some(times) = self.log.line(LOG_EVERY_MS) {
            tracing::warn!(
                times,
                "the telemetry collector has rejected {count} {items}: {}",
                shortened(&why)
            );
        }
        count
    }

    /// Notes the result of a request, and when to send next. Returns whether the request was
    /// accepted.
    fn note(&mut self, sent: anyhow::Result<()>, figures: &Figures, interval: Duration) -> bool {
        let is_taken = sent.is_ok();
        match sent {
            Ok(()) => {
                Figures::add(&figures.sent, 1);
                if std::mem::take(&mut self.failures) > 0 {
                    tracing::info!("the telemetry collector takes {} again", self.what);
                }
            }
            Err(error) => {
                Figures::add(&figures.failed, 1);
                self.failures = self.failures.saturating_add(1);
                if let Some(times) = self.log.line(LOG_EVERY_MS) {
                    tracing::warn!(
                        times,
                        "the telemetry collector doesn't take {}, and is asked again later: {}",
                        self.what,
                        shortened(&format!("{error:#}"))
                    );
                }
            }
        }
        self.next = Instant::now() + self.pause(interval);
        is_taken
    }

    /// The wait: the interval, or a longer and partly random one after failures, so that many nodes
    /// don't send at the same moment.
    fn pause(&self, interval: Duration) -> Duration {
        if self.failures == 0 {
            return interval;
        }
        let longest = BACKOFF_MAX.max(interval);
        let doubled = 1_u32.checked_shl(self.failures.min(16)).unwrap_or(u32::MAX);
        let wait = interval.saturating_mul(doubled).min(longest);
        wait.mul_f64(0.5 + fastrand::f64() / 2.0)
    }
}

/// The beginning of a collector's reason, as one line of the log.
fn shortened(why: &str) -> Line<String> {
    Line(why.chars().take(WHY_CHARS_MAX).collect())
}

fn no_otlp(error: DecodeError) -> ExportError {
    let what = "its answer is not OTLP: is this a collector's address?";
    ExportError::Never(anyhow::Error::new(error).context(what))
}

/// The part of an accepted request that the collector has rejected.
struct Rejected {
    count: usize,
    why: String,
}

/// What the response to an accepted request rejects, if it rejects anything.
fn rejected(answer: &[u8]) -> Result<Option<Rejected>, ExportError> {
    let answer = Response::decode(answer).map_err(no_otlp)?;
    let rejected = answer.partial_success.filter(|part| part.rejected > 0);
    Ok(rejected.map(|part| Rejected {
        count: usize::try_from(part.rejected).unwrap_or(usize::MAX),
        why: part.error_message,
    }))
}

/// The HTTP client. It trusts the certificates that this machine trusts. It follows no redirection,
/// which would get the configured headers, and uses no proxy for an address on this machine.
fn agent(collector: &str) -> Agent {
    let trusted = match collector.starts_with("https:") {
        true => rustls_native_certs::load_native_certs().certs,
        false => Vec::new(),
    };
    let certificates = trusted.iter();
    let certificates = certificates.map(|it| Certificate::from_der(it).to_owned());
    let certificates: Vec<_> = certificates.collect();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&certificates))
        // The same provider as for the connections to NATS.
        .unversioned_rustls_crypto_provider(Arc::new(ring_provider()));
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .tls_config(tls.build())
        .user_agent(concat!("presence/", env!("CARGO_PKG_VERSION")));
    let host = collector.parse::<Uri>().ok();
    let host = host.and_then(|uri| uri.host().map(str::to_owned));
    let is_local = host.is_some_and(|host| {
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        host == "localhost" || address.is_ok_and(|it| it.is_loopback())
    });
    if is_local {
        config = config.proxy(None);
    }
    config.build().into()
}
