//! Prometheus' text format.

use std::fmt::{Display, Write as _};

use presence_sandbox::Histogram;

/// Every metric and its HELP text, a line each.
const HELP: &str = include_str!("help.txt");

/// Metrics as text.
#[derive(Default)]
pub(super) struct Exposition(pub(super) String);

impl Exposition {
    /// A metric without labels.
    pub(super) fn value(&mut self, name: &str, value: impl Display) {
        self.head(name);
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// A metric with a value for each value of a label.
    pub(super) fn values<V: Display>(
        &mut self,
        name: &str,
        label: &str,
        values: impl IntoIterator<Item = (impl Display, V)>,
    ) {
        self.head(name);
        for (of, value) in values {
            let _ = writeln!(self.0, "{name}{{{label}=\"{of}\"}} {value}");
        }
    }

    /// A histogram for each value of a label; for one without, both are empty.
    pub(super) fn histograms<'a>(
        &mut self,
        name: &str,
        label: &str,
        histograms: impl IntoIterator<Item = (&'a str, Histogram)>,
    ) {
        self.head_as(name, "histogram");
        for (of, histogram) in histograms {
            let (labels, only) = match label {
                "" => (String::new(), String::new()),
                label => (
                    format!("{label}=\"{of}\","),
                    format!("{{{label}=\"{of}\"}}"),
                ),
            };
            let Histogram {
                buckets,
                count,
                sum,
            } = histogram;
            for (bound, count) in buckets {
                let _ = writeln!(self.0, "{name}_bucket{{{labels}le=\"{bound}\"}} {count}");
            }
            let _ = writeln!(self.0, "{name}_bucket{{{labels}le=\"+Inf\"}} {count}");
            let _ = writeln!(self.0, "{name}_sum{only} {sum}\n{name}_count{only} {count}");
        }
    }

    /// What comes before a metric's values.
    fn head(&mut self, name: &str) {
        let kind = match name.ends_with("_total") {
            true => "counter",
            false => "gauge",
        };
        self.head_as(name, kind);
    }

    fn head_as(&mut self, name: &str, kind: &str) {
        let help = help(name).unwrap_or_default();
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }
}

fn help(name: &str) -> Option<&'static str> {
    let mut lines = HELP.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(of, _)| *of == name).map(|(_, help)| help)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_metric_has_a_help_text_and_every_help_text_a_metric() {
        let sources = [
            include_str!("../metrics.rs"),
            include_str!("on_disk.rs"),
            include_str!("runtime.rs"),
        ];
        let names = sources.iter().flat_map(|source| source.split('"'));
        let told: BTreeSet<_> = names
            .filter(|it| it.starts_with("presence_") || it.starts_with("process_"))
            .collect();
        let lines = HELP.lines().filter_map(|line| line.split_once(' '));
        let documented: Vec<_> = lines.map(|(name, _)| name).collect();
        assert_eq!(documented.len(), HELP.lines().count());
        assert_eq!(documented.len(), told.len(), "each once");
        assert_eq!(documented.into_iter().collect::<BTreeSet<_>>(), told);
    }

    #[test]
    fn a_histogram_has_its_buckets_with_their_labels_and_an_endless_one() {
        let histogram = Histogram {
            buckets: vec![(0.001, 2)],
            count: 3,
            sum: 1.5,
        };
        let mut text = Exposition::default();
        text.histograms(
            "presence_plugin_call_seconds",
            "plugin",
            [("a", histogram.clone())],
        );
        text.histograms("presence_decision_seconds", "", [("", histogram)]);
        let lines: Vec<_> = text
            .0
            .lines()
            .filter(|line| !line.starts_with("# H"))
            .collect();
        let expected = [
            "# TYPE presence_plugin_call_seconds histogram",
            "presence_plugin_call_seconds_bucket{plugin=\"a\",le=\"0.001\"} 2",
            "presence_plugin_call_seconds_bucket{plugin=\"a\",le=\"+Inf\"} 3",
            "presence_plugin_call_seconds_sum{plugin=\"a\"} 1.5",
            "presence_plugin_call_seconds_count{plugin=\"a\"} 3",
            "# TYPE presence_decision_seconds histogram",
            "presence_decision_seconds_bucket{le=\"0.001\"} 2",
            "presence_decision_seconds_bucket{le=\"+Inf\"} 3",
            "presence_decision_seconds_sum 1.5",
            "presence_decision_seconds_count 3",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_metric_is_written_with_its_help_text_and_type() {
        let mut text = Exposition::default();
        text.value("presence_online_users", 3);
        text.values("presence_questions_total", "outcome", [("answered", 2)]);
        let lines: Vec<_> = text.0.lines().collect();
        assert_eq!(lines[0], "# HELP presence_online_users Users online.");
        assert_eq!(lines[1], "# TYPE presence_online_users gauge");
        assert_eq!(lines[2], "presence_online_users 3");
        assert_eq!(lines[4], "# TYPE presence_questions_total counter");
        assert_eq!(lines[5], "presence_questions_total{outcome=\"answered\"} 2");
    }
}
