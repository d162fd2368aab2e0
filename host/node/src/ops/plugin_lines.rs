//! Lines that plugins log, and lines of the node's log about plugins, for operators who follow them
//! over NATS. The last lines are kept. While a plugin is followed, its lines are published as well.
//!
//! There is one collection per process, since there is one log.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Span, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, Filter};
use tracing_subscriber::registry::LookupSpan;

use crate::clock;

/// The log target of the lines of plugins.
const TARGET: &str = "plugin";

/// The name of a pipeline's span.
const PIPELINE: &str = "pipeline";

/// How many lines are kept in all.
const KEPT_MAX: usize = 500;

/// The longest line, in bytes. Longer ones are cut.
const LINE_BYTES_MAX: usize = 4_096;

/// How many lines may wait to be published.
const WAITING_MAX: usize = 1_024;

/// For how long a plugin's lines are published, unless the request is renewed.
pub(crate) const LEASE: Duration = Duration::from_secs(30);

/// How many plugins may be followed at a time.
const LEASES_MAX: usize = 64;

static LINES: PluginLines = PluginLines::new();

/// The lines of the process.
pub(crate) struct PluginLines {
    known: Mutex<LinesState>,
    /// Whether a follower wants debug lines.
    is_debug_wanted: AtomicBool,
    publisher: OnceLock<mpsc::Sender<PluginLine>>,
}

struct LinesState {
    kept: VecDeque<PluginLine>,
    /// The time of the first line, in milliseconds; 0 before it.
    epoch: u64,
    /// The number of the last line.
    last: u64,
    leases: Vec<Lease>,
}

/// A plugin that is followed, and until when.
struct Lease {
    wanted: FollowRequest,
    until: Instant,
    /// How many lines could not be published since the last one that was.
    left_out: u64,
}

/// A request to follow a plugin's lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FollowRequest {
    /// The tenant that the lines carry; empty for the default one.
    pub(crate) tenant: String,
    pub(crate) plugin: String,
    /// Whether debug lines are wanted, too.
    pub(crate) is_debug: bool,
}

/// A line of a plugin, or about one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PluginLine {
    /// The time of the process's first line, and this line's number since then, from 1 on.
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
    pub(crate) timestamp: u64,
    pub(crate) plugin: String,
    /// The tenant of the pipeline; in a published line, the tenant's prefix.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) tenant: String,
    /// The generation of the pipeline. `None` if the line is about the plugin in all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) generation: Option<u64>,
    pub(crate) level: &'static str,
    pub(crate) text: String,
    /// How many lines just before this one could not be published.
    #[serde(skip_serializing_if = "is_none")]
    pub(crate) left_out: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// The span of a pipeline. Lines that are logged in it carry its tenant and generation.
pub(crate) fn span(tenant: &str, generation: u64) -> Span {
    let tenant = (!tenant.is_empty()).then_some(tenant);
    tracing::error_span!(target: TARGET, parent: None, PIPELINE, generation, tenant)
}

/// The layer of the log that collects lines of plugins.
pub(crate) fn layer<S>() -> impl Layer<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    Collector.with_filter(Collector)
}

/// The receiver of the lines that are followed. To be called once.
pub(crate) fn followed() -> mpsc::Receiver<PluginLine> {
    let (publisher, lines) = mpsc::channel(WAITING_MAX);
    // A second receiver gets nothing.
    let _ = LINES.publisher.set(publisher);
    lines
}

/// Publishes a plugin's lines for [`LEASE`] from now on.
///
/// # Errors
/// If too many plugins are followed.
pub(crate) fn follow(wanted: FollowRequest) -> Result<(), String> {
    LINES.known().follow(wanted, Instant::now())?;
    expire();
    Ok(())
}

/// The last lines of a plugin, as many as fit into `bytes_max`.
pub(crate) fn last(wanted: &FollowRequest, bytes_max: usize) -> Vec<PluginLine> {
    LINES.known().last(wanted, bytes_max)
}

/// Removes the lines of a tenant, and the requests to follow them.
pub(crate) fn forget(tenant: &str) {
    LINES.known().forget(tenant);
    expire();
}

