//! The HTTP server, on a thread and a runtime of its own: strangers who connect take no time and no
//! file descriptors from the node's own work.
//!
//! The number of connections is small, and each lasts for a limited time. If all are in use, the
//! oldest is closed. So the newest, such as a health probe, always gets an answer. Connections that
//! stream events to a page are spared: there are fewer of them than of connections, so there is
//! always another one to close.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use hyper::body::Body as _;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::task::{AbortHandle, yield_now};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;

use crate::tasks::Tasks;

/// How many connections there may be at a time.
const CONNECTIONS_MAX: usize = 32;

/// How long a connection may last.
const CONNECTION_MAX: Duration = Duration::from_secs(60);

/// How long the head of a request may take to come, also the next one on a connection.
const HEAD_MAX: Duration = Duration::from_secs(5);

/// How long a client may fail to read what it is sent, before its connection is closed.
const WRITE_MAX: Duration = Duration::from_secs(5);

/// The greatest length of a request's head, in bytes.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// The greatest length of a request's body, in bytes. No request needs a longer one.
const BODY_BYTES_MAX: u64 = 4_096;

/// The wait after the system has refused to accept a connection.
const RETRY: Duration = Duration::from_millis(100);

/// Serves in the background, and runs the future `background` on the same thread.
///
/// # Errors
/// If the system refuses a thread or a poll.
pub(super) fn serve(
    listener: TcpListener,
    routes: Router,
    background: impl Future<Output = ()> + Send + 'static,
    tasks: &Tasks,
) -> anyhow::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("can't start the runtime of [http]")?;
    let listener = {
        let _context = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    let routes = routes.layer(from_fn(without_body));
    tasks.thread("http", move || {
        runtime.block_on(async { tokio::join!(accept(&listener, &routes), background) });
    })
}

/// An open connection.
struct Open {
    task: AbortHandle,
    /// Whether its response is an event stream.
    listens: Arc<AtomicBool>,
}

/// Closes the oldest connection without an event stream.
fn make_room(open: &mut VecDeque<Open>) {
    let oldest = open
        .iter()
        .position(|it| !it.listens.load(Ordering::Relaxed));
    if let Some(oldest) = open.remove(oldest.unwrap_or_default()) {
        oldest.task.abort();
    }
}

/// Notes whether the response is an event stream.
async fn note_listener(
    State(listens): State<Arc<AtomicBool>>,
    request: Request,
    next: Next,
) -> Response {
    let answer = next.run(request).await;
    let kind = answer.headers().get(header::CONTENT_TYPE);
    let lasts = kind.is_some_and(|kind| kind == "text/event-stream");
    listens.store(lasts, Ordering::Relaxed);
    answer
}

async fn accept(listener: &tokio::net::TcpListener, routes: &Router) {
    let mut open: VecDeque<Open> = VecDeque::new();
    let mut is_failing = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                is_failing = false;
                open.retain(|connection| !connection.task.is_finished());
                if open.len() >= CONNECTIONS_MAX {
                    make_room(&mut open);
                }
                let listens = Arc::<AtomicBool>::default();
                let noted = from_fn_with_state(Arc::clone(&listens), note_listener);
                let routes = routes.clone().layer(noted);
                let connection = timeout(CONNECTION_MAX, answer(stream, routes));
                #[expect(
                    clippy::disallowed_methods,
                    reason = "one that fails is one that is closed"
                )]
                let task = tokio::spawn(connection).abort_handle();
                open.push_back(Open { task, listens });
                // Lets the closed connection end before the next is accepted.
                yield_now().await;
            }
            Err(error) => {
                if !std::mem::replace(&mut is_failing, true) {
                    tracing::warn!("[http] can't take a connection, and goes on trying: {error}");
                }
                // The process may be out of file descriptors, and other parts need them more.
                open.drain(..)
                    .for_each(|connection| connection.task.abort());
                sleep(RETRY).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, routes: Router) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_MAX));
    let stream = Box::pin(stream);
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes))
        .await;
    if let Err(error) = served {
        tracing::debug!("an HTTP connection has ended: {error}");
    }
}

