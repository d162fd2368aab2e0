//! Metrics with their values, for `/metrics` in Prometheus' text format and for an OTLP collector.

use std::collections::HashMap;
use std::fmt::{self, Display, Write as _};
use std::sync::Arc;

use presence_sandbox::Histogram;

/// Every metric with its HELP text, one per line.
const HELP: &str = include_str!("help.txt");

/// Metrics, each with all of its values.
#[derive(Default)]
pub(crate) struct Exposition {
    metrics: Vec<Metric>,
    /// The index of each metric.
    places: HashMap<&'static str, usize>,
    /// The tenant that values are labelled with, if any.
    tenant: Option<Arc<str>>,
}

/// A metric.
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) kind: Kind,
    pub(crate) samples: Vec<Sample>,
}

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The values only grow, from the start of the process or of the thing that is counted.
    Counter,
    Gauge,
    Histogram,
}

/// One value of a metric.
pub(crate) struct Sample {
    tenant: Option<Arc<str>>,
    own: Option<(&'static str, String)>,
    pub(crate) value: Value,
}

/// A value.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Whole(u64),
    Real(f64),
    Histogram(Histogram),
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<u8> for Value {
    fn from(value: u8) -> Self {
        Self::Whole(value.into())
    }
}

impl From<usize> for Value {
    fn from(value: usize) -> Self {
        Self::Whole(value as u64)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

impl Sample {
    /// Its labels.
    pub(crate) fn labels(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let tenant = self.tenant.iter().map(|name| ("tenant", &**name));
        tenant.chain(self.own.iter().map(|(label, of)| (*label, &**of)))
    }
}

impl Exposition {
    /// Labels all following values with this tenant; with none if the name is empty.
    pub(crate) fn of_tenant(&mut self, name: &str) {
        self.tenant = (!name.is_empty()).then(|| name.into());
    }

    /// Adds a metric without labels.
    pub(crate) fn value(&mut self, name: &'static str, value: impl Into<Value>) {
        self.add(name, None, value.into());
    }

    /// Adds a metric with one value for each value of a label.
    pub(crate) fn values<V: Into<Value>>(
        &mut self,
        name: &'static str,
        label: &'static str,
        values: impl IntoIterator<Item = (impl Display, V)>,
    ) {
        self.metric(name, kind_of(name));
        for (of, value) in values {
            self.add(name, Some((label, of.to_string())), value.into());
        }
    }

    /// Adds a histogram for each value of a label. `label` is empty for a histogram without one.
    pub(crate) fn histograms<'a>(
        &mut self,
        name: &'static str,
        label: &'static str,
        histograms: impl IntoIterator<Item = (&'a str, Histogram)>,
    ) {
        self.metric(name, Kind::Histogram);
        for (of, histogram) in histograms {
            let own = (!label.is_empty()).then(|| (label, of.to_owned()));
            self.add(name, own, Value::Histogram(histogram));
        }
    }

    /// All metrics.
    #[cfg(feature = "otlp")]
    pub(crate) fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    /// All metrics in Prometheus' text format.
    pub(crate) fn finish(self) -> String {
        let mut text = String::new();
        for metric in &self.metrics {
            // Writing to a string can't fail.
            let _ = metric.write(&mut text);
        }
        text
    }

    fn add(&mut self, name: &'static str, own: Option<(&'static str, String)>, value: Value) {
        let kind = match value {
            Value::Histogram(_) => Kind::Histogram,
            Value::Whole(_) | Value::Real(_) => kind_of(name),
        };
        let tenant = self.tenant.clone();
        let sample = Sample { tenant, own, value };
        self.metric(name, kind).samples.push(sample);
    }

    /// The metric of this name, which is added if it isn't there yet.
    #[expect(clippy::indexing_slicing, reason = "the place of each metric is known")]
    fn metric(&mut self, name: &'static str, kind: Kind) -> &mut Metric {
        let metrics = &mut self.metrics;
        let place = self.places.entry(name).or_insert_with(|| {
            metrics.push(Metric {
                name,
                help: help(name).unwrap_or_default(),
                kind,
                samples: Vec::new(),
            });
            metrics.len() - 1
        });
        &mut self.metrics[*place]
    }
}

impl Metric {
    fn write(&self, text: &mut String) -> fmt::Result {
        let (name, help, kind) = (self.name, self.help, self.kind.as_str());
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
        for sample in &self.samples {
            let labels = |bound: Option<&dyn Display>| {
                let known = sample.labels();
                let mut labels: Vec<_> = known.map(|(of, it)| format!("{of}=\"{it}\"")).collect();
                labels.extend(bound.map(|bound| format!("le=\"{bound}\"")));
                match labels.is_empty() {
                    true => String::new(),
                    false => format!("{{{}}}", labels.join(",")),
                }
            };
            match &sample.value {
                Value::Whole(value) => writeln!(text, "{name}{} {value}", labels(None))?,
                Value::Real(value) => writeln!(text, "{name}{} {value}", labels(None))?,
                Value::Histogram(histogram) => {
                    for (bound, count) in &histogram.buckets {
                        writeln!(text, "{name}_bucket{} {count}", labels(Some(bound)))?;
                    }
                    let Histogram { count, sum, .. } = histogram;
                    writeln!(text, "{name}_bucket{} {count}", labels(Some(&"+Inf")))?;
                    let labels = labels(None);
                    writeln!(
                        text,
                        "{name}_sum{labels} {sum}\n{name}_count{labels} {count}"
                    )?;
                }
            }
        }
        Ok(())
    }
}

/// The type of a metric without buckets, by its name.
fn kind_of(name: &str) -> Kind {
    match name.ends_with("_total") {
        true => Kind::Counter,
        false => Kind::Gauge,
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
            include_str!("fleet.rs"),
            include_str!("on_disk.rs"),
            include_str!("runtime.rs"),
        ];
        let names = sources.iter().flat_map(|source| source.split('"'));
        let listed_names: BTreeSet<_> = names
            .filter(|it| it.starts_with("presence_") || it.starts_with("process_"))
            .collect();
        let lines = HELP.lines().filter_map(|line| line.split_once(' '));
        let documented: Vec<_> = lines.map(|(name, _)| name).collect();
        assert_eq!(documented.len(), HELP.lines().count());
        assert_eq!(documented.len(), listed_names.len(), "each once");
        assert_eq!(
            documented.into_iter().collect::<BTreeSet<_>>(),
            listed_names
        );
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
        text.value("presence_online_users", 3_u64);
        text.values("presence_questions_total", "outcome", [("answered", 2_u64)]);
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
        for (tenant, online) in [("acme", 3_u64), ("beta", 4), ("", 5)] {
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
