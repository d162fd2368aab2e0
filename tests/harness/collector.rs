//! An OpenTelemetry collector for tests. It takes OTLP over HTTP, and keeps what it was sent. It
//! can be made to refuse, to answer nonsense, and not to answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use presence_otlp::{
    Data, KeyValue, Message as _, MetricsRequest, Number, NumberValue, PartialSuccess, Response,
    Span, TracesRequest, Value,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::wait;

/// How the collector answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// As OTLP says, and it takes all.
    Well,
    /// It takes all but one item, and says so.
    AllButOne,
    /// With this status. It takes nothing.
    Status(u16),
    /// With the status 200, and a body that is not OTLP.
    Nonsense,
    /// It takes traces, and answers 404 to all else.
    OnlyTraces,
    /// With something that is not HTTP.
    Garbage,
    /// Not at all.
    Nothing,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its path, such as `/v1/metrics`.
    pub path: String,
    /// The request's head, as it came.
    pub head: String,
    /// The message, in protobuf.
    pub body: Vec<u8>,
    /// How it was answered.
    pub answered: Answers,
}

/// A metric's name with its labels, as `/metrics` writes them, and its value.
pub type Series = (String, f64);

/// A running collector. It ends when dropped.
#[derive(Debug)]
pub struct Collector {
    port: u16,
    state: Arc<Mutex<State>>,
    serving: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    answers: Answers,
    requests: Vec<Request>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Collector {
    /// Starts a collector that answers well.
    ///
    /// # Errors
    /// When there is no port for it.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let state = Arc::new(Mutex::new(State {
            answers: Answers::Well,
            requests: Vec::new(),
        }));
        let known = Arc::clone(&state);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let known = Arc::clone(&known);
                // An error means that the connection has been closed.
                tokio::spawn(async move { serve(stream, &known).await.ok() });
            }
        });
        Ok(Self {
            port,
            state,
            serving,
        })
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets how it answers from now on.
    pub fn answer(&self, answers: Answers) {
        self.state().answers = answers;
    }

    /// All that it was sent so far.
    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    /// Waits for a request to a path that was answered in this way, and isn't among the first
    /// `from`.
    ///
    /// # Errors
    /// When none comes.
    pub async fn until_sent(&self, path: &str, answered: Answers, from: usize) -> Result<Request> {
        let what = format!("{path} to be answered {answered:?}");
        wait::until(&what, async || {
            let requests = self.requests();
            let mut newer = requests.into_iter().skip(from);
            Ok(newer.find(|it| it.path == path && it.answered == answered))
        })
        .await
    }

    /// All spans that it has taken.
    ///
    /// # Errors
    /// When a request can't be read as traces.
    pub fn spans(&self) -> Result<Vec<Span>> {
        let requests = self.requests().into_iter();
        let traces = requests.filter(|it| it.path == "/v1/traces" && it.answered == Answers::Well);
        let mut spans = Vec::new();
        for request in traces {
            let request = TracesRequest::decode(&*request.body)?;
            let scopes = request.resource_spans.into_iter();
            let scopes = scopes.flat_map(|it| it.scope_spans);
            spans.extend(scopes.flat_map(|it| it.spans));
        }
        Ok(spans)
    }
}

