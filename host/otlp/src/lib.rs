//! The protobuf messages of OTLP (opentelemetry-proto 1.x) for metrics and traces. Names and tags
//! are those of the protocol, which only ever adds fields. Fields that this program doesn't send
//! are left out here, and skipped when a message is read.
//!
//! `golden/` holds messages that the crate opentelemetry-proto has written. The tests compare these
//! types' bytes with them.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        reason = "a test may panic"
    )
)]

pub use prost::{DecodeError, Message};

/// The aggregation temporality of values that count from a start on, as those of `/metrics` do.
pub const CUMULATIVE: i32 = 2;

/// The kind of a span for work within the process.
pub const INTERNAL: i32 = 1;

/// The kind of a span for work on a message that was received.
pub const CONSUMER: i32 = 5;

/// The status code of a span that has failed.
pub const ERROR: i32 = 2;

/// The body of a POST to `/v1/metrics`.
#[derive(Clone, PartialEq, Message)]
pub struct MetricsRequest {
    /// The metrics of each process.
    #[prost(message, repeated, tag = "1")]
    pub resource_metrics: Vec<ResourceMetrics>,
}

/// The body of a POST to `/v1/traces`.
#[derive(Clone, PartialEq, Message)]
pub struct TracesRequest {
    /// The spans of each process.
    #[prost(message, repeated, tag = "1")]
    pub resource_spans: Vec<ResourceSpans>,
}

/// The collector's answer to either request.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// Set if the collector has rejected something, or has a message.
    #[prost(message, optional, tag = "1")]
    pub partial_success: Option<PartialSuccess>,
}

/// What the collector has rejected.
#[derive(Clone, PartialEq, Message)]
pub struct PartialSuccess {
    /// How many data points or spans it has rejected.
    #[prost(int64, tag = "1")]
    pub rejected: i64,
    /// Why, or another message.
    #[prost(string, tag = "2")]
    pub error_message: String,
}

/// The process that metrics or spans are about.
#[derive(Clone, PartialEq, Message)]
pub struct Resource {
    /// What describes it, such as `service.name`.
    #[prost(message, repeated, tag = "1")]
    pub attributes: Vec<KeyValue>,
}

/// A part of a program.
#[derive(Clone, PartialEq, Message)]
pub struct Scope {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its version.
    #[prost(string, tag = "2")]
    pub version: String,
}

/// A key, and its value.
#[derive(Clone, PartialEq, Message)]
pub struct KeyValue {
    /// The key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The value.
    #[prost(message, optional, tag = "2")]
    pub value: Option<AnyValue>,
}

/// A value.
#[derive(Clone, PartialEq, Message)]
pub struct AnyValue {
    /// The value, of one of the kinds.
    #[prost(oneof = "Value", tags = "1, 3")]
    pub value: Option<Value>,
}

/// The kinds of values.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Value {
    /// A text.
    #[prost(string, tag = "1")]
    Text(String),
    /// A whole number.
    #[prost(int64, tag = "3")]
    Int(i64),
}

/// The metrics of a process.
#[derive(Clone, PartialEq, Message)]
pub struct ResourceMetrics {
    /// The process.
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    /// Its metrics, grouped by part of the program.
    #[prost(message, repeated, tag = "2")]
    pub scope_metrics: Vec<ScopeMetrics>,
}

/// The metrics of a part of a program.
#[derive(Clone, PartialEq, Message)]
pub struct ScopeMetrics {
    /// The part.
    #[prost(message, optional, tag = "1")]
    pub scope: Option<Scope>,
    /// Its metrics.
    #[prost(message, repeated, tag = "2")]
    pub metrics: Vec<Metric>,
}

/// A metric.
#[derive(Clone, PartialEq, Message)]
pub struct Metric {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// What it measures.
    #[prost(string, tag = "2")]
    pub description: String,
    /// Its unit, in the notation of UCUM.
    #[prost(string, tag = "3")]
    pub unit: String,
    /// Its values.
    #[prost(oneof = "Data", tags = "5, 7, 9")]
    pub data: Option<Data>,
}

/// The kinds of metrics.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Data {
    /// Values that rise and fall.
    #[prost(message, tag = "5")]
    Gauge(Gauge),
    /// Values that add up.
    #[prost(message, tag = "7")]
    Sum(Sum),
    /// Values in buckets.
    #[prost(message, tag = "9")]
    Histogram(Histogram),
}

