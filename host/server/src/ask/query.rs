//! Answering a query: its users are shared out to the workers that own them, and
//! the answers gathered in the order in which the users were asked after.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytestring::ByteString;
use presence_core::body::query::{ANSWER_BYTES_MIN, Answers, reply};
use presence_core::message::Cause;
use presence_core::query::{Asked, Query, Refusal};
use tokio::sync::oneshot;

use super::{Desk, TRIES};
use crate::worker::Task;

/// How many users a worker answers on before its inputs get their turn.
const PIECE_MAX: usize = 128;

/// A query, shared out.
#[derive(Debug)]
pub(crate) struct Questions {
    pub(crate) viewer: ByteString,
    users: Vec<ByteString>,
    pieces: Vec<Piece>,
    /// Where the answer on each user is: in which piece, and at which place there.
    spots: Vec<(usize, usize)>,
}

/// What one worker is asked at once.
#[derive(Debug)]
struct Piece {
    worker: usize,
    /// Which of the users.
    users: Vec<usize>,
}

impl Questions {
    fn new(viewer: ByteString, users: Vec<ByteString>, desk: &Desk) -> Self {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut filling = vec![None; desk.workers.iter().len()];
        let spots = users.iter().enumerate().map(|(place, user)| {
            let worker = desk.workers.place_of(user);
            let known: Option<usize> = filling.get(worker).copied().flatten();
            let is_open = |piece: &usize| {
                let piece: Option<&Piece> = pieces.get(*piece);
                piece.is_some_and(|piece| piece.users.len() < PIECE_MAX)
            };
            let number = known.filter(is_open).unwrap_or(pieces.len());
            if number == pieces.len() {
                let room = users.len().min(PIECE_MAX);
                pieces.push(Piece {
                    worker,
                    users: Vec::with_capacity(room),
                });
                if let Some(filling) = filling.get_mut(worker) {
                    *filling = Some(number);
                }
            }
            let Some(piece) = pieces.get_mut(number) else {
                return (number, 0);
            };
            piece.users.push(place);
            (number, piece.users.len() - 1)
        });
        let spots = spots.collect();
        Self {
            viewer,
            spots,
            pieces,
            users,
        }
    }

    /// The users of a piece.
    pub(crate) fn users(&self, piece: usize) -> impl Iterator<Item = &str> {
        let places = self.pieces.get(piece).into_iter();
        let places = places.flat_map(|piece| &piece.users);
        places.filter_map(|place| self.users.get(*place).map(|user| &**user))
    }
}

impl Desk {
    /// Answers a query; with nothing if the node is being stopped.
    pub(super) async fn query(&self, query: Query) -> Result<Option<Vec<u8>>, Refusal> {
        let body_bytes_max = self.body_bytes_max.load(Ordering::Relaxed);
        let users = match query.asked {
            Asked::Users(users) => users,
            Asked::Contacts => match self.contacts(&query.viewer).await? {
                Some(contacts) => contacts,
                None => return Ok(None),
            },
        };
        fits(users.len() * ANSWER_BYTES_MIN, body_bytes_max)?;
        let questions = Arc::new(Questions::new(query.viewer, users, self));
        let Some(answers) = self.ask(&questions).await else {
            return Ok(None);
        };
        let spots = questions.spots.iter();
        let in_order =
            spots.filter_map(|(piece, place)| answers.get(*piece).and_then(|all| all.get(*place)));
        let bytes = answers.iter().map(Answers::bytes).sum();
        let body = reply(&questions.viewer, in_order, bytes);
        fits(body.len(), body_bytes_max)?;
        Ok(Some(body))
    }

    /// The answers to every piece. Who can't be decided on within all tries looks
    /// hidden.
    async fn ask(&self, questions: &Arc<Questions>) -> Option<Vec<Answers>> {
        let mut answers: Vec<_> = questions.pieces.iter().map(|_| None).collect();
        for _ in 0..TRIES {
            let mut asked = Vec::with_capacity(answers.len());
            for (number, piece) in questions.pieces.iter().enumerate() {
                let answered: Option<&Answers> = answers.get(number).and_then(Option::as_ref);
                let unanswered = answered.is_none_or(|all| !all.not_at_hand.is_empty());
                if let Some(worker) = self.workers.get(piece.worker).filter(|_| unanswered) {
                    let (answer, answered) = oneshot::channel();
                    let questions = Arc::clone(questions);
                    worker.send(Task::Query(questions, number, answer)).await;
                    asked.push((number, answered));
                }
            }
            for (number, answered) in asked {
                let answered = answered.await.ok()?;
                if let Some(slot) = answers.get_mut(number) {
                    *slot = Some(answered);
                }
            }
            let answered = answers.iter().flatten();
            let missing = answered.flat_map(|all| all.not_at_hand.iter().cloned());
            let missing = missing.collect::<BTreeSet<_>>();
            if missing.is_empty() || !self.has_answers(&missing).await {
                break;
            }
        }
        Some(answers.into_iter().flatten().collect())
    }

    /// A viewer's own contacts; none if the node is being stopped.
    async fn contacts(&self, viewer: &ByteString) -> Result<Option<Vec<ByteString>>, Refusal> {
        let Some(worker) = self.workers.get(self.workers.place_of(viewer)) else {
            return Ok(None);
        };
        for _ in 0..TRIES {
            let (answer, answered) = oneshot::channel();
            worker.send(Task::Contacts(viewer.clone(), answer)).await;
            let missing = match answered.await {
                Err(_) => return Ok(None),
                Ok(Ok(contacts)) => {
                    let contacts = contacts.iter().map(|name| name.as_str().into());
                    return Ok(Some(contacts.collect()));
                }
                Ok(Err(question)) => BTreeSet::from([question]),
            };
            if !self.has_answers(&missing).await {
                break;
            }
        }
        Err(Refusal::unavailable(
            "the directory doesn't say who the viewer's contacts are: ask again later",
        ))
    }
}

/// Whether an answer of so many bytes can be sent.
fn fits(bytes: usize, body_bytes_max: usize) -> Result<(), Refusal> {
    if bytes <= body_bytes_max {
        return Ok(());
    }
    let error = format!(
        "the answer takes {bytes} bytes or more, and no more than {body_bytes_max} fit the \
         broker's max_payload: ask in parts"
    );
    Err(Refusal {
        field: Some("userIds".into()),
        ..Refusal::new(Cause::TooLarge, error)
    })
}
