//! Samples of the metrics for the page, as JSON. The last minutes of the plotted metrics are kept,
//! so that a newly opened page shows them at once.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;

/// How many samples are kept, one a second.
const KEPT: usize = 300;

/// The metrics that are kept: the page shows plots or rates of them.
const PLOTTED: [&str; 13] = [
    "presence_connections",
    "presence_correction_messages_total",
    "presence_dead_letters_total",
    "presence_decision_seconds",
    "presence_inputs_total",
    "presence_input_queue_bytes",
    "presence_journal_bytes",
    "presence_online_users",
    "presence_published_total",
    "presence_questions_total",
    "presence_slow_consumer_drops_total",
    "presence_stale_inputs_total",
    "process_start_time_seconds",
];

/// The kept samples, with the time of each.
#[derive(Default)]
pub(super) struct Samples(VecDeque<(u64, Arc<str>)>);

impl Samples {
    /// Keeps the plotted metrics of an exposition.
    pub(super) fn keep(&mut self, at: u64, exposition: &str) {
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        let is_plotted = |name: &str| {
            let parts = ["_bucket", "_sum", "_count"];
            let whole = parts.iter().find_map(|part| name.strip_suffix(part));
            PLOTTED.contains(&name) || whole.is_some_and(|it| PLOTTED.contains(&it))
        };
        let metrics = object(exposition, is_plotted);
        let sample = format!("{{\"at\":{at},\"metrics\":{metrics}}}");
        self.0.push_back((at, sample.into()));
    }

    /// The samples after a time, as a JSON list.
    pub(super) fn after(&self, at: u64) -> String {
        let newer = self.0.iter().filter(|(time, _)| *time > at);
        let newer: Vec<_> = newer.map(|(_, sample)| &**sample).collect();
        format!("[{}]", newer.join(","))
    }
}

/// The samples of an exposition as a JSON object: the value for each name with its labels.
pub(super) fn object(exposition: &str, is_wanted: impl Fn(&str) -> bool) -> String {
    let mut json = String::with_capacity(exposition.len() / 2);
    json.push('{');
    for line in exposition.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let name = series.split('{').next().unwrap_or_default();
        // JSON has no infinite numbers and no NaN.
        let is_number = value.parse::<f64>().is_ok_and(f64::is_finite);
        if is_number && is_wanted(name) {
            let comma = if json.len() > 1 { "," } else { "" };
            let series = serde_json::Value::from(series);
            let _ = write!(json, "{comma}{series}:{value}");
        }
    }
    json.push('}');
    json
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const EXPOSITION: &str = "# HELP presence_connections Live connections.\n\
                              presence_connections 3\n\
                              presence_inputs_total{kind=\"connect\"} 5\n\
                              presence_decision_seconds_bucket{le=\"+Inf\"} 2\n\
                              presence_state_bytes 7\n\
                              presence_odd NaN\n";

    #[test]
    fn a_sample_is_what_the_metrics_say() {
        let all: Value = serde_json::from_str(&object(EXPOSITION, |_| true)).unwrap();
        let expected = json!({
            "presence_connections": 3,
            "presence_inputs_total{kind=\"connect\"}": 5,
            "presence_decision_seconds_bucket{le=\"+Inf\"}": 2,
            "presence_state_bytes": 7,
        });
        assert_eq!(all, expected);
        assert_eq!(object("", |_| true), "{}");
    }

    #[test]
    fn what_is_plotted_of_the_last_minutes_is_kept() {
        let mut samples = Samples::default();
        for at in 1..=310 {
            samples.keep(at, EXPOSITION);
        }
        let kept: Vec<Value> = serde_json::from_str(&samples.after(0)).unwrap();
        assert_eq!((kept.len(), &kept[0]["at"]), (KEPT, &json!(11)));
        assert_eq!(kept[0]["metrics"].as_object().unwrap().len(), 3);
        let newer: Vec<Value> = serde_json::from_str(&samples.after(308)).unwrap();
        assert_eq!(newer.len(), 2);
    }
}
