//! The page: what an operator sees in a browser of a node, or of one of its tenants. It is made of
//! files that are compiled into the program (`host/node/page`), loads nothing from another host,
//! and runs no scripts but its own.

mod access;
mod assets;
mod events;
mod history;
mod pages;
mod samples;
mod swaps;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{FromRequest as _, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};

use super::{Status, metrics};
use access::{PageAccess, Refusal, Requester};
use assets::{ASSETS, INDEX};
use events::Events;
use pages::{Owner, Shared};

pub(super) use pages::Pages;

/// What the browser may do for the page: load its files from here, send requests to here, and no
/// more.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'";

/// The headers of every response.
const HEADERS: [(&str, &str); 6] = [
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-store"),
];

/// The response if the token is missing.
const NEEDS_TOKEN: Refusal = (
    StatusCode::FORBIDDEN,
    "this needs the token, [http] admin_token\n",
);

/// The page of a node, or of a tenant.
struct Page {
    owner: Owner,
    shared: Arc<Shared>,
    events: Events,
}

/// Whether a reader may ask for explanations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MayExplain {
    Yes,
    /// The configuration doesn't turn explanations on.
    Off,
    /// The reader needs the token.
    NeedsToken,
}

impl MayExplain {
    fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "on",
            Self::Off => "off",
            Self::NeedsToken => "token",
        }
    }
}

impl Page {
    fn new(owner: Owner, shared: &Arc<Shared>) -> Self {
        Self {
            owner,
            shared: Arc::clone(shared),
            events: Events::default(),
        }
    }

    fn access(&self) -> &PageAccess {
        &self.shared.access
    }

    /// The owner's status, once the owner is about to serve.
    fn status(&self) -> Option<Arc<Status>> {
        self.owner.board()?.status.get().cloned()
    }

    fn may_explain(&self, requester: Requester) -> MayExplain {
        let is_on = self.status().is_some_and(|status| status.explains());
        match (is_on, self.access().is_trusted(requester)) {
            (false, _) => MayExplain::Off,
            (true, false) => MayExplain::NeedsToken,
            (true, true) => MayExplain::Yes,
        }
    }

    /// Checks a request for an explanation.
    fn may_ask(&self, request: &Parts) -> Result<(), Refusal> {
        match self.may_explain(self.sender(request)?) {
            // If explanations are off, the query service refuses them in its own words.
            MayExplain::Yes | MayExplain::Off => Ok(()),
            MayExplain::NeedsToken => Err(NEEDS_TOKEN),
        }
    }

    /// Checks a request that changes something.
    fn may_change(&self, request: &Parts) -> Result<(), Refusal> {
        match self.sender(request)? {
            Requester::Operator => Ok(()),
            Requester::Anyone => Err(NEEDS_TOKEN),
        }
    }

    /// Who sends a request, which must have the content type of JSON even without a body: another
    /// page can't make a browser send that without a preflight request, which isn't answered.
    fn sender(&self, request: &Parts) -> Result<Requester, Refusal> {
        let requester = self.access().requester(request)?;
        let kind = request.headers.get(header::CONTENT_TYPE);
        if kind.is_none_or(|kind| kind != "application/json") {
            let why = "ask with the content type application/json\n";
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, why));
        }
        Ok(requester)
    }
}

/// The routes of the page.
pub(super) fn routes(pages: Arc<Pages>) -> Router {
    Router::new()
        .route("/", get(|| async { Html(INDEX) }))
        .route("/page/events", get(stream_events))
        .route("/page/explain", post(explain))
        .route("/page/history", get(history::serve_history))
        .route("/page/rollback", post(history::roll_back))
        .route("/page/canary", post(history::end_canary))
        .route("/page/shadow", post(history::end_shadow))
        .route("/page/beside", get(history::serve_reports))
        .route("/page/{name}", get(asset))
        .with_state(pages)
        .layer(from_fn(to_address))
}

/// Answers requests to an address, refuses those to a name, and adds the headers.
async fn to_address(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let mut answer = if PageAccess::is_to_address(&parts) {
        next.run(Request::from_parts(parts, body)).await
    } else {
        let why = "ask by an address, such as 127.0.0.1, or as localhost\n";
        (StatusCode::FORBIDDEN, why).into_response()
    };
    for (name, value) in HEADERS {
        let value = HeaderValue::from_static(value);
        answer.headers_mut().insert(name, value);
    }
    answer
}

async fn asset(Path(name): Path<String>) -> Response {
    match ASSETS.iter().find(|asset| asset.name == name) {
        Some(asset) => ([(header::CONTENT_TYPE, asset.kind)], asset.text).into_response(),
        None => (StatusCode::NOT_FOUND, "there is no such file\n").into_response(),
    }
}

/// Opens the event stream.
async fn stream_events(State(pages): State<Arc<Pages>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let page = pages.page(&parts);
    // Listeners are few. Requests that another page made the browser send must not take their
    // places.
    let requester = match page.sender(&parts) {
        Ok(requester) => requester,
        Err(refused) => return refused.into_response(),
    };
    let after = pages::query(&parts, "after").and_then(|at| at.parse().ok());
    let Some(response) = page.stream_events(requester, after.unwrap_or_default()) else {
        let why = "too many pages of this node are open: close one\n";
        return (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    };
    pages.sample(&page);
    pages.name_tenants();
    response
}

/// Explains why a viewer can or can't see a user, as `presence.explain` does.
async fn explain(State(pages): State<Arc<Pages>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let page = pages.page(&parts);
    if let Err(refused) = page.may_ask(&parts) {
        return refused.into_response();
    }
    let request = Request::from_parts(parts, body);
    let Ok(asked) = Bytes::from_request(request, &()).await else {
        return (StatusCode::BAD_REQUEST, "the question can't be read\n").into_response();
    };
    let status = page.status();
    let Some(questions) = status.as_ref().and_then(|status| status.questions.get()) else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the node doesn't serve\n").into_response();
    };
    let answer = questions.explain_here(&asked).await;
    ([(header::CONTENT_TYPE, "application/json")], answer).into_response()
}
