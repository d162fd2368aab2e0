//! Prometheus' text format.

use std::collections::HashMap;
use std::fmt::{Display, Write as _};

use presence_sandbox::Histogram;

/// Every metric and its HELP text, a line each.
const HELP: &str = include_str!("help.txt");

/// Metrics, each with all of its values.
#[derive(Default)]
pub(crate) struct Exposition {
    metrics: Vec<String>,
    /// The place of each metric.
    places: HashMap<String, usize>,
    /// What every value is labelled with; empty for nothing.
    tenant: String,
}

impl Exposition {
    /// What follows is of a tenant; of none, if the name is empty.
    pub(crate) fn of_tenant(&mut self, name: &str) {
        self.tenant = match name {
            "" => String::new(),
            name => format!("tenant=\"{name}\""),
        };
    }

    /// A metric without labels.
    pub(crate) fn value(&mut self, name: &str, value: impl Display) {
        let labels = self.labels("");
        let text = self.metric(name);
        let _ = writeln!(text, "{name}{labels} {value}");
    }

    /// A metric with a value for each value of a label.
    pub(crate) fn values<V: Display>(
        &mut self,
        name: &str,
        label: &str,
        values: impl IntoIterator<Item = (impl Display, V)>,
    ) {
        self.metric(name);
        for (of, value) in values {
            let labels = self.labels(&format!("{label}=\"{of}\""));
            let text = self.metric(name);
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }

    /// A histogram for each value of a label; for one without, both are empty.
    pub(crate) fn histograms<'a>(
        &mut self,
        name: &str,
        label: &str,
        histograms: impl IntoIterator<Item = (&'a str, Histogram)>,
    ) {
        self.metric_as(name, "histogram");
        for (of, histogram) in histograms {
            let own = match label {
                "" => String::new(),
                label => format!("{label}=\"{of}\""),
            };
            let only = self.labels(&own);
            let bucket = |bound: &dyn Display| {
                let bound = format!("le=\"{bound}\"");
                match &*own {
                    "" => bound,
                    own => format!("{own},{bound}"),
                }
            };
            let Histogram {
                buckets,
                count,
                sum,
            } = histogram;
            let mut lines = String::new();
            for (bound, count) in buckets {
                let labels = self.labels(&bucket(&bound));
                let _ = writeln!(lines, "{name}_bucket{labels} {count}");
            }
            let labels = self.labels(&bucket(&"+Inf"));
            let _ = writeln!(lines, "{name}_bucket{labels} {count}");
            let _ = writeln!(lines, "{name}_sum{only} {sum}\n{name}_count{only} {count}");
            self.metric_as(name, "histogram").push_str(&lines);
        }
    }

    /// All of them.
    pub(crate) fn finish(self) -> String {
        self.metrics.concat()
    }

    /// The labels of a value that has this one of its own, or none.
    fn labels(&self, own: &str) -> String {
        let labels = [&*self.tenant, own];
        let labels: Vec<_> = labels.into_iter().filter(|it| !it.is_empty()).collect();
        match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        }
    }

    /// What has been said of a metric, to go on.
    fn metric(&mut self, name: &str) -> &mut String {
        let kind = match name.ends_with("_total") {
            true => "counter",
            false => "gauge",
        };
        self.metric_as(name, kind)
    }

    #[expect(clippy::indexing_slicing, reason = "the place of each metric is known")]
    fn metric_as(&mut self, name: &str, kind: &str) -> &mut String {
        let place = match self.places.get(name) {
            Some(place) => *place,
            None => {
                let help = help(name).unwrap_or_default();
                let head = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
                self.metrics.push(head);
                let place = self.metrics.len() - 1;
                self.places.insert(name.to_owned(), place);
                place
            }
        };
        &mut self.metrics[place]
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
            include_str!("../tenants.rs"),
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
        let text = text.finish();
        let lines: Vec<_> = text
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
        let text = text.finish();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "# HELP presence_online_users Users online.");
        assert_eq!(lines[1], "# TYPE presence_online_users gauge");
        assert_eq!(lines[2], "presence_online_users 3");
        assert_eq!(lines[4], "# TYPE presence_questions_total counter");
        assert_eq!(lines[5], "presence_questions_total{outcome=\"answered\"} 2");
    }
    #[test]
    fn values_of_several_tenants_stand_together_under_one_head() {
        let mut text = Exposition::default();
        for (tenant, online) in [("acme", 3), ("beta", 4), ("", 5)] {
            text.of_tenant(tenant);
            text.value("presence_online_users", online);
            text.values(
                "presence_questions_total",
                "outcome",
                [("answered", online)],
            );
        }
        let text = text.finish();
        let lines: Vec<_> = text
            .lines()
            .filter(|line| !line.starts_with("# H"))
            .collect();
        let expected = [
            "# TYPE presence_online_users gauge",
            "presence_online_users{tenant=\"acme\"} 3",
            "presence_online_users{tenant=\"beta\"} 4",
            "presence_online_users 5",
            "# TYPE presence_questions_total counter",
            "presence_questions_total{tenant=\"acme\",outcome=\"answered\"} 3",
            "presence_questions_total{tenant=\"beta\",outcome=\"answered\"} 4",
            "presence_questions_total{outcome=\"answered\"} 5",
        ];
        assert_eq!(lines, expected);
    }
}