impl Request {
    /// The metrics in it. A histogram is as `/metrics` writes it.
    ///
    /// # Errors
    /// When it can't be read as metrics.
    pub fn series(&self) -> Result<Vec<Series>> {
        let request = MetricsRequest::decode(&*self.body)?;
        let scopes = request.resource_metrics.into_iter();
        let metrics = scopes
            .flat_map(|it| it.scope_metrics)
            .flat_map(|it| it.metrics);
        let mut series = Vec::new();
        for metric in metrics {
            let name = metric.name;
            match metric.data.context("a metric has data")? {
                Data::Gauge(gauge) => numbers(&mut series, &name, &gauge.data_points)?,
                Data::Sum(sum) => numbers(&mut series, &name, &sum.data_points)?,
                Data::Histogram(histogram) => {
                    for point in histogram.data_points {
                        let mut below = 0;
                        let bounds = point.explicit_bounds.iter().map(ToString::to_string);
                        let bounds = bounds.chain(["+Inf".to_owned()]);
                        for (bound, count) in bounds.zip(&point.bucket_counts) {
                            below += count;
                            let labels = labels(&point.attributes, Some(&bound))?;
                            series.push((format!("{name}_bucket{labels}"), below as f64));
                        }
                        let labels = labels(&point.attributes, None)?;
                        let sum = point.sum.context("a histogram has a sum")?;
                        series.push((format!("{name}_sum{labels}"), sum));
                        series.push((format!("{name}_count{labels}"), point.count as f64));
                    }
                }
            }
        }
        Ok(series)
    }
}

fn numbers(series: &mut Vec<Series>, name: &str, points: &[Number]) -> Result<()> {
    for point in points {
        let value = match point.value.context("a point has a value")? {
            NumberValue::Int(value) => value as f64,
            NumberValue::Double(value) => value,
        };
        let labels = labels(&point.attributes, None)?;
        series.push((format!("{name}{labels}"), value));
    }
    Ok(())
}

fn labels(attributes: &[KeyValue], bound: Option<&str>) -> Result<String> {
    let mut labels = Vec::new();
    for attribute in attributes {
        let value = text(attribute).context("a label is a text")?;
        labels.push(format!("{}=\"{value}\"", attribute.key));
    }
    labels.extend(bound.map(|bound| format!("le=\"{bound}\"")));
    Ok(match labels.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", labels.join(",")),
    })
}

/// An attribute's text. `None` if its value is no text.
#[must_use]
pub fn text(attribute: &KeyValue) -> Option<&str> {
    match attribute.value.as_ref()?.value.as_ref()? {
        Value::Text(text) => Some(text),
        Value::Int(_) => None,
    }
}

/// Takes requests on a connection, until it closes.
async fn serve(mut stream: TcpStream, state: &Mutex<State>) -> Result<()> {
    let mut read = Vec::new();
    loop {
        let end = loop {
            let end = read.windows(4).position(|it| it == b"\r\n\r\n");
            if let Some(end) = end {
                break end;
            }
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        let head = String::from_utf8(read.get(..end).unwrap_or_default().to_vec())?;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_length = name.eq_ignore_ascii_case("content-length");
            is_length.then(|| value.trim().parse::<usize>().ok())?
        });
        let length = length.context("a request says how long it is")?;
        while read.len() < end + 4 + length {
            if stream.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        }
        let rest = read.split_off(end + 4 + length);
        let body = read.split_off(end + 4);
        read = rest;
        let path = head.split(' ').nth(1).context("a request has a path")?;
        let answered = {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let answered = match state.answers {
                Answers::OnlyTraces if path == "/v1/traces" => Answers::Well,
                Answers::OnlyTraces => Answers::Status(404),
                all => all,
            };
            state.requests.push(Request {
                path: path.to_owned(),
                head,
                body,
                answered,
            });
            answered
        };
        let answer = match answered {
            Answers::Well => "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n\
                              Content-Length: 0\r\n\r\n"
                .to_owned(),
            Answers::AllButOne => {
                let part = PartialSuccess {
                    rejected: 1,
                    error_message: "too old".into(),
                };
                let body = Response {
                    partial_success: Some(part),
                };
                let body = String::from_utf8(body.encode_to_vec())?;
                format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                )
            }
            Answers::Status(status) => {
                format!("HTTP/1.1 {status} Said So\r\nContent-Length: 0\r\n\r\n")
            }
            Answers::Nonsense => "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
            Answers::Garbage => "220 mail.example ESMTP\r\n".to_owned(),
            Answers::Nothing | Answers::OnlyTraces => std::future::pending().await,
        };
        stream.write_all(answer.as_bytes()).await?;
        if answered == Answers::Garbage {
            return Ok(());
        }
    }
}
