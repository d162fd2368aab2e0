//! What plugins log, and what the log says of them, for operators who follow it over NATS. The
//! last lines are kept; while somebody follows a plugin, its lines are handed on as well.
//!
//! There is one of this in a process, as there is one log.

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

/// The target of lines that plugins write.
const TARGET: &str = "plugin";

/// The span of a pipeline.
const PIPELINE: &str = "pipeline";

/// How many lines are kept, of all plugins together.
const KEPT_MAX: usize = 500;

/// The longest line, in bytes. What is longer is cut.
const LINE_BYTES_MAX: usize = 4_096;

/// How many lines may wait to be published.
const WAITING_MAX: usize = 1_024;

/// For how long a plugin's lines are handed on, unless somebody asks again.
pub(crate) const LEASE: Duration = Duration::from_secs(30);

/// How many leases there may be.
const LEASES_MAX: usize = 64;

static LINES: PluginLines = PluginLines::new();

/// The lines of a process.
pub(crate) struct PluginLines {
    known: Mutex<LinesState>,
    /// Whether somebody follows what is only for debugging.
    is_debug_wanted: AtomicBool,
    publisher: OnceLock<mpsc::Sender<PluginLine>>,
}

struct LinesState {
    kept: VecDeque<PluginLine>,
    /// When the first line came; 0 before.
    epoch: u64,
    /// The number of the last line.
    last: u64,
    leases: Vec<Lease>,
}

/// Whose lines are handed on, and until when.
struct Lease {
    wanted: FollowRequest,
    until: Instant,
    /// Lines that could not be handed on since the last that was.
    left_out: u64,
}

/// Whose lines somebody wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FollowRequest {
    /// What the tenant's lines are known by; empty for the default one.
    pub(crate) tenant: String,
    pub(crate) plugin: String,
    /// Whether lines for debugging are among them.
    pub(crate) is_debug: bool,
}

/// A line of a plugin, or about one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PluginLine {
    /// When the process began to keep lines, and the line's number since then, from 1 on.
    pub(crate) epoch: u64,
    pub(crate) seq: u64,
    pub(crate) timestamp: u64,
    pub(crate) plugin: String,
    /// What the tenant's lines are known by, or, as it is published, its prefix.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) tenant: String,
    /// Of the pipeline; none where the line is about the plugin in all of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) generation: Option<u64>,
    pub(crate) level: &'static str,
    pub(crate) text: String,
    /// How many lines before it could not be published.
    #[serde(skip_serializing_if = "is_none")]
    pub(crate) left_out: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_none(count: &u64) -> bool {
    *count == 0
}

/// The span of a pipeline: what is logged in it bears its tenant and generation.
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

/// Where lines that are followed come out. It is asked for once.
pub(crate) fn followed() -> mpsc::Receiver<PluginLine> {
    let (publisher, lines) = mpsc::channel(WAITING_MAX);
    // A second one gets nothing.
    let _ = LINES.publisher.set(publisher);
    lines
}

/// Hands on a plugin's lines for [`LEASE`] from now on.
///
/// # Errors
/// If too much is followed.
pub(crate) fn follow(wanted: FollowRequest) -> Result<(), String> {
    LINES.known().follow(wanted, Instant::now())?;
    expire();
    Ok(())
}

/// The last lines of a plugin, as many as fit into so many bytes.
pub(crate) fn last(wanted: &FollowRequest, bytes_max: usize) -> Vec<PluginLine> {
    LINES.known().last(wanted, bytes_max)
}

/// Forgets the lines of a tenant, and who follows them.
pub(crate) fn forget(tenant: &str) {
    LINES.known().forget(tenant);
    expire();
}

/// Ends leases that nobody has renewed. To be called now and then.
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
        // What is logged nowhere isn't even made.
        tracing::callsite::rebuild_interest_cache();
    }
}

impl PluginLines {
    /// None yet.
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

    /// A line was logged.
    fn take(&self, mut line: PluginLine) {
        let mut known = self.known();
        // Here, so that the times of lines are in the order of their numbers.
        line.timestamp = clock::now_ms();
        let handed = known.keep(line, Instant::now());
        let (Some(publisher), Some((line, lease))) = (self.publisher.get(), handed) else {
            return;
        };
        // A thread that logs waits for nobody.
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
            // What is escaped may be six times as long.
            bytes += 256 + line.text.len() * 2;
            bytes <= bytes_max
        };
        let mut last: Vec<_> = of_it.take_while(fits).cloned().collect();
        last.reverse();
        last
    }

    /// Keeps a line. Returns it with whom it is to be handed to, if anybody follows it.
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
    /// Whether a line is one of a plugin, or of the node about one.
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

/// Of which pipeline a line is.
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

/// What a line says.
#[derive(Default)]
struct LineFields {
    plugin: String,
    text: Text,
}

/// Text that ends where it is long enough.
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
        // What it says comes first, whatever the order of the fields.
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