/// Ends the leases that were not renewed. To be called regularly.
pub(crate) fn expire() {
    let is_debug_wanted = {
        let mut known = LINES.known();
        let now = Instant::now();
        known.leases.retain(|lease| lease.until > now);
        known.leases.iter().any(|lease| lease.wanted.is_debug)
    };
    let was_wanted = LINES
        .is_debug_wanted
        .swap(is_debug_wanted, Ordering::Relaxed);
    if was_wanted != is_debug_wanted {
        // Makes callsites check again: lines that no layer wants aren't even created.
        tracing::callsite::rebuild_interest_cache();
    }
}

impl PluginLines {
    /// No lines yet.
    const fn new() -> Self {
        Self {
            known: Mutex::new(LinesState {
                kept: VecDeque::new(),
                epoch: 0,
                last: 0,
                leases: Vec::new(),
            }),
            is_debug_wanted: AtomicBool::new(false),
            publisher: OnceLock::new(),
        }
    }

    fn known(&self) -> MutexGuard<'_, LinesState> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in a line that was logged.
    fn take(&self, mut line: PluginLine) {
        let mut known = self.known();
        // Set under the lock, so that the times of lines are in the order of their numbers.
        line.timestamp = clock::now_ms();
        let handed = known.keep(line, Instant::now());
        let (Some(publisher), Some((line, lease))) = (self.publisher.get(), handed) else {
            return;
        };
        // A thread that logs must not wait.
        lease.left_out = match publisher.try_send(line) {
            Ok(()) => 0,
            Err(_) => lease.left_out + 1,
        };
    }
}

impl LinesState {
    fn follow(&mut self, wanted: FollowRequest, now: Instant) -> Result<(), String> {
        let until = now + LEASE;
        self.leases.retain(|lease| lease.until > now);
        if let Some(lease) = self.leases.iter_mut().find(|it| it.wanted == wanted) {
            lease.until = until;
            return Ok(());
        }
        if self.leases.len() >= LEASES_MAX {
            return Err(format!("{LEASES_MAX} plugins are followed already"));
        }
        self.leases.push(Lease {
            wanted,
            until,
            left_out: 0,
        });
        Ok(())
    }

    fn forget(&mut self, tenant: &str) {
        self.kept.retain(|line| line.tenant != tenant);
        self.leases.retain(|lease| lease.wanted.tenant != tenant);
    }

    fn last(&self, wanted: &FollowRequest, bytes_max: usize) -> Vec<PluginLine> {
        let of_it = self.kept.iter().rev().filter(|it| wanted.has(it));
        let mut bytes = 0;
        let fits = |line: &&PluginLine| {
            // An escaped character may take six bytes.
            bytes += 256 + line.text.len() * 2;
            bytes <= bytes_max
        };
        let mut last: Vec<_> = of_it.take_while(fits).cloned().collect();
        last.reverse();
        last
    }

    /// Keeps a line. If the plugin is followed, returns the line and the lease by which it is
    /// published.
    fn keep(&mut self, mut line: PluginLine, now: Instant) -> Option<(PluginLine, &mut Lease)> {
        if self.last == 0 {
            self.epoch = line.timestamp;
        }
        self.last += 1;
        (line.epoch, line.seq) = (self.epoch, self.last);
        if self.kept.len() >= KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back(line.clone());
        let mut leases = self.leases.iter_mut();
        let lease = leases.find(|it| it.until > now && it.wanted.has(&line))?;
        line.left_out = lease.left_out;
        Some((line, lease))
    }
}

impl FollowRequest {
    fn has(&self, line: &PluginLine) -> bool {
        let is_its = self.plugin == line.plugin && self.tenant == line.tenant;
        is_its && (self.is_debug || line.level != level(Level::DEBUG))
    }
}

struct Collector;

impl Collector {
    /// Whether a line is a plugin's, or the node's about a plugin.
    fn wants(metadata: &Metadata<'_>) -> bool {
        let is_plugins = metadata.target() == TARGET;
        if metadata.is_span() {
            return is_plugins;
        }
        let is_about_one = || {
            metadata.target().starts_with("presence_")
                && metadata.fields().field("plugin").is_some()
        };
        *metadata.level() <= max_level() && (is_plugins || is_about_one())
    }
}

