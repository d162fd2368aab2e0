//! The node's own log on standard error: its filter, and the format of its lines.

use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicBool, Ordering};

use presence_config::escape::{Bounded, JsonLog, LOGGED_BYTES_MAX, Line};
use presence_config::log_filter::{FIX, VARIABLE, level, parse};
use presence_config::{Log, LogFormat};
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::fmt::{FormatFields, layer};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, registry};

use super::plugin_lines;
use crate::link::connection::CONNECTOR_LOG;

/// Whether lines may name users.
static NAMES_USERS: AtomicBool = AtomicBool::new(true);

/// An id of a user or a connection for a line of the log, or a placeholder if ids are hidden.
pub(crate) fn user(id: &str) -> &str {
    match NAMES_USERS.load(Ordering::Relaxed) {
        true => id,
        false => "(hidden)",
    }
}

/// Begins the log.
///
/// # Errors
/// If the log filter, from `PRESENCE_LOG` or the configuration, is invalid.
pub(crate) fn begin(log: &Log) -> anyhow::Result<()> {
    NAMES_USERS.store(log.user_ids, Ordering::Relaxed);
    let level = level(log)?;
    let filter = parse(&level).map_err(|what| anyhow::anyhow!("{VARIABLE} {what}; {FIX}"))?;
    #[expect(clippy::disallowed_methods, reason = "lines are escaped by `fields`")]
    let lines = match log.format {
        LogFormat::Text => layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
            .fmt_fields(fields())
            .boxed(),
        LogFormat::Json => layer().json().with_writer(JsonLog).boxed(),
    };
    // The broker's client logs each failed attempt to connect; the node logs the failure once.
    let is_quiet = filter
        .max_level_hint()
        .is_some_and(|max| max < LevelFilter::DEBUG);
    let is_told = filter_fn(move |of| !(is_quiet && of.target() == CONNECTOR_LOG));
    registry()
        .with(lines.with_filter(filter.and(is_told)))
        .with(plugin_lines::layer())
        .init();
    Ok(())
}

/// Writes the fields of a line: the message, and `name=value` for each other field. Escapes
/// everything that would end the line or control a terminal.
fn fields() -> impl for<'a> FormatFields<'a> + Send + Sync + 'static {
    debug_fn(|writer, field, value| {
        let name = field.name();
        if name != "message" {
            if writer.has_ansi_escapes() {
                write!(writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m")?;
            } else {
                write!(writer, "{name}=")?;
            }
        }
        let value = format_args!("{value:?}");
        write!(writer, "{}", Bounded(Line(value), LOGGED_BYTES_MAX))
    })
    .delimited(" ")
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn one_event_is_one_line_whatever_it_says() {
        let written = Written::default();
        let writer = written.clone();
        let log = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .fmt_fields(fields())
            .finish();
        tracing::subscriber::with_default(log, || {
            let error = anyhow::anyhow!("gone\n2026-11-28 ERROR forged\u{1b}[2J");
            let long = "x".repeat(100_000);
            tracing::info!(long, "{}", "y".repeat(100_000));
            tracing::warn!(%error, user = "a\nb\u{202e}", count = 3, "a\u{2028}{}", "\u{9b}c\r");
        });
        let bytes = written.0.lock().unwrap().clone();
        let text = String::from_utf8(bytes).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].len() < 40_000 && lines[0].contains("(83616 bytes more)"));
        assert!(
            text.ends_with(
                "a\\u{2028}\\u{9b}c\\r error=gone\\n2026-11-28 ERROR forged\\u{1b}[2J \
             user=\"a\\nb\\u{202e}\" count=3\n"
            ),
            "{text}"
        );
        assert!(!text.contains('\u{1b}'));
    }
}
