//! Encodes metrics and traces as OTLP messages.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use presence_otlp::{
    self as otlp, AnyValue, Buckets, CUMULATIVE, Data, Gauge, KeyValue, MetricsRequest, Number,
    NumberValue, Resource, ResourceMetrics, ResourceSpans, Scope, ScopeMetrics, ScopeSpans, Span,
    Status, Sum, TracesRequest,
};

use super::{HandledTrace, Trace};
use crate::ops::http::{Exposition, Metric, MetricKind as Kind, MetricValue as Value, Sample};

/// The flags of a span: it is sampled, and the flag for a remote parent is valid.
const SAMPLED: u32 = 0x01 | 0x100;
/// The flag for a remote parent: the parent span is in another process.
const PARENT_IS_REMOTE: u32 = 0x200;

/// Encodes metrics, and remembers since when each series has been counting.
pub(super) struct Encoder {
    resource: Resource,
    /// When metrics were last encoded, in nanoseconds since 1970; at first, when the process
    /// started.
    encoded_at: u64,
    /// The last value of each growing series, and since when it has been counting. If the value has
    /// become less, it counts from zero again, for example because its plugin was replaced.
    series: HashMap<String, (f64, u64)>,
}

impl Encoder {
    /// For the process of this node, which started at this time.
    pub(super) fn new(node: &str, started: SystemTime) -> Self {
        Self {
            resource: Resource {
                attributes: vec![
                    text("service.name", "presence"),
                    text("service.version", env!("CARGO_PKG_VERSION")),
                    text("service.instance.id", node),
                ],
            },
            encoded_at: nanos(started),
            series: HashMap::new(),
        }
    }

    /// Encodes all metrics, with the time at which they were taken.
    pub(super) fn metrics(&mut self, all: &Exposition, now: SystemTime) -> MetricsRequest {
        let now = nanos(now);
        let before = std::mem::take(&mut self.series);
        let metrics = all.metrics().iter();
        let metrics = metrics.map(|metric| self.metric(metric, &before, now));
        let metrics = metrics.collect();
        self.encoded_at = now;
        MetricsRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource.clone()),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(scope()),
                    metrics,
                }],
            }],
        }
    }

    fn metric(
        &mut self,
        metric: &Metric,
        before: &HashMap<String, (f64, u64)>,
        now: u64,
    ) -> otlp::Metric {
        let mut numbers = |grows: bool| {
            let points = metric.samples.iter().filter_map(|sample| {
                let (number, value) = match sample.value {
                    Value::Whole(value) => {
                        let whole = i64::try_from(value).unwrap_or(i64::MAX);
                        (value as f64, NumberValue::Int(whole))
                    }
                    Value::Real(value) => (value, NumberValue::Double(value)),
                    Value::Histogram(_) => return None,
                };
                let since = match grows {
                    true => self.since(metric.name, sample, number, before),
                    false => 0,
                };
                Some(Number {
                    attributes: attributes(sample),
                    start_time_unix_nano: since,
                    time_unix_nano: now,
                    value: Some(value),
                })
            });
            points.collect()
        };
        let data = match metric.kind {
            Kind::Counter => Data::Sum(Sum {
                data_points: numbers(true),
                aggregation_temporality: CUMULATIVE,
                is_monotonic: true,
            }),
            Kind::Gauge => Data::Gauge(Gauge {
                data_points: numbers(false),
            }),
            Kind::Histogram => {
                let points = metric.samples.iter().filter_map(|sample| {
                    let Value::Histogram(histogram) = &sample.value else {
                        return None;
                    };
                    let count = histogram.count;
                    // In Prometheus' format, each bucket includes the smaller ones.
                    let mut below = 0;
                    let ends = histogram.buckets.iter().map(|(_, count)| *count);
                    let counts = ends.chain([count]).map(|end| {
                        let own = end.saturating_sub(below);
                        below = end;
                        own
                    });
                    Some(Buckets {
                        attributes: attributes(sample),
                        start_time_unix_nano: self.since(metric.name, sample, count as f64, before),
                        time_unix_nano: now,
                        count,
                        sum: Some(histogram.sum),
                        bucket_counts: counts.collect(),
                        explicit_bounds: histogram
                            .buckets
                            .iter()
                            .map(|(bound, _)| *bound)
                            .collect(),
                    })
                });
                Data::Histogram(otlp::Histogram {
                    data_points: points.collect(),
                    aggregation_temporality: CUMULATIVE,
                })
            }
        };
        otlp::Metric {
            name: metric.name.into(),
            description: metric.help.into(),
            unit: unit(metric.name).into(),
            data: Some(data),
        }
    }

    /// Since when a series has been counting.
    fn since(
        &mut self,
        name: &str,
        sample: &Sample,
        now: f64,
        before: &HashMap<String, (f64, u64)>,
    ) -> u64 {
        let labels = sample
            .labels()
            .map(|(label, of)| format!("\n{label}\n{of}"));
        let series = name.to_owned() + &labels.collect::<String>();
        let since = match before.get(&series) {
            Some((last, since)) if *last <= now => *since,
            // The series is new or counts again: it was zero when metrics were last encoded.
            _ => self.encoded_at,
        };
        self.series.insert(series, (now, since));
        since
    }

    /// Encodes traces as spans.
    pub(super) fn traces(&self, traces: &[Trace]) -> TracesRequest {
        let spans = traces.iter().flat_map(spans);
        TracesRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource.clone()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope()),
                    spans: spans.collect(),
                }],
            }],
        }
    }
}