/// Refuses a request with a body that is longer than any needs to be, without reading it.
async fn without_body(request: Request, next: Next) -> Response {
    let bytes = request.body().size_hint().upper();
    if bytes.is_some_and(|bytes| bytes <= BODY_BYTES_MAX) {
        return next.run(request).await;
    }
    let mut refusal = (
        StatusCode::PAYLOAD_TOO_LARGE,
        "no body of this length is read here\n",
    )
        .into_response();
    let close = HeaderValue::from_static("close");
    refusal.headers_mut().insert(header::CONNECTION, close);
    refusal
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::io::{BufRead as _, Read as _, Write as _};
    use std::net::{SocketAddr, TcpStream};

    use axum::body::{Body, Bytes};
    use axum::routing::get;
    use futures_util::stream;

    use super::*;

    fn served() -> SocketAddr {
        served_with(Router::new().route("/", get(|| async { "ok" })))
    }

    fn served_with(routes: Router) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tasks, _) = Tasks::new();
        serve(listener, routes, std::future::pending(), &tasks).unwrap();
        address
    }

    fn said(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        String::from_utf8(answer).unwrap()
    }

    const GET: &str = "GET / HTTP/1.0\r\n\r\n";

    #[test]
    fn half_sent_requests_keep_nobody_from_being_answered_and_are_closed() {
        let address = served();
        let mut half_sent: Vec<_> = (0..256)
            .map(|_| {
                let mut stream = TcpStream::connect(address).unwrap();
                stream.write_all(b"GET / HTTP/1.1\r\nHost:").unwrap();
                stream
            })
            .collect();
        for _ in 0..3 {
            assert!(said(address, GET).starts_with("HTTP/1.0 200"));
        }
        // The oldest made room for the newest; the last one timed out.
        for stream in [0, 255] {
            let mut answer = Vec::new();
            let _ = half_sent[stream].read_to_end(&mut answer);
        }
    }

    #[test]
    fn a_flood_of_connections_ends_none_on_which_a_page_listens() {
        let events = async || {
            let pieces = stream::unfold(0_u64, async |piece| {
                sleep(Duration::from_millis(5)).await;
                Some((
                    Ok::<_, Infallible>(Bytes::from(format!("{piece}\n"))),
                    piece + 1,
                ))
            });
            let kind = [(header::CONTENT_TYPE, "text/event-stream")];
            (kind, Body::from_stream(pieces)).into_response()
        };
        let routes = Router::new().route("/", get(async || "ok"));
        let address = served_with(routes.route("/events", get(events)));
        let mut listener = TcpStream::connect(address).unwrap();
        listener.write_all(b"GET /events HTTP/1.0\r\n\r\n").unwrap();
        let mut received = String::new();
        let mut listener = std::io::BufReader::new(listener);
        while !received.ends_with("1\n") {
            assert!(listener.read_line(&mut received).unwrap() > 0, "{received}");
        }
        // Twice the limit, and all of them newer.
        let flood: Vec<_> = (0..2 * CONNECTIONS_MAX)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        assert!(said(address, GET).starts_with("HTTP/1.0 200"));
        for _ in 0..3 {
            assert!(listener.read_line(&mut received).unwrap() > 0, "it goes on");
        }
        drop(flood);
    }

    #[test]
    fn a_body_is_refused_before_it_is_read() {
        let address = served();
        let long = "GET / HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n";
        assert!(said(address, long).starts_with("HTTP/1.1 413"));
        let chunked = "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(said(address, chunked).starts_with("HTTP/1.1 413"));
        let head = format!("GET / HTTP/1.0\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
        let mut stream = TcpStream::connect(address).unwrap();
        let _ = stream.write_all(head.as_bytes());
        assert!(said(address, GET).starts_with("HTTP/1.0 200"));
    }

    #[test]
    fn a_connection_that_takes_nothing_of_what_it_is_sent_is_closed() {
        let sent = Arc::new(());
        let kept = Arc::clone(&sent);
        let endless = async move || {
            let chunk = Bytes::from_static(&[b'x'; 1 << 16]);
            let next = move || {
                let _ = &kept;
                Ok::<_, Infallible>(chunk.clone())
            };
            Body::from_stream(stream::repeat_with(next))
        };
        let address = served_with(Router::new().route("/", get(endless.clone())));
        drop(endless);
        let routes = Arc::strong_count(&sent);
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(GET.as_bytes()).unwrap();
        let mut begin = [0; 15];
        stream.read_exact(&mut begin).unwrap();
        assert_eq!(&begin, b"HTTP/1.0 200 OK");
        assert!(Arc::strong_count(&sent) > routes, "it is being sent");
        while Arc::strong_count(&sent) > routes {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
