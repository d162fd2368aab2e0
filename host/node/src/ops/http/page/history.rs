//! The history of the plugin store on the page: who changed the pipeline, when and why. Operators
//! can roll back to an earlier pipeline.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest as _, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use presence_config::causes::Causes;
use presence_config::revision::Revision;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Page, Pages};
use crate::store::FoundRevision;
use crate::store::page::{PageAction, PageStore};

/// How many of the newest revisions are sent.
const REVISIONS_MAX: usize = 50;

/// A request to roll back to this revision's pipeline, provided that `seen` is still the newest.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RollbackRequest {
    revision: u64,
    seen: u64,
}

/// A request to end the canary, provided that `seen` is still the newest revision.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EndCanaryRequest {
    promote: bool,
    seen: u64,
}

/// Sends the revisions, newest first, and the alerts.
pub(super) async fn serve_history(State(pages): State<Arc<Pages>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let page = pages.page(&parts);
    let requester = match page.sender(&parts) {
        Ok(requester) => requester,
        Err(refused) => return refused.into_response(),
    };
    let status = page.status();
    let alerts = status
        .map(|status| status.alerts.kept())
        .unwrap_or_default();
    let revisions = match store(&page) {
        Some(store) => store.history().await,
        // The pipeline comes from the folder, or the store isn't known yet.
        None => Ok(Vec::new()),
    };
    match revisions {
        Ok(revisions) => {
            let names = page.access().is_trusted(requester);
            json_of(json!({
                "ok": true,
                "newest": holds(&revisions).map(|it| it.revision),
                "revisions": revisions_json(&revisions, names),
                "alerts": alerts,
            }))
        }
        Err(error) => json_of(json!({
            "ok": false,
            "error": Causes(&error).to_string(),
            "alerts": alerts,
        })),
    }
}

/// Makes an earlier pipeline the next revision, for an operator.
pub(super) async fn roll_back(State(pages): State<Arc<Pages>>, request: Request) -> Response {
    let step = |asked: RollbackRequest| (PageAction::RollBack(asked.revision), asked.seen);
    change(&pages, request, step).await
}

/// Promotes or aborts a canary, for an operator.
pub(super) async fn end_canary(State(pages): State<Arc<Pages>>, request: Request) -> Response {
    let step = |asked: EndCanaryRequest| {
        let step = match asked.promote {
            true => PageAction::Promote,
            false => PageAction::Abort,
        };
        (step, asked.seen)
    };
    change(&pages, request, step).await
}

/// Ends the shadow, for an operator.
pub(super) async fn end_shadow(State(pages): State<Arc<Pages>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let page = pages.page(&parts);
    if let Err(refused) = page.may_change(&parts) {
        return refused.into_response();
    }
    let Some(store) = store(&page) else {
        return (StatusCode::BAD_REQUEST, "this can't be done\n").into_response();
    };
    match store.validator.end_shadow().await {
        Ok(()) => json_of(json!({"ok": true})),
        Err(error) => json_of(json!({"ok": false, "error": error})),
    }
}

/// Makes the next revision from a request.
async fn change<T: DeserializeOwned>(
    pages: &Pages,
    request: Request,
    step: impl FnOnce(T) -> (PageAction, u64),
) -> Response {
    let (parts, body) = request.into_parts();
    let page = pages.page(&parts);
    if let Err(refused) = page.may_change(&parts) {
        return refused.into_response();
    }
    let request = Request::from_parts(parts, body);
    let asked = Bytes::from_request(request, &()).await;
    let asked = asked
        .ok()
        .and_then(|it| serde_json::from_slice::<T>(&it).ok());
    let (Some(asked), Some(store)) = (asked, store(&page)) else {
        return (StatusCode::BAD_REQUEST, "this can't be done\n").into_response();
    };
    let (step, seen) = step(asked);
    match store.change(step, seen).await {
        Ok(revision) => {
            let tenant = page.owner.tenant();
            tracing::info!(tenant, revision, ?step, "the page has changed the pipeline");
            json_of(json!({"ok": true, "revision": revision}))
        }
        Err(error) => json_of(json!({"ok": false, "error": Causes(&error).to_string()})),
    }
}

/// Sends the reports on a canary or a shadow, with examples. Only those who may see users' ids get
/// them.
pub(super) async fn serve_reports(State(pages): State<Arc<Pages>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let page = pages.page(&parts);
    let requester = match page.sender(&parts) {
        Ok(requester) => requester,
        Err(refused) => return refused.into_response(),
    };
    if !page.access().names_users_to(requester) {
        return json_of(json!({"ok": true, "reports": null}));
    }
    json_of(json!({"ok": true, "reports": page.owner.board().map(|it| it.reports())}))
}

fn store(page: &Page) -> Option<Arc<PageStore>> {
    page.status()?.page_store.get().cloned()
}

/// The newest revision that can be read.
fn holds(revisions: &[FoundRevision]) -> Option<&Revision> {
    let mut newest = revisions.iter().rev();
    newest.find_map(|it| it.revision.as_ref().ok())
}

fn revisions_json(revisions: &[FoundRevision], names: bool) -> Vec<Value> {
    let newest = holds(revisions);
    let body = revisions.iter().rev().take(REVISIONS_MAX);
    let body = body.map(|found| match &found.revision {
        Ok(revision) => json!({
            "revision": found.number,
            "when": revision.when,
            "who": names.then_some(&revision.who),
            "why": revision.why,
            "chain": revision.chain.iter().map(|entry| json!({
                "plugin": entry.plugin,
                "digest": entry.digest,
            })).collect::<Vec<_>>(),
            "canary": revision.candidate.as_ref().map(|it| json!({
                "plugin": it.plugin,
                "digest": it.digest,
                "percent": it.percent,
            })),
            "same": newest.is_some_and(|newest| newest.chain == revision.chain),
        }),
        Err(error) => json!({"revision": found.number, "error": format!("{error:#}")}),
    });
    body.collect()
}

fn json_of(value: Value) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, value.to_string()).into_response()
}
