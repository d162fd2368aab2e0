//! Answers questions in a fleet: any node can be asked, and it asks the owners of the users, with
//! one request per node if possible.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use bytestring::ByteString;
use futures_util::future::join_all;
use presence_config::subjects::Subjects;
use presence_core::body::query::reply;
use presence_core::query::{Explain, QueriedUsers, Query, Refusal, USERS_MAX};
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep};

use super::query::fits;
use super::{BudgetShare, QueryService};
use crate::fleet::Fleet;
use crate::link::request;

/// How long to try while shards change their owners, and the pause between two attempts.
const PATIENCE: Duration = Duration::from_millis(2_000);
const RETRY: Duration = Duration::from_millis(50);

/// How long another node has to answer.
const ANSWER: Duration = Duration::from_secs(1);

/// The error while a shard has no owner, or its owner doesn't know enough yet.
const NO_OWNER: &str = "no node knows enough of some of these users yet, since their owner in the \
                        fleet is changing: ask again later";

/// The kind of a question from another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NodeQuestion {
    Query,
    Explain,
}

impl NodeQuestion {
    fn as_str(self) -> &'static str {
        match self {
            Self::Query => "ask.query",
            Self::Explain => "ask.explain",
        }
    }
}

/// The answers for some users, from a node.
#[derive(Deserialize)]
struct Part<'a> {
    #[serde(borrow)]
    users: Vec<&'a RawValue>,
}

/// The subject for questions of other nodes.
pub(super) fn asked_subject(subjects: &Subjects, node: &str) -> String {
    subjects.of_node(node, "ask.*")
}

impl QueryService {
    /// The kind of question, if the subject is for questions of other nodes.
    pub(super) fn asked_by_node(&self, subject: &str) -> Option<NodeQuestion> {
        let fleet = self.fleet.as_ref()?;
        let kinds = [NodeQuestion::Query, NodeQuestion::Explain];
        let of = |kind: &NodeQuestion| self.subjects.of_node(&fleet.node, kind.as_str());
        // Most questions are of viewers, so they are excluded first.
        let is_nodes = subject.ends_with("ask.query") || subject.ends_with("ask.explain");
        let mut kinds = kinds.into_iter().filter(|_| is_nodes);
        kinds.find(|kind| of(kind) == subject)
    }

    /// Answers another node, with the shards of this node alone.
    pub(super) async fn answer_node(
        &self,
        kind: NodeQuestion,
        asked: &Bytes,
        share: Arc<BudgetShare>,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        match kind {
            NodeQuestion::Query => match Query::parse(asked, None)? {
                Query {
                    viewer,
                    asked: QueriedUsers::Users(users),
                } => self.query_here(viewer, users, share).await,
                Query { .. } => Ok(None),
            },
            NodeQuestion::Explain => {
                self.explain_if_enabled()?;
                self.explain_by_shard(Explain::parse(asked)?).await
            }
        }
    }

    /// Answers a query with the owners of its users.
    pub(super) async fn ask_owners(
        &self,
        fleet: &Fleet,
        viewer: ByteString,
        users: Vec<ByteString>,
        share: Arc<BudgetShare>,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let until = Instant::now() + PATIENCE;
        let mut answers: Vec<Option<Box<[u8]>>> = vec![None; users.len()];
        loop {
            self.ask_once_each(fleet, &viewer, &users, &share, &mut answers)
                .await?;
            if answers.iter().all(Option::is_some) {
                break;
            }
            if Instant::now() >= until {
                return Err(Refusal::unavailable(NO_OWNER));
            }
            sleep(RETRY).await;
        }
        let _turn = self.turn().await;
        let answers: Vec<_> = answers.iter().flatten().map(|it| &**it).collect();
        let bytes = answers.iter().map(|it| it.len()).sum();
        let body = reply(&viewer, answers.into_iter(), bytes);
        fits(body.len(), self.body_bytes_max.load(Ordering::Relaxed))?;
        Ok(Some(body))
    }

