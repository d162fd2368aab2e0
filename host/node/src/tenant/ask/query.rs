//! Answers a query: its users are divided among the shards that own them, and the answers are put
//! in the order of the request. The last shard to answer hands back all answers at once, because
//! waking the waiting task for each would cost more than the answers.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytestring::ByteString;
use presence_core::body::query::{ANSWER_BYTES_MIN, Answers, reply};
use presence_core::message::Cause;
use presence_core::query::{QueriedUsers, Query, Refusal};
use tokio::sync::oneshot;

use super::{BudgetShare, QueryService, TRIES};
use crate::pool::ShardQuestion;

/// How many users a shard answers for at a time, before its inputs have their turn.
const PIECE_MAX: usize = 128;

/// A query that is split by shard.
#[derive(Debug)]
struct SplitQuery {
    viewer: ByteString,
    users: Vec<ByteString>,
    pieces: Vec<Piece>,
    /// The place of each user's answer: the piece, and the index in it.
    answer_places: Vec<(usize, usize)>,
}

/// A part of a query for one shard.
#[derive(Debug)]
struct Piece {
    shard: usize,
    /// The indexes of its users in the query.
    users: Vec<usize>,
    answers: OnceLock<Answers>,
}

/// A query in progress. Each shard holds a reference to it, and drops it when it has answered.
#[derive(Debug)]
pub(crate) struct PendingQuery {
    questions: SplitQuery,
    done: oneshot::Sender<FinishedQuery>,
    /// The size of the answers so far, and the longest reply, in bytes.
    bytes: AtomicUsize,
    bytes_max: usize,
    share: Arc<BudgetShare>,
    /// Whether there was no room for its answers.
    is_overload: AtomicBool,
    /// Whether nobody waits for its answers any more.
    is_given_up: AtomicBool,
}

/// A query whose shards have answered, or have stopped early.
#[derive(Debug)]
struct FinishedQuery {
    questions: SplitQuery,
    /// The size of the answers, in bytes. If it exceeds the limit, some answers are missing.
    bytes: usize,
    /// Whether there was no room for all answers. Some are missing then.
    is_overload: bool,
}

impl PendingQuery {
    pub(crate) fn viewer(&self) -> &str {
        &self.questions.viewer
    }

    /// The users of a piece.
    pub(crate) fn users(&self, piece: usize) -> impl Iterator<Item = &str> {
        let pieces = self.questions.pieces.get(piece).into_iter();
        let places = pieces.flat_map(|piece| &piece.users);
        places.filter_map(|place| self.questions.users.get(*place).map(|user| &**user))
    }

    /// Stores the answers to a piece, if there is room for them.
    pub(crate) fn answer(self: Arc<Self>, piece: usize, answers: Answers) {
        let bytes = answers.bytes();
        let sum = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if !self.share.grow(bytes) {
            self.is_overload.store(true, Ordering::Relaxed);
            self.give_up();
        } else if let Some(piece) = self.questions.pieces.get(piece) {
            // It can't be set already: each piece is asked once.
            let _ = piece.answers.set(answers);
            // Further answers would be useless.
            if sum > self.bytes_max {
                self.give_up();
            }
        }
        self.finish_piece();
    }

    /// Whether it needn't be answered any more.
    pub(crate) fn is_given_up(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed)
    }

    /// Stops further answers.
    fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Relaxed);
    }

    /// Handles a piece that isn't answered, because the query was given up.
    pub(crate) fn skip_piece(self: Arc<Self>) {
        self.finish_piece();
    }

    /// Drops a reference. The last one hands back the query.
    fn finish_piece(self: Arc<Self>) {
        if let Some(asking) = Arc::into_inner(self) {
            // The requester may have given up.
            let _ = asking.done.send(FinishedQuery {
                questions: asking.questions,
                bytes: asking.bytes.into_inner(),
                is_overload: asking.is_overload.into_inner(),
            });
        }
    }
}

impl SplitQuery {
    fn new(viewer: ByteString, users: Vec<ByteString>, service: &QueryService) -> Self {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut filling = vec![None; service.shards.iter().len()];
        let answer_places = users.iter().enumerate().map(|(place, user)| {
            let shard = service.shards.place_of(user);
            let known: Option<usize> = filling.get(shard).copied().flatten();
            let is_open = |piece: &usize| {
                let piece: Option<&Piece> = pieces.get(*piece);
                piece.is_some_and(|piece| piece.users.len() < PIECE_MAX)
            };
            let number = known.filter(is_open).unwrap_or(pieces.len());
            if number == pieces.len() {
                let room = users.len().min(PIECE_MAX);
                pieces.push(Piece {
                    shard,
                    users: Vec::with_capacity(room),
                    answers: OnceLock::new(),
                });
                if let Some(filling) = filling.get_mut(shard) {
                    *filling = Some(number);
                }
            }
            let Some(piece) = pieces.get_mut(number) else {
                return (number, 0);
            };
            piece.users.push(place);
            (number, piece.users.len() - 1)
        });
        let answer_places = answer_places.collect();
        Self {
            viewer,
            answer_places,
            pieces,
            users,
        }
    }

    /// The answers in the order of the request.
    fn in_order(&self) -> impl Iterator<Item = &[u8]> {
        self.answer_places
            .iter()
            .filter_map(|(piece, place)| self.pieces.get(*piece)?.answers.get()?.get(*place))
    }

