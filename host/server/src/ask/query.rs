//! Answering a query: its users are shared out to the workers that own them, and
//! the answers gathered in the order in which the users were asked after. The worker
//! that is last to answer hands back all answers at once, since waking whoever
//! waits for them costs more than the answers do.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

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
struct Questions {
    viewer: ByteString,
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
    answers: OnceLock<Answers>,
}

/// A query that workers are at: each has one of these, and lets go of it when it has
/// answered.
#[derive(Debug)]
pub(crate) struct Asking {
    questions: Questions,
    done: oneshot::Sender<Questions>,
}

impl Asking {
    pub(crate) fn viewer(&self) -> &str {
        &self.questions.viewer
    }

    /// The users of a piece.
    pub(crate) fn users(&self, piece: usize) -> impl Iterator<Item = &str> {
        let pieces = self.questions.pieces.get(piece).into_iter();
        let places = pieces.flat_map(|piece| &piece.users);
        places.filter_map(|place| self.questions.users.get(*place).map(|user| &**user))
    }

    /// Takes the answers to a piece.
    pub(crate) fn answer(self: Arc<Self>, piece: usize, answers: Answers) {
        if let Some(piece) = self.questions.pieces.get(piece) {
            // Nobody else is asked for this piece.
            let _ = piece.answers.set(answers);
        }
        self.release();
    }

    /// Whoever is last hands back the query.
    fn release(self: Arc<Self>) {
        if let Some(Self { questions, done }) = Arc::into_inner(self) {
            // Whoever asked may have given up.
            let _ = done.send(questions);
        }
    }
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
                    answers: OnceLock::new(),
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

    /// The answers in the order in which the users were asked after.
    fn in_order(&self) -> impl Iterator<Item = &[u8]> {
        self.spots
            .iter()
            .filter_map(|(piece, place)| self.pieces.get(*piece)?.answers.get()?.get(*place))
    }

    /// How many bytes they take.
    fn bytes(&self) -> usize {
        let answers = self.pieces.iter().filter_map(|piece| piece.answers.get());
        answers.map(Answers::bytes).sum()
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
        let questions = Questions::new(query.viewer, users, self);
        let Some(answered) = self.ask(questions).await else {
            return Ok(None);
        };
        let body = reply(&answered.viewer, answered.in_order(), answered.bytes());
        fits(body.len(), body_bytes_max)?;
        Ok(Some(body))
    }

    /// Has every piece answered; none if the node is being stopped. Who can't be
    /// decided on within all tries looks hidden.
    async fn ask(&self, mut questions: Questions) -> Option<Questions> {
        let mut pieces: Vec<_> = (0..questions.pieces.len()).collect();
        for _ in 0..TRIES {
            questions = self.ask_once(questions, &pieces).await?;
            let answers = questions.pieces.iter().map(|piece| piece.answers.get());
            let answers = answers.collect::<Option<Vec<_>>>()?;
            let unanswered = || {
                let all = answers.iter().enumerate();
                all.filter(|(_, answers)| !answers.not_at_hand.is_empty())
            };
            pieces = unanswered().map(|(piece, _)| piece).collect();
            let missing = unanswered().flat_map(|(_, answers)| answers.not_at_hand.iter().cloned());
            let missing = missing.collect::<BTreeSet<_>>();
            if missing.is_empty() || !self.has_answers(&missing).await {
                break;
            }
        }
        Some(questions)
    }

    /// Has some pieces answered, anew if they have been before.
    async fn ask_once(&self, mut questions: Questions, pieces: &[usize]) -> Option<Questions> {
        let mut workers = Vec::with_capacity(pieces.len());
        for number in pieces {
            let piece = questions.pieces.get_mut(*number)?;
            piece.answers.take();
            workers.push((*number, self.workers.get(piece.worker)?));
        }
        let (done, answered) = oneshot::channel();
        let asking = Arc::new(Asking { questions, done });
        for (number, worker) in workers {
            let task = Task::Query(Arc::clone(&asking), number);
            worker.send(task).await;
        }
        asking.release();
        answered.await.ok()
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
