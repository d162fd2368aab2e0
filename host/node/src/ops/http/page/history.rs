//! The history of the plugin store on the page: who changed the pipeline, when and why; and
//! the way back to an earlier one, for operators.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{FromRequest as _, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use presence_config::causes::Causes;
use serde::Deserialize;
use serde_json::{Value, json};

use super::Page;
use crate::store::Found;
use crate::store::rollback::PageStore;

/// How many of the newest revisions are told of.
const TOLD_MAX: usize = 50;

/// What is asked for: this revision's pipeline, in place of the one that was seen.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    revision: u64,
    seen: u64,
}

/// Tells the revisions, the newest first.
pub(super) async fn tell(State(page): State<Arc<Page>>, request: Request) -> Response {
    let (parts, _) = request.into_parts();
    let reader = match page.access.reader(&parts) {
        Ok(reader) => reader,
        Err(refused) => return refused.into_response(),
    };
    let Some(store) = store(&page) else {
        return (StatusCode::NOT_FOUND, "the pipeline is the folder's\n").into_response();
    };
    match store.history().await {
        Ok(revisions) => {
            let names = page.access.is_trusted(reader);
            json_of(json!({"ok": true, "revisions": told(&revisions, names)}))
        }
        Err(error) => json_of(json!({"ok": false, "error": Causes(&error).to_string()})),
    }
}

/// Makes an earlier pipeline the next revision, for an operator.
pub(super) async fn roll_back(State(page): State<Arc<Page>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if let Err(refused) = page.may_change(&parts) {
        return refused.into_response();
    }
    let request = Request::from_parts(parts, body);
    let asked = Bytes::from_request(request, &()).await;
    let asked = asked
        .ok()
        .and_then(|it| serde_json::from_slice::<Asked>(&it).ok());
    let (Some(asked), Some(store)) = (asked, store(&page)) else {
        return (StatusCode::BAD_REQUEST, "this can't be done\n").into_response();
    };
    match store.roll_back(asked.revision, asked.seen).await {
        Ok(revision) => {
            let to = asked.revision;
            tracing::info!(revision, to, "the page has rolled the pipeline back");
            json_of(json!({"ok": true, "revision": revision}))
        }
        Err(error) => json_of(json!({"ok": false, "error": Causes(&error).to_string()})),
    }
}

fn store(page: &Page) -> Option<Arc<PageStore>> {
    page.board.status.get()?.page_store.get().cloned()
}

fn told(revisions: &[Found], names: bool) -> Vec<Value> {
    let newest = revisions.last().and_then(|it| it.revision.as_ref().ok());
    let told = revisions.iter().rev().take(TOLD_MAX);
    let told = told.map(|found| match &found.revision {
        Ok(revision) => json!({
            "revision": found.number,
            "when": revision.when,
            "who": names.then_some(&revision.who),
            "why": revision.why,
            "chain": revision.chain.iter().map(|entry| json!({
                "plugin": entry.plugin,
                "digest": entry.digest,
            })).collect::<Vec<_>>(),
            "same": newest.is_some_and(|newest| newest.chain == revision.chain),
        }),
        Err(error) => json!({"revision": found.number, "error": format!("{error:#}")}),
    });
    told.collect()
}

fn json_of(value: Value) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, value.to_string()).into_response()
}