/// Values that rise and fall.
#[derive(Clone, PartialEq, Message)]
pub struct Gauge {
    /// One for each set of labels.
    #[prost(message, repeated, tag = "1")]
    pub data_points: Vec<Number>,
}

/// Values that add up.
#[derive(Clone, PartialEq, Message)]
pub struct Sum {
    /// One for each set of labels.
    #[prost(message, repeated, tag = "1")]
    pub data_points: Vec<Number>,
    /// [`CUMULATIVE`].
    #[prost(int32, tag = "2")]
    pub aggregation_temporality: i32,
    /// Whether the values only grow.
    #[prost(bool, tag = "3")]
    pub is_monotonic: bool,
}

/// Values in buckets.
#[derive(Clone, PartialEq, Message)]
pub struct Histogram {
    /// One for each set of labels.
    #[prost(message, repeated, tag = "1")]
    pub data_points: Vec<Buckets>,
    /// [`CUMULATIVE`].
    #[prost(int32, tag = "2")]
    pub aggregation_temporality: i32,
}

/// A value with its labels and time. Times are in nanoseconds since 1970.
#[derive(Clone, PartialEq, Message)]
pub struct Number {
    /// Its labels.
    #[prost(message, repeated, tag = "7")]
    pub attributes: Vec<KeyValue>,
    /// When counting began; 0 for a value that isn't counted.
    #[prost(fixed64, tag = "2")]
    pub start_time_unix_nano: u64,
    /// When the value was read.
    #[prost(fixed64, tag = "3")]
    pub time_unix_nano: u64,
    /// The value.
    #[prost(oneof = "NumberValue", tags = "4, 6")]
    pub value: Option<NumberValue>,
}

/// The kinds of numbers.
#[derive(Clone, Copy, PartialEq, prost::Oneof)]
pub enum NumberValue {
    /// With a fraction.
    #[prost(double, tag = "4")]
    Double(f64),
    /// Whole.
    #[prost(sfixed64, tag = "6")]
    Int(i64),
}

/// How many values were in each bucket. Times are in nanoseconds since 1970.
#[derive(Clone, PartialEq, Message)]
pub struct Buckets {
    /// Its labels.
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<KeyValue>,
    /// When counting began.
    #[prost(fixed64, tag = "2")]
    pub start_time_unix_nano: u64,
    /// When the value was read.
    #[prost(fixed64, tag = "3")]
    pub time_unix_nano: u64,
    /// How many values there were.
    #[prost(fixed64, tag = "4")]
    pub count: u64,
    /// The sum of the values.
    #[prost(double, optional, tag = "5")]
    pub sum: Option<f64>,
    /// How many values were in each bucket. The last bucket is above the last bound.
    #[prost(fixed64, repeated, tag = "6")]
    pub bucket_counts: Vec<u64>,
    /// The upper bound of each bucket but the last.
    #[prost(double, repeated, tag = "7")]
    pub explicit_bounds: Vec<f64>,
}

/// The spans of a process.
#[derive(Clone, PartialEq, Message)]
pub struct ResourceSpans {
    /// The process.
    #[prost(message, optional, tag = "1")]
    pub resource: Option<Resource>,
    /// Its spans, grouped by part of the program.
    #[prost(message, repeated, tag = "2")]
    pub scope_spans: Vec<ScopeSpans>,
}

/// The spans of a part of a program.
#[derive(Clone, PartialEq, Message)]
pub struct ScopeSpans {
    /// The part.
    #[prost(message, optional, tag = "1")]
    pub scope: Option<Scope>,
    /// Its spans.
    #[prost(message, repeated, tag = "2")]
    pub spans: Vec<Span>,
}

/// A piece of work. Times are in nanoseconds since 1970.
#[derive(Clone, PartialEq, Message)]
pub struct Span {
    /// The id of its trace, in 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub trace_id: Vec<u8>,
    /// Its own id, in 8 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub span_id: Vec<u8>,
    /// The id of its parent span; empty if there is none.
    #[prost(bytes = "vec", tag = "4")]
    pub parent_span_id: Vec<u8>,
    /// What work it is.
    #[prost(string, tag = "5")]
    pub name: String,
    /// Its kind, such as [`INTERNAL`].
    #[prost(int32, tag = "6")]
    pub kind: i32,
    /// When it began.
    #[prost(fixed64, tag = "7")]
    pub start_time_unix_nano: u64,
    /// When it ended.
    #[prost(fixed64, tag = "8")]
    pub end_time_unix_nano: u64,
    /// More about it.
    #[prost(message, repeated, tag = "9")]
    pub attributes: Vec<KeyValue>,
    /// How it ended, if known.
    #[prost(message, optional, tag = "15")]
    pub status: Option<Status>,
    /// The flags of W3C Trace Context, and whether the parent is a span of another process.
    #[prost(fixed32, tag = "16")]
    pub flags: u32,
}