fn max_level() -> LevelFilter {
    match LINES.is_debug_wanted.load(Ordering::Relaxed) {
        true => LevelFilter::DEBUG,
        false => LevelFilter::INFO,
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        _ => "debug",
    }
}

impl<S> Filter<S> for Collector {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        Self::wants(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        match Self::wants(metadata) {
            true => Interest::always(),
            false => Interest::never(),
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(max_level())
    }
}

impl<S> Layer<S> for Collector
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut of = Pipeline::default();
        attributes.record(&mut of);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(of);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut said = LineFields::default();
        event.record(&mut said);
        let mut of = Pipeline::default();
        for span in context.event_scope(event).into_iter().flatten() {
            if let Some(pipeline) = span.extensions().get::<Pipeline>() {
                of = pipeline.clone();
                break;
            }
        }
        LINES.take(PluginLine {
            epoch: 0,
            seq: 0,
            timestamp: 0,
            plugin: said.plugin,
            tenant: of.tenant,
            generation: of.generation,
            level: level(*event.metadata().level()),
            text: said.text.0,
            left_out: 0,
        });
    }
}

/// The pipeline that a line belongs to.
#[derive(Clone, Debug, Default)]
struct Pipeline {
    tenant: String,
    generation: Option<u64>,
}

impl Visit for Pipeline {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "generation" {
            self.generation = Some(value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "tenant" {
            value.clone_into(&mut self.tenant);
        }
    }

    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
}

/// The fields of a line.
#[derive(Default)]
struct LineFields {
    plugin: String,
    text: Text,
}

/// Text that is cut at [`LINE_BYTES_MAX`].
#[derive(Default)]
struct Text(String);

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = LINE_BYTES_MAX.saturating_sub(self.0.len());
        self.0
            .push_str(text.split_at(text.floor_char_boundary(room)).0);
        Ok(())
    }
}

impl LineFields {
    fn add(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let name = field.name();
        // The message comes first, whatever the order of the fields.
        let _ = match (name, self.text.0.is_empty()) {
            ("message" | "explanation", true) => write!(self.text, "{value}"),
            ("message" | "explanation", false) => {
                let more = std::mem::take(&mut self.text.0);
                write!(self.text, "{value} {more}")
            }
            (_, true) => write!(self.text, "{name}={value}"),
            (_, false) => write!(self.text, " {name}={value}"),
        };
    }
}