    /// The size of the answers, in bytes.
    fn bytes(&self) -> usize {
        let answers = self.pieces.iter().filter_map(|piece| piece.answers.get());
        answers.map(Answers::bytes).sum()
    }
}

impl QueryService {
    /// Answers a query. `None` if a shard could not answer.
    pub(super) async fn query(
        &self,
        query: Query,
        share: Arc<BudgetShare>,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let body_bytes_max = self.body_bytes_max.load(Ordering::Relaxed);
        let users = match query.asked {
            QueriedUsers::Users(users) => users,
            QueriedUsers::Contacts => match self.contacts(&query.viewer).await? {
                Some(contacts) => contacts,
                None => return Ok(None),
            },
        };
        fits(users.len() * ANSWER_BYTES_MIN, body_bytes_max)?;
        if let Some(fleet) = &self.fleet {
            return self.ask_owners(fleet, query.viewer, users, share).await;
        }
        self.query_here(query.viewer, users, share).await
    }

    /// Answers a query with the shards of this node. `None` if a shard could not answer.
    pub(super) async fn query_here(
        &self,
        viewer: ByteString,
        users: Vec<ByteString>,
        share: Arc<BudgetShare>,
    ) -> Result<Option<Vec<u8>>, Refusal> {
        let body_bytes_max = self.body_bytes_max.load(Ordering::Relaxed);
        let turn = self.turn().await;
        let questions = SplitQuery::new(viewer, users, self);
        drop(turn);
        let Some(answered) = self.ask(questions, body_bytes_max, &share).await? else {
            return Ok(None);
        };
        let _turn = self.turn().await;
        let body = reply(&answered.viewer, answered.in_order(), answered.bytes());
        fits(body.len(), body_bytes_max)?;
        Ok(Some(body))
    }

    /// Gets the answers to all pieces. `None` if a shard could not answer. Users who can't be
    /// decided on in any attempt are shown as hidden.
    async fn ask(
        &self,
        mut questions: SplitQuery,
        bytes_max: usize,
        share: &Arc<BudgetShare>,
    ) -> Result<Option<SplitQuery>, Refusal> {
        let mut pieces: Vec<_> = (0..questions.pieces.len()).collect();
        for _ in 0..TRIES {
            let Some(answered) = self.ask_once(questions, &pieces, bytes_max, share).await? else {
                return Ok(None);
            };
            questions = answered;
            let answers = questions.pieces.iter().map(|piece| piece.answers.get());
            let Some(answers) = answers.collect::<Option<Vec<_>>>() else {
                return Ok(None);
            };
            let unanswered = || {
                let all = answers.iter().enumerate();
                all.filter(|(_, answers)| !answers.cache_misses.is_empty())
            };
            pieces = unanswered().map(|(piece, _)| piece).collect();
            let missing =
                unanswered().flat_map(|(_, answers)| answers.cache_misses.iter().cloned());
            let missing = missing.collect::<BTreeSet<_>>();
            if missing.is_empty() || !self.has_answers(&missing).await {
                break;
            }
        }
        Ok(Some(questions))
    }

    /// Asks for the answers to some pieces, and drops earlier answers to them. `None` if a shard
    /// could not answer.
    async fn ask_once(
        &self,
        mut questions: SplitQuery,
        pieces: &[usize],
        bytes_max: usize,
        share: &Arc<BudgetShare>,
    ) -> Result<Option<SplitQuery>, Refusal> {
        for number in pieces {
            let piece = questions.pieces.get_mut(*number);
            if let Some(answers) = piece.and_then(|piece| piece.answers.take()) {
                share.shrink(answers.bytes());
            }
        }
        let (done, answered) = oneshot::channel();
        let asking = Arc::new(PendingQuery {
            bytes: questions.bytes().into(),
            questions,
            done,
            bytes_max,
            share: Arc::clone(share),
            is_overload: false.into(),
            is_given_up: false.into(),
        });
        for number in pieces {
            let piece = asking.questions.pieces.get(*number);
            let Some(shard) = piece.and_then(|piece| self.shards.get(piece.shard)) else {
                return Ok(None);
            };
            if !shard.ask(ShardQuestion::Query(Arc::clone(&asking), *number)) {
                asking.give_up();
                return Err(Refusal::overloaded());
            }
        }
        asking.finish_piece();
        let Ok(answered) = answered.await else {
            return Ok(None);
        };
        if answered.is_overload {
            return Err(Refusal::overloaded());
        }
        fits(answered.bytes, bytes_max)?;
        Ok(Some(answered.questions))
    }

    /// A viewer's own contacts. `None` if a shard could not answer.
    async fn contacts(&self, viewer: &ByteString) -> Result<Option<Vec<ByteString>>, Refusal> {
        let Some(shard) = self.shards.get(self.shards.place_of(viewer)) else {
            return Ok(None);
        };
        for _ in 0..TRIES {
            let (answer, answered) = oneshot::channel();
            if !shard.ask(ShardQuestion::Contacts(viewer.clone(), answer)) {
                return Err(Refusal::overloaded());
            }
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

/// Checks that an answer of this many bytes can be sent.
pub(super) fn fits(bytes: usize, body_bytes_max: usize) -> Result<(), Refusal> {
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
