//! The rules: every viewer sees two users of three. The rules of another generation show other
//! users.

use std::sync::Arc;

use presence_core::audience::Audience;
use presence_core::names::Names;
use presence_core::rules::{Context, Decision, Enriched, Reads, Rendition, Rules};
use serde_json::Value;

/// The number of viewers. Each has a client.
pub(crate) const VIEWERS: usize = 3;

pub(crate) fn user_id(user: usize) -> String {
    // One of the two forms is its own token in a subject, and the other isn't.
    match user % 2 {
        0 => format!("user-{user}"),
        _ => format!("user {user}"),
    }
}

pub(crate) fn viewer_id(viewer: usize) -> String {
    format!("viewer-{viewer}")
}

pub(crate) fn user_of(id: &str) -> usize {
    id[5..].parse().unwrap()
}

/// Whether a viewer may see a user by the rules of a generation.
pub(crate) fn may_see(viewer: usize, user: usize, generation: usize) -> bool {
    !(viewer + user + generation).is_multiple_of(3)
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TwoOfThree {
    pub(crate) generation: usize,
}

fn renditions(audience: Audience) -> Vec<Rendition> {
    vec![Rendition {
        audience,
        keys: ["device", "activity", "status"].map(Into::into).into(),
        last_seen: true,
    }]
}

fn audience(user: &str, generation: usize, names: &Names) -> Audience {
    let user = user_of(user);
    let viewers = (0..VIEWERS).filter(|viewer| may_see(*viewer, user, generation));
    viewers
        .map(|viewer| names.intern(&viewer_id(viewer)))
        .collect()
}

impl Rules for TwoOfThree {
    fn enrich(&mut self, _: Context<'_>) -> Enriched {
        Enriched::default()
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        let names: &Arc<Names> = context.names;
        let audience = audience(context.event.name.as_str(), self.generation, names);
        Decision::Decided(renditions(audience), Reads::default())
    }

    fn redact(&mut self, _: Context<'_>, told: &Audience) -> Decision {
        Decision::Decided(renditions(told.clone()), Reads::default())
    }
}

/// What is shown of an online user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shows {
    pub(crate) device: String,
    pub(crate) activity: Option<String>,
    pub(crate) status: Option<String>,
}

/// What an answer shows of each user in the query. `None`: the user is offline.
pub(crate) fn answered(answers: presence_core::body::query::Answers) -> Vec<Option<Shows>> {
    let places = (0..).map_while(|place| answers.get(place));
    let shown = |answer: &[u8]| {
        let answer: Value = serde_json::from_slice(answer).unwrap();
        (answer["status"] == "online").then(|| shows(&answer))
    };
    places.map(shown).collect()
}

/// What a body shows.
pub(crate) fn shows(body: &Value) -> Shows {
    let metadata = &body["metadata"];
    let text = |value: &Value| value.as_str().map(ToOwned::to_owned);
    Shows {
        device: text(&metadata["device"]).unwrap_or_default(),
        activity: text(&metadata["activity"]),
        status: text(&metadata["status"]["text"]),
    }
}
