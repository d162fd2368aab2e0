//! The options that select dead letters.

use clap::builder::PossibleValuesParser;
use jiff::Timestamp;
use presence_core::message::Cause;
use presence_node::clock;
use presence_node::link::dlq_stream::DeadLetter;

use crate::arguments;

#[derive(clap::Args, Default)]
pub(super) struct Filter {
    /// Only those with this reason.
    #[arg(long, value_parser = PossibleValuesParser::new(Cause::ALL.map(Cause::as_str)))]
    reason: Option<String>,
    /// Only those of messages on this subject.
    #[arg(long)]
    subject: Option<String>,
    /// Only those on which this plugin failed.
    #[arg(long)]
    plugin: Option<String>,
    /// Only those since then: so long ago (30m, 2h, 7d), or a time (2026-11-28T12:00:00Z).
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<u64>,
    /// Only those until then.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<u64>,
}

impl Filter {
    /// Whether the filter takes every letter.
    pub(super) fn is_empty(&self) -> bool {
        let texts = [&self.reason, &self.subject, &self.plugin];
        texts.iter().all(|text| text.is_none()) && self.since.is_none() && self.until.is_none()
    }

    /// Whether the filter takes a letter.
    pub(super) fn takes(&self, letter: &DeadLetter) -> bool {
        let content = &letter.content;
        let is = |wanted: &Option<String>, found: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| found == Some(wanted))
        };
        is(&self.reason, Some(&content.reason))
            && is(&self.subject, Some(&content.subject))
            && is(&self.plugin, letter.plugin())
            && self.since.is_none_or(|since| content.timestamp >= since)
            && self.until.is_none_or(|until| content.timestamp <= until)
    }
}

/// Parses a time into milliseconds since the Unix epoch: a timestamp, or a span before now (`2h`).
fn moment(text: &str) -> Result<u64, String> {
    if let Ok(ago) = arguments::span(text) {
        let ago = u64::try_from(ago.as_millis()).unwrap_or(u64::MAX);
        return Ok(clock::now_ms().saturating_sub(ago));
    }
    let at = text.parse::<Timestamp>().ok();
    let at = at.and_then(|at| u64::try_from(at.as_millisecond()).ok());
    at.ok_or_else(|| {
        "write how long ago, such as 30m, 2h or 7d, or a time such as 2026-11-28T12:00:00Z".into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_so_long_ago_or_a_moment() {
        assert_eq!(moment("1970-01-01T00:00:01Z"), Ok(1_000));
        let hours = clock::now_ms() - moment("2h").unwrap();
        assert!((7_200_000..7_260_000).contains(&hours), "{hours}");
        assert!(moment("yesterday").is_err());
    }
}