impl Visit for LineFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "plugin" => value.clone_into(&mut self.plugin),
            _ => self.add(field, format_args!("{value}")),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "plugin" => self.plugin = format!("{value:?}"),
            _ => self.add(field, format_args!("{value:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;
    use tracing_subscriber::registry;

    use super::*;

    fn wanted(plugin: &str, is_debug: bool) -> FollowRequest {
        FollowRequest {
            tenant: String::new(),
            plugin: plugin.into(),
            is_debug,
        }
    }

    fn line(plugin: &str, level: Level) -> PluginLine {
        PluginLine {
            epoch: 0,
            seq: 0,
            timestamp: 1,
            plugin: plugin.into(),
            tenant: String::new(),
            generation: Some(3),
            level: super::level(level),
            text: "hello".into(),
            left_out: 0,
        }
    }

    #[test]
    fn a_line_bears_the_tenant_and_generation_of_the_pipeline_that_it_is_logged_in() {
        let subscriber = registry().with(layer());
        tracing::subscriber::with_default(subscriber, || {
            let outer = span("", 2);
            let inner = span("acme", 7);
            let _outer = outer.enter();
            tracing::info!(target: "plugin", plugin = "of-the-default", "hello");
            let _inner = inner.enter();
            tracing::warn!(target: "plugin", plugin = "of-acme", "careful");
            tracing::error!(plugin = "of-acme", error = "trapped", "put into quarantine");
            tracing::debug!(target: "plugin", plugin = "of-acme", "nobody wants this");
            tracing::info!("about none");
        });
        let last = last(&wanted("of-the-default", true), usize::MAX);
        assert_eq!(last.len(), 1);
        assert_eq!((&*last[0].text, last[0].generation), ("hello", Some(2)));
        let of_acme = FollowRequest {
            tenant: "acme".into(),
            ..wanted("of-acme", true)
        };
        let last = super::last(&of_acme, usize::MAX);
        let texts: Vec<_> = last.iter().map(|it| (&*it.text, it.level)).collect();
        let failed = "put into quarantine error=trapped";
        assert_eq!(texts, [("careful", "warn"), (failed, "error")]);
        assert!(last.iter().all(|it| it.generation == Some(7)));
        assert!(super::last(&wanted("of-acme", true), usize::MAX).is_empty());
    }

    #[test]
    fn lines_are_handed_on_while_somebody_follows_and_those_that_find_no_room_are_counted() {
        let lines = PluginLines::new();
        let (publisher, mut followed) = mpsc::channel(2);
        lines.publisher.set(publisher).unwrap();
        lines.take(line("a", Level::INFO));
        assert!(followed.try_recv().is_err(), "nobody follows");
        let begun = Instant::now();
        lines.known().follow(wanted("a", false), begun).unwrap();
        lines.take(line("b", Level::INFO));
        lines.take(line("a", Level::DEBUG));
        for _ in 0..5 {
            lines.take(line("a", Level::INFO));
        }
        let seqs = |line: PluginLine| (line.seq, line.left_out);
        assert_eq!(followed.try_recv().map(seqs), Ok((4, 0)));
        assert_eq!(followed.try_recv().map(seqs), Ok((5, 0)));
        lines.take(line("a", Level::INFO));
        assert_eq!(followed.try_recv().map(seqs), Ok((9, 3)));
        assert!(followed.try_recv().is_err());
        // A lease ends by itself.
        let mut known = lines.known();
        let ended = begun + LEASE;
        assert!(known.keep(line("a", Level::INFO), ended).is_none());
    }

    #[test]
    fn the_lines_of_a_tenant_end_with_it() {
        let lines = PluginLines::new();
        let of = |tenant: &str| PluginLine {
            tenant: tenant.into(),
            ..line("a", Level::INFO)
        };
        let wanted = |tenant: &str| FollowRequest {
            tenant: tenant.into(),
            ..wanted("a", false)
        };
        for tenant in ["acme", "beta", "acme"] {
            lines.take(of(tenant));
        }
        let mut known = lines.known();
        let begun = Instant::now();
        known.follow(wanted("acme"), begun).unwrap();
        known.follow(wanted("beta"), begun).unwrap();
        known.forget("acme");
        assert!(known.last(&wanted("acme"), usize::MAX).is_empty());
        assert_eq!(known.last(&wanted("beta"), usize::MAX).len(), 1);
        assert!(known.keep(of("acme"), begun).is_none(), "nobody follows");
        assert!(known.keep(of("beta"), begun).is_some());
    }

    #[test]
    fn what_is_kept_and_what_is_followed_is_bounded() {
        let lines = PluginLines::new();
        for _ in 0..KEPT_MAX + 1 {
            lines.take(line("a", Level::INFO));
        }
        let mut known = lines.known();
        let last = known.last(&wanted("a", false), usize::MAX);
        assert_eq!((last.len(), last[0].seq), (KEPT_MAX, 2));
        let some = known.last(&wanted("a", false), 1_000);
        assert_eq!(some.last(), last.last());
        assert!(some.len() < 5);
        let now = Instant::now();
        for number in 0..LEASES_MAX {
            known
                .follow(wanted(&number.to_string(), true), now)
                .unwrap();
        }
        assert!(known.follow(wanted("a", true), now).is_err());
        known.follow(wanted("7", true), now).unwrap();
        known.follow(wanted("a", true), now + LEASE).unwrap();
        let mut long = Text::default();
        for _ in 0..2_000 {
            write!(long, "é!").unwrap();
        }
        assert!((LINE_BYTES_MAX - 2..=LINE_BYTES_MAX).contains(&long.0.len()));
    }
}