/// How a span ended.
#[derive(Clone, PartialEq, Message)]
pub struct Status {
    /// Why, in words.
    #[prost(string, tag = "2")]
    pub message: String,
    /// The status code, such as [`ERROR`].
    #[prost(int32, tag = "3")]
    pub code: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(key: &str, value: Value) -> KeyValue {
        KeyValue {
            key: key.into(),
            value: Some(AnyValue { value: Some(value) }),
        }
    }

    fn resource() -> Option<Resource> {
        let name = attribute("service.name", Value::Text("presence".into()));
        Some(Resource {
            attributes: vec![name],
        })
    }

    fn scope() -> Option<Scope> {
        Some(Scope {
            name: "presence".into(),
            version: "0.1.0".into(),
        })
    }

    #[test]
    fn metrics_are_the_bytes_that_opentelemetry_writes() {
        let number = |value| Number {
            attributes: vec![attribute("tenant", Value::Text("acme".into()))],
            start_time_unix_nano: 1,
            time_unix_nano: 2,
            value: Some(value),
        };
        let metric = |name: &str, data| Metric {
            name: name.into(),
            description: "what it is".into(),
            unit: "s".into(),
            data: Some(data),
        };
        let metrics = vec![
            metric(
                "a",
                Data::Gauge(Gauge {
                    data_points: vec![number(NumberValue::Double(1.5))],
                }),
            ),
            metric(
                "b",
                Data::Sum(Sum {
                    data_points: vec![number(NumberValue::Int(-3))],
                    aggregation_temporality: CUMULATIVE,
                    is_monotonic: true,
                }),
            ),
            metric(
                "c",
                Data::Histogram(Histogram {
                    data_points: vec![Buckets {
                        attributes: Vec::new(),
                        start_time_unix_nano: 1,
                        time_unix_nano: 2,
                        count: 7,
                        sum: Some(0.5),
                        bucket_counts: vec![3, 0, 4],
                        explicit_bounds: vec![0.1, 1.0],
                    }],
                    aggregation_temporality: CUMULATIVE,
                }),
            ),
        ];
        let request = MetricsRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: resource(),
                scope_metrics: vec![ScopeMetrics {
                    scope: scope(),
                    metrics,
                }],
            }],
        };
        let golden = include_bytes!("../golden/metrics.bin");
        assert_eq!(request.encode_to_vec(), golden);
        assert_eq!(MetricsRequest::decode(&golden[..]).unwrap(), request);
    }

    #[test]
    fn traces_are_the_bytes_that_opentelemetry_writes() {
        let span = Span {
            trace_id: vec![1; 16],
            span_id: vec![2; 8],
            parent_span_id: vec![3; 8],
            name: "process presence.connect".into(),
            kind: CONSUMER,
            start_time_unix_nano: 1,
            end_time_unix_nano: 2,
            attributes: vec![attribute("presence.shard", Value::Int(300))],
            status: Some(Status {
                message: "why".into(),
                code: ERROR,
            }),
            flags: 0x301,
        };
        let request = TracesRequest {
            resource_spans: vec![ResourceSpans {
                resource: resource(),
                scope_spans: vec![ScopeSpans {
                    scope: scope(),
                    spans: vec![span],
                }],
            }],
        };
        let golden = include_bytes!("../golden/traces.bin");
        assert_eq!(request.encode_to_vec(), golden);
        assert_eq!(TracesRequest::decode(&golden[..]).unwrap(), request);
    }

    #[test]
    fn an_answer_says_what_was_not_taken() {
        let golden = include_bytes!("../golden/answer.bin");
        let answer = Response::decode(&golden[..]).unwrap();
        let part = answer.partial_success.unwrap();
        assert_eq!((part.rejected, &*part.error_message), (7, "too old"));
        assert_eq!(Response::decode(&b""[..]).unwrap().partial_success, None);
    }
}