/// The spans of a message: from its arrival to its end, the handling by its shard, and within that
/// each call of a stage.
fn spans(trace: &Trace) -> Vec<Span> {
    let Trace {
        handled,
        tenant,
        ended,
    } = trace;
    let HandledTrace {
        begun,
        shard,
        generation,
        from,
        until,
        published,
        calls,
    } = handled;
    let at = |moment: Instant| {
        let since = moment.saturating_duration_since(begun.arrived);
        nanos(begun.arrived_at + since)
    };
    let id = || fastrand::u64(1..).to_be_bytes().to_vec();
    let (root, decided) = (id(), id());
    let span = |id: Vec<u8>, parent: Vec<u8>, name: String, from: u64, until: u64| Span {
        trace_id: begun.trace.to_vec(),
        span_id: id,
        parent_span_id: parent,
        name,
        kind: otlp::INTERNAL,
        flags: SAMPLED,
        start_time_unix_nano: from,
        end_time_unix_nano: until,
        ..Span::default()
    };
    let mut attributes = vec![
        text("messaging.system", "nats"),
        text("messaging.operation.type", "process"),
        text("messaging.destination.name", &begun.subject),
        number("presence.shard", u64::from(*shard)),
        number("presence.generation", *generation),
        number("presence.published", *published as u64),
    ];
    attributes.extend(tenant.as_ref().map(|name| text("presence.tenant", name)));
    let parent = begun.parent.map(Vec::from);
    let remote = parent.as_ref().map_or(0, |_| PARENT_IS_REMOTE);
    let name = format!("process {}", begun.subject);
    let arrived = at(begun.arrived);
    let whole = Span {
        kind: otlp::CONSUMER,
        flags: SAMPLED | remote,
        attributes,
        ..span(
            root.clone(),
            parent.unwrap_or_default(),
            name,
            arrived,
            at(*ended),
        )
    };
    let decision = span(
        decided.clone(),
        root,
        "decide".into(),
        at(*from),
        at(*until),
    );
    let calls = calls.iter().map(|call| {
        let ended = at(call.began + call.took);
        let name = format!("{} {}", call.role, call.plugin);
        Span {
            attributes: vec![
                text("presence.plugin", &call.plugin),
                text("presence.role", call.role),
            ],
            // The error text is left out: it may name users.
            status: call.has_failed.then(|| Status {
                code: otlp::ERROR,
                ..Status::default()
            }),
            ..span(id(), decided.clone(), name, at(call.began), ended)
        }
    });
    [whole, decision].into_iter().chain(calls).collect()
}

fn scope() -> Scope {
    Scope {
        name: "presence".into(),
        version: env!("CARGO_PKG_VERSION").into(),
    }
}

