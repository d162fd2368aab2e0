//! What a running node's metrics are: names, types, labels and their values.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};

use super::promql::Query;

/// The functions that count how much a counter grew.
const OF_COUNTERS: [&str; 3] = ["rate", "increase", "irate"];

/// What Prometheus adds to every series.
const ADDED: [&str; 2] = ["job", "instance"];

/// The metrics of an exposition.
pub(super) struct Metrics(BTreeMap<String, Metric>);

#[derive(Default)]
struct Metric {
    counts: bool,
    /// Each label with its values.
    labels: BTreeMap<String, BTreeSet<String>>,
}

impl Metrics {
    /// The metrics that a node exposes, with those that Prometheus adds for any target.
    pub(super) fn read(exposition: &str) -> Result<Self> {
        let mut metrics = BTreeMap::from([("up".to_owned(), Metric::default())]);
        let mut types = BTreeMap::new();
        for line in exposition.lines() {
            if let Some(head) = line.strip_prefix("# TYPE ") {
                let (name, kind) = head.split_once(' ').context("a metric has a type")?;
                types.insert(name.to_owned(), kind == "counter");
                metrics.insert(name.to_owned(), Metric::default());
                continue;
            }
            if line.starts_with('#') {
                continue;
            }
            let end = line.find(['{', ' ']).context("a sample has a name")?;
            let (name, rest) = line.split_at(end);
            let of_histogram = ["_bucket", "_sum", "_count"];
            let is_part = of_histogram
                .iter()
                .filter_map(|part| name.strip_suffix(part))
                .any(|whole| types.contains_key(whole));
            let metric = metrics.entry(name.to_owned()).or_default();
            metric.counts = is_part || types.get(name).copied().unwrap_or_default();
            let labels = rest.strip_prefix('{').and_then(|it| it.split_once('}'));
            for label in labels.iter().flat_map(|(labels, _)| labels.split(',')) {
                let (label, value) = label.split_once('=').context("a label has a value")?;
                let values = metric.labels.entry(label.to_owned()).or_default();
                values.insert(value.trim_matches('"').to_owned());
            }
        }
        // A histogram has no series of its own name.
        metrics.retain(|name, metric| {
            !metric.labels.is_empty() || types.contains_key(name) || name == "up"
        });
        Ok(Self(metrics))
    }

    /// Checks that a query uses only metrics, labels and values that a node has.
    ///
    /// # Errors
    /// Names what no node has.
    pub(super) fn check(&self, query: &Query) -> Result<()> {
        ensure!(!query.selectors.is_empty(), "it asks for no metric");
        let mut labels: BTreeSet<_> = ADDED.into_iter().collect();
        for selector in &query.selectors {
            let name = &*selector.metric;
            let metric = self.0.get(name);
            let metric = metric.with_context(|| format!("there is no metric {name}"))?;
            let counted = selector.function.as_deref();
            let counted = counted.is_some_and(|it| OF_COUNTERS.contains(&it));
            ensure!(
                counted == metric.counts,
                "{name} is {}a counter",
                if metric.counts { "" } else { "not " }
            );
            labels.extend(metric.labels.keys().map(|label| &**label));
            for (label, operator, value) in &selector.matchers {
                if ADDED.contains(&&**label) {
                    continue;
                }
                let values = metric.labels.get(label);
                let values = values.with_context(|| format!("{name} has no label {label}"))?;
                ensure!(operator == "=", "{label} of {name} is to be named with `=`");
                ensure!(values.contains(value), "{name} has no {label}=\"{value}\"");
            }
        }
        for label in &query.groups {
            ensure!(labels.contains(&**label), "nothing has the label {label}");
        }
        Ok(())
    }
}
