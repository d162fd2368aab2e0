//! Server-sent events for the page.
//!
//! The content is made once a second, for all listeners. Each listener takes the newest when it
//! can, and nothing is queued for a slow one: it misses what it didn't take. A connection that
//! reads nothing is closed (`listen`). The number of listeners is limited.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, timeout_at};

use super::access::Requester;
use super::samples::{Samples, object};
use super::swaps::Swaps;
use super::{Page, metrics};
use crate::clock;

/// How long a page listens before it has to ask again. It is shorter than a connection may last.
const LISTEN_MAX: Duration = Duration::from_secs(45);

/// The newest event and its listeners.
#[derive(Default)]
pub(super) struct Events {
    now: watch::Sender<Bytes>,
    seen: Mutex<PageState>,
}

/// What has been noted so far.
#[derive(Default)]
struct PageState {
    samples: Samples,
    swaps: Swaps,
}

impl Events {
    fn seen(&self) -> MutexGuard<'_, PageState> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Page {
    /// Whether a page listens.
    pub(super) fn is_listened_to(&self) -> bool {
        self.events.now.receiver_count() > 0
    }

    /// Notes the current state, and sends it to those who listen.
    pub(super) fn refresh(&self) {
        let (at, exposition) = (clock::now_ms(), self.exposition());
        {
            let mut seen = self.events.seen();
            seen.samples.keep(at, &exposition);
            if let Some(status) = self.status() {
                let running = status.running.borrow().clone();
                seen.swaps.note(at, running.generation, &running.blueprint);
            }
        }
        if self.is_listened_to() {
            let now = self.now(at, &exposition);
            self.events.now.send_replace(now);
        }
    }

    /// The metrics of the owner, in the form of a node without other tenants.
    fn exposition(&self) -> String {
        let board = self.owner.board();
        board.map(|board| metrics::text(&board)).unwrap_or_default()
    }

    /// The event with the current state.
    fn now(&self, at: u64, exposition: &str) -> Bytes {
        let metrics = object(exposition, |_| true);
        let status = self.owner.describe();
        let seen = self.events.seen();
        let generation = status
            .pointer("/serving/generation")
            .and_then(Value::as_u64);
        let since = seen.swaps.since(generation.unwrap_or_default());
        let rest = json!({"since": since, "swaps": seen.swaps.all()});
        let now =
            format!("{{\"at\":{at},\"metrics\":{metrics},\"status\":{status},\"seen\":{rest}}}");
        event("now", &now)
    }

    /// The first event of a page: what the page may do, and the samples after the time `after`.
    fn hello(&self, requester: Requester, after: u64) -> Bytes {
        let hello = json!({
            "explain": self.may_explain(requester).as_str(),
            "token": self.access().has_token(),
            "operator": requester == Requester::Operator,
            "tenant": self.owner.tenant(),
        });
        let hello = hello.to_string();
        let hello = hello.trim_end_matches('}');
        let samples = self.events.seen().samples.after(after);
        event("hello", &format!("{hello},\"samples\":{samples}}}"))
    }

    /// The last dead letters, if there are new ones since the count `sent`, which is updated.
    fn letters(&self, requester: Requester, sent: &mut Option<u64>) -> Option<Bytes> {
        let status = self.status()?;
        if *sent == Some(status.dead_letters.noted()) {
            return None;
        }
        let (noted, letters) = status.dead_letters.newest();
        *sent = Some(noted);
        let names = self.access().names_users_to(requester);
        let letters = letters.into_iter().map(|letter| match names {
            true => json!({
                "at": letter.at,
                "subject": letter.subject,
                "reason": letter.reason,
                "error": letter.error,
                "user": letter.user,
            }),
            false => json!({
                "at": letter.at,
                "subject": letter.subject,
                "reason": letter.reason,
            }),
        });
        let body = json!({"names": names, "letters": letters.collect::<Vec<_>>()});
        Some(event("letters", &body.to_string()))
    }

    /// Sends events to a reader for a while. `after`: the time of the newest sample that it has.
    /// `None` if there are too many listeners.
    pub(super) fn stream_events(
        self: &Arc<Self>,
        requester: Requester,
        after: u64,
    ) -> Option<Response> {
        let permits = Arc::clone(&self.shared.listeners);
        let permit = permits.try_acquire_owned().ok()?;
        let listener = Listener {
            page: Arc::clone(self),
            requester,
            now: self.events.now.subscribe(),
            tenants: self.shared.tenants.subscribe(),
            letters: None,
            until: Instant::now() + LISTEN_MAX,
            begins_after: Some(after),
            _permit: permit,
        };
        let events = stream::unfold(listener, |mut listener| async {
            let event = listener.next().await?;
            Some((Ok::<_, Infallible>(event), listener))
        });
        let headers = [(header::CONTENT_TYPE, "text/event-stream")];
        Some((headers, Body::from_stream(events)).into_response())
    }
}

/// A page that listens.
struct Listener {
    page: Arc<Page>,
    requester: Requester,
    now: watch::Receiver<Bytes>,
    /// The event with the list of tenants.
    tenants: watch::Receiver<Bytes>,
    /// How many dead letters had been noted when they were last sent.
    letters: Option<u64>,
    until: Instant,
    /// The time of the newest sample that the page has. `None` once the first events were sent.
    begins_after: Option<u64>,
    _permit: OwnedSemaphorePermit,
}

impl Listener {
    /// What is sent next. `None` once the listener's time is over.
    async fn next(&mut self) -> Option<Bytes> {
        let page = Arc::clone(&self.page);
        let mut events = Vec::new();
        match self.begins_after.take() {
            Some(after) => {
                events.extend_from_slice(&page.hello(self.requester, after));
                events.extend_from_slice(&self.tenants.borrow_and_update());
                let now = page.now(clock::now_ms(), &page.exposition());
                events.extend_from_slice(&now);
            }
            None => {
                timeout_at(self.until, self.now.changed())
                    .await
                    .ok()?
                    .ok()?;
                events.extend_from_slice(&self.now.borrow_and_update());
                if self.tenants.has_changed().unwrap_or_default() {
                    events.extend_from_slice(&self.tenants.borrow_and_update());
                }
            }
        }
        if let Some(letters) = page.letters(self.requester, &mut self.letters) {
            events.extend_from_slice(&letters);
        }
        Some(events.into())
    }
}

/// A server-sent event. JSON text has no line breaks, which would end it.
pub(super) fn event(name: &str, json: &str) -> Bytes {
    format!("event: {name}\ndata: {json}\n\n").into()
}