    /// Asks each owner for the answers that are missing for its users.
    async fn ask_once_each(
        &self,
        fleet: &Fleet,
        viewer: &ByteString,
        users: &[ByteString],
        share: &Arc<BudgetShare>,
        answers: &mut [Option<Box<[u8]>>],
    ) -> Result<(), Refusal> {
        let owners = fleet.owners();
        let mut by_owner = BTreeMap::<_, Vec<Vec<usize>>>::new();
        for (place, user) in users.iter().enumerate() {
            let is_answered = answers.get(place).is_some_and(Option::is_some);
            let owner = owners.get(self.shards.place_of(user)).cloned().flatten();
            if let Some(owner) = owner.filter(|_| !is_answered) {
                let requests = by_owner.entry(owner).or_default();
                match requests.last_mut() {
                    Some(places) if places.len() < USERS_MAX => places.push(place),
                    _ => requests.push(vec![place]),
                }
            }
        }
        let requests = by_owner.into_iter().flat_map(|(owner, requests)| {
            let of_owner = move |places| (Arc::clone(&owner), places);
            requests.into_iter().map(of_owner)
        });
        let asked = requests.map(|(owner, places): (Arc<str>, Vec<usize>)| async move {
            let named = places.iter().filter_map(|place| users.get(*place));
            let named: Vec<_> = named.cloned().collect();
            let answered = match owner == fleet.node {
                true => {
                    let share = Arc::clone(share);
                    self.query_here(viewer.clone(), named, share).await?
                }
                false => self.ask_node(&owner, viewer, &named).await,
            };
            Ok::<_, Refusal>((places, answered))
        });
        for answered in join_all(asked).await {
            let (places, body) = answered?;
            let Some(body) = body else { continue };
            if !share.grow(body.len()) {
                return Err(Refusal::overloaded());
            }
            let _turn = self.turn().await;
            let Ok(Part { users }) = serde_json::from_slice::<Part<'_>>(&body) else {
                continue;
            };
            if users.len() != places.len() {
                continue;
            }
            for (place, answer) in places.into_iter().zip(users) {
                if let Some(known) = answers.get_mut(place) {
                    *known = Some(answer.get().as_bytes().into());
                }
            }
        }
        Ok(())
    }

    /// Asks another node. `None` if it doesn't answer, or can't.
    async fn ask_node(
        &self,
        node: &str,
        viewer: &ByteString,
        users: &[ByteString],
    ) -> Option<Vec<u8>> {
        let users: Vec<&str> = users.iter().map(|user| &**user).collect();
        let body = json!({"viewerId": &**viewer, "userIds": users}).to_string();
        let is_answer = |body: &[u8]| serde_json::from_slice::<Part<'_>>(body).is_ok();
        self.request(node, NodeQuestion::Query, body.into(), is_answer)
            .await
    }

    /// Gets an explanation from the user's owner.
    pub(super) async fn ask_owner(
        &self,
        fleet: &Fleet,
        asked: Explain,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let until = Instant::now() + PATIENCE;
        loop {
            let owners = fleet.owners();
            let owner = owners.get(self.shards.place_of(&asked.user));
            let explained = match owner.and_then(Option::as_ref) {
                Some(owner) if *owner == fleet.node => self.explain_by_shard(asked.clone()).await?,
                Some(owner) => {
                    let body = json!({"viewerId": &*asked.viewer, "userId": &*asked.user});
                    let is_answer = |body: &[u8]| {
                        let explained = serde_json::from_slice::<serde_json::Value>(body);
                        explained.is_ok_and(|it| it.get("viewerId").is_some())
                    };
                    let body = body.to_string().into();
                    let kind = NodeQuestion::Explain;
                    self.request(owner, kind, body, is_answer).await
                }
                None => None,
            };
            if explained.is_some() {
                return Ok(explained);
            }
            if Instant::now() >= until {
                return Err(Refusal::unavailable(NO_OWNER));
            }
            sleep(RETRY).await;
        }
    }

    async fn request(
        &self,
        node: &str,
        kind: NodeQuestion,
        body: Bytes,
        is_answer: impl Fn(&[u8]) -> bool,
    ) -> Option<Vec<u8>> {
        let subject = self.subjects.of_node(node, kind.as_str());
        let client = self.connection.client();
        // A refusal ends the wait as well.
        let read = |payload: &Bytes| match is_answer(payload) {
            true => Some(Some(payload.to_vec())),
            false => serde_json::from_slice::<Refused>(payload)
                .ok()
                .map(|Refused { .. }| None),
        };
        let asked = request::ask(client, &subject, body, ANSWER, |it| read(&it.payload));
        asked.await.ok().flatten()
    }
}

/// A node's refusal.
#[derive(Deserialize)]
struct Refused {
    #[serde(rename = "reason")]
    _reason: String,
}