fn attributes(sample: &Sample) -> Vec<KeyValue> {
    let labels = sample.labels();
    labels.map(|(label, of)| text(label, of)).collect()
}

fn text(key: &str, value: &str) -> KeyValue {
    attribute(key, otlp::Value::Text(value.into()))
}

fn number(key: &str, value: u64) -> KeyValue {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    attribute(key, otlp::Value::Int(value))
}

fn attribute(key: &str, value: otlp::Value) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(value) }),
    }
}

/// The UCUM unit of a metric, from its name.
fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    let units = [("_seconds", "s"), ("_milliseconds", "ms"), ("_bytes", "By")];
    let known = units.iter().find(|(ending, _)| name.ends_with(ending));
    known.map_or("", |(_, unit)| unit)
}

fn nanos(at: SystemTime) -> u64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use presence_sandbox::Histogram;

    use super::*;

    fn data(request: &MetricsRequest, name: &str) -> Data {
        let metrics = &request.resource_metrics[0].scope_metrics[0].metrics;
        let metric = metrics.iter().find(|it| it.name == name).unwrap();
        metric.data.clone().unwrap()
    }

    fn points(data: Data) -> Vec<Number> {
        match data {
            Data::Sum(sum) => {
                assert!(sum.is_monotonic);
                assert_eq!(sum.aggregation_temporality, 2, "cumulative");
                sum.data_points
            }
            Data::Gauge(gauge) => gauge.data_points,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_counter_counts_from_the_start_and_anew_where_it_is_less_than_it_was() {
        let start = UNIX_EPOCH + Duration::from_secs(1);
        let mut encoder = Encoder::new("n", start);
        let mut encoded = |second: u64, value: u64| {
            let mut all = Exposition::default();
            all.of_tenant("acme");
            all.values("presence_plugin_failures_total", "plugin", [("a", value)]);
            let now = UNIX_EPOCH + Duration::from_secs(second);
            let request = encoder.metrics(&all, now);
            let points = points(data(&request, "presence_plugin_failures_total"));
            let labels: Vec<_> = points[0].attributes.iter().map(|it| &*it.key).collect();
            assert_eq!(labels, ["tenant", "plugin"]);
            let [since, at] = [points[0].start_time_unix_nano, points[0].time_unix_nano];
            let value = points[0].value.unwrap();
            (since / 1_000_000_000, at / 1_000_000_000, value)
        };
        let whole = NumberValue::Int;
        assert_eq!(encoded(10, 3), (1, 10, whole(3)));
        assert_eq!(encoded(20, 5), (1, 20, whole(5)));
        assert_eq!(encoded(30, 2), (20, 30, whole(2)), "it was replaced");
        assert_eq!(encoded(40, 2), (20, 40, whole(2)));
    }

    #[test]
    fn a_histogram_has_each_call_in_one_bucket_alone() {
        let mut encoder = Encoder::new("n", UNIX_EPOCH);
        let mut all = Exposition::default();
        let histogram = Histogram {
            buckets: vec![(0.001, 2), (0.01, 2), (0.1, 6)],
            count: 7,
            sum: 1.5,
        };
        all.histograms("presence_decision_seconds", "", [("", histogram)]);
        all.value("presence_online_users", 4_u64);
        let request = encoder.metrics(&all, UNIX_EPOCH);
        let Data::Histogram(encoded) = data(&request, "presence_decision_seconds") else {
            panic!("it is a histogram");
        };
        let point = &encoded.data_points[0];
        assert_eq!(point.bucket_counts, [2, 0, 4, 1]);
        assert_eq!(point.explicit_bounds, [0.001, 0.01, 0.1]);
        assert_eq!((point.count, point.sum), (7, Some(1.5)));
        let gauge = points(data(&request, "presence_online_users"));
        assert_eq!(gauge[0].start_time_unix_nano, 0);
        assert_eq!(gauge[0].value, Some(NumberValue::Int(4)));
        assert_eq!(unit("presence_decision_seconds"), "s");
        assert_eq!(unit("process_cpu_seconds_total"), "s");
        assert_eq!(unit("presence_state_lag_milliseconds"), "ms");
        assert_eq!(unit("presence_online_users"), "");
    }
}
