//! Keeps track of which answers are there, which are being requested, and when each is requested
//! again. It does no I/O, and gets the time as an argument.
//!
//! An answer is valid for its time to live. After that it is requested again if a shard still uses
//! it, and stays valid until the reply. If the service doesn't reply, the answer is removed from the
//! directory, so that decisions that need it are pending; it is requested again with back-off, as
//! are questions that were never answered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use presence_core::directory::Question;
use roaring::RoaringBitmap;

/// The wait before a question without an answer is asked again, at first and at most, in
/// milliseconds.
const RETRY_MS: (u64, u64) = (250, 10_000);

/// How many questions may wait to be asked. Further ones are dropped, and come again when those who
/// need them try again. A plugin can make up questions faster than they are answered.
const READY_MAX: usize = 1_000_000;

/// How long an outage must last, in milliseconds, before the service is reported as away. If the
/// first retry is answered, the service was only late.
const AWAY_MS: u64 = 1_000;

/// The configured limits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// How long an answer is valid, in milliseconds.
    pub(super) ttl_ms: u64,
    /// How many requests may be under way at a time.
    pub(super) concurrency: usize,
}

/// All questions and the state of each.
#[derive(Debug)]
pub(super) struct Cache {
    limits: Limits,
    entries: BTreeMap<Question, Entry>,
    /// The questions to be asked next, in order. Those that are no longer [`Phase::Ready`] are
    /// skipped.
    ready: VecDeque<Question>,
    /// When the phase of a question ends: an answer expires, or a wait is over.
    deadlines: BTreeSet<(u64, Question)>,
    /// Results for the directory: a reply, or `None` to remove the answer.
    arrived: Vec<(Question, Option<Bytes>)>,
    under_way: usize,
    /// The current outage of the service. `None`: it answers.
    outage: Option<Outage>,
    /// When the service last replied to any question.
    replied_at: u64,
    /// How many of the entries have an unusable last reply.
    refused: usize,
    /// Since when there have been unusable replies, and what was wrong with the last one.
    refusal: Option<(u64, String)>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    phase: Phase,
    /// Whether the directory has an answer, or is about to get one.
    held: bool,
    /// The request under way was sent before the data changed, so its reply doesn't count.
    outdated: bool,
    refused: bool,
    /// How long to wait after the next failure; 0 after a success.
    wait_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To be asked when fewer requests are under way.
    Ready,
    /// Asked at this time; no reply has come.
    UnderWay(u64),
    /// A reply has come, and hasn't been read yet.
    Arrived,
    /// Answered. The answer is valid until this time.
    Fresh(u64),
    /// Not answered. It is asked again at this time.
    Later(u64),
    /// Expired. The shards are being asked whether they use the answer.
    Checked,
}

/// The service is away: one question at a time is asked, to notice when it is back.
#[derive(Debug)]
struct Outage {
    retry_at: u64,
    wait_ms: u64,
    /// When a question first got no reply, and the reason of the last failure.
    since: u64,
    why: String,
    /// The question that failed last. It is asked until it is answered, even if no shard needs it
    /// any more: otherwise nothing would notice that the service is back.
    probe: Question,
}

impl Cache {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            ready: VecDeque::new(),
            deadlines: BTreeSet::new(),
            arrived: Vec::new(),
            under_way: 0,
            outage: None,
            replied_at: 0,
            refused: 0,
            refusal: None,
        }
    }

    /// Adds questions to be asked, unless they are known. Returns whether any is new.
    pub(super) fn want(&mut self, questions: impl IntoIterator<Item = Question>) -> bool {
        let before = self.entries.len();
        for question in questions {
            if self.ready.len() < READY_MAX && !self.entries.contains_key(&question) {
                let entry = Entry {
                    phase: Phase::Ready,
                    held: false,
                    outdated: false,
                    refused: false,
                    wait_ms: 0,
                };
                self.entries.insert(question.clone(), entry);
                self.ready.push_back(question);
            }
        }
        self.entries.len() > before
    }

    /// The next question to ask, if one may be asked now.
    pub(super) fn next(&mut self, now: u64) -> Option<Question> {
        let room = match &self.outage {
            Some(outage) if now < outage.retry_at => 0,
            Some(_) => 1,
            None => self.limits.concurrency,
        };
        while self.under_way < room {
            let question = self.ready.pop_front()?;
            if let Some(entry) = self.entries.get_mut(&question)
                && entry.phase == Phase::Ready
            {
                entry.phase = Phase::UnderWay(now);
                self.under_way += 1;
                return Some(question);
            }
        }
        None
    }

    /// The service has replied to a question.
    pub(super) fn on_reply(&mut self, question: &Question, now: u64, payload: Bytes) {
        self.under_way -= 1;
        self.replied_at = now;
        if self.outage.take().is_some() {
            tracing::info!("the directory's service answers again");
            self.requeue_all(|phase| matches!(phase, Phase::Later(_)));
        }
        if let Some(entry) = self.entries.get_mut(question) {
            entry.phase = Phase::Arrived;
            self.arrived.push((question.clone(), Some(payload)));
        }
    }

    /// A question got no reply.
    pub(super) fn on_no_reply(&mut self, question: &Question, now: u64, why: &str) {
        self.under_way -= 1;
        let Some(Entry {
            phase: Phase::UnderWay(asked_at),
            ..
        }) = self.entries.get(question).copied()
        else {
            return;
        };
        // A service that has answered another question since this one was asked is not away.
        if self.replied_at <= asked_at {
            let wait_ms = match &self.outage {
                None => {
                    tracing::error!(
                        "the directory's service doesn't answer; it is asked again, and nobody \
                         new is told where its answer is needed: {why}"
                    );
                    Some(RETRY_MS.0)
                }
                // Requests that were under way when the outage began don't extend it.
                Some(outage) if outage.retry_at <= asked_at => Some(longer(outage.wait_ms)),
                Some(_) => None,
            };
            if let Some(wait_ms) = wait_ms {
                let before = self.outage.take();
                let begins = before.is_none();
                self.outage = Some(Outage {
                    retry_at: now + wait_ms,
                    wait_ms,
                    since: before.map_or(now, |before| before.since),
                    why: why.to_owned(),
                    probe: question.clone(),
                });
                if begins {
                    self.give_up_overdue();
                }
            }
        }
        if self.fail(question, now) {
            self.arrived.push((question.clone(), None));
        }
    }

    /// Removes the old answers of the questions that wait to be asked again.
    fn give_up_overdue(&mut self) {
        for question in &self.ready {
            if let Some(entry) = self.entries.get_mut(question)
                && std::mem::take(&mut entry.held)
            {
                self.arrived.push((question.clone(), None));
            }
        }
    }

    /// Notes a failure, and schedules the next attempt. Returns whether the directory has an older
    /// answer, which must be removed.
    fn fail(&mut self, question: &Question, now: u64) -> bool {
        let Some(entry) = self.entries.get_mut(question) else {
            return false;
        };
        let wait_ms = entry.wait_ms.max(RETRY_MS.0);
        entry.wait_ms = longer(wait_ms);
        entry.outdated = false;
        entry.phase = Phase::Later(now + wait_ms);
        self.deadlines.insert((now + wait_ms, question.clone()));
        std::mem::take(&mut entry.held)
    }

    /// Queues a question to be asked again. An older answer stays valid until the reply comes,
    /// unless the service is away.
    fn requeue(&mut self, question: Question) {
        let Some(entry) = self.entries.get_mut(&question) else {
            return;
        };
        if let Phase::Fresh(at) | Phase::Later(at) = entry.phase {
            self.deadlines.remove(&(at, question.clone()));
        }
        entry.phase = Phase::Ready;
        if self.outage.is_some() && std::mem::take(&mut entry.held) {
            self.arrived.push((question.clone(), None));
        }
        self.ready.push_back(question);
    }

    /// Whether [`Self::take_arrived`] has anything to return.
    pub(super) fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// Takes the results for the directory since the last call, in order: replies, each of which
    /// must be [settled](Self::settle), and `None` for answers to be removed.
    pub(super) fn take_arrived(&mut self) -> Vec<(Question, Option<Bytes>)> {
        let arrived = std::mem::take(&mut self.arrived);
        let mut current = Vec::with_capacity(arrived.len());
        for (question, payload) in arrived {
            let entry = self.entries.get_mut(&question);
            let replied = entry.filter(|_| payload.is_some());
            if replied.is_some_and(|entry| std::mem::take(&mut entry.outdated)) {
                // A reply from before a change may show too much. It is asked for again.
                self.requeue(question);
            } else {
                current.push((question, payload));
            }
        }
        current
    }

    /// Notes that a reply was read. `refusal`: why it can't be used; `None` if it is an answer.
    pub(super) fn on_reply_read(&mut self, question: &Question, now: u64, refusal: Option<String>) {
        let Some(entry) = self.entries.get_mut(question) else {
            return;
        };
        if entry.phase != Phase::Arrived {
            return;
        }
        let was_refused = std::mem::replace(&mut entry.refused, refusal.is_some());
        match &refusal {
            None => {
                let until = now + self.limits.ttl_ms;
                entry.held = true;
                entry.wait_ms = 0;
                entry.phase = Phase::Fresh(until);
                self.deadlines.insert((until, question.clone()));
                if std::mem::take(&mut entry.outdated) {
                    self.invalidate(Some(question));
                }
            }
            // The reader of the reply removes the older answer from the directory.
            Some(_) => drop(self.fail(question, now)),
        }
        match (&refusal, was_refused) {
            (Some(why), false) => {
                let since = self.refusal.as_ref().map_or(now, |(since, _)| *since);
                self.refusal = Some((since, why.clone()));
                self.refused += 1;
                if self.refused == 1 {
                    tracing::error!("an answer of the directory's service can't be read, {why}");
                }
            }
            (None, true) => self.forget_refusal(),
            _ => {}
        }
    }

    fn forget_refusal(&mut self) {
        self.refused -= 1;
        if self.refused == 0 {
            self.refusal = None;
            tracing::info!("all answers of the directory's service can be read again");
        }
    }

    /// The questions whose time is up. The caller finds out whether a shard uses each answer, and
    /// calls [`Self::on_use_checked`].
    pub(super) fn take_due(&mut self, now: u64) -> Vec<Question> {
        let mut due = Vec::new();
        while let Some((at, _)) = self.deadlines.first()
            && *at <= now
            && let Some((_, question)) = self.deadlines.pop_first()
        {
            if let Some(entry) = self.entries.get_mut(&question) {
                entry.phase = Phase::Checked;
                due.push(question);
            }
        }
        due
    }

    /// Asks a question again if its answer is used, or forgets it.
    pub(super) fn on_use_checked(&mut self, question: &Question, is_used: bool) {
        let Some(entry) = self.entries.get_mut(question) else {
            return;
        };
        if entry.phase != Phase::Checked {
            return;
        }
        let probe = self.outage.as_ref().map(|outage| &outage.probe);
        if is_used || probe == Some(question) {
            return self.requeue(question.clone());
        }
        let (held, refused) = (entry.held, entry.refused);
        self.entries.remove(question);
        if held {
            self.arrived.push((question.clone(), None));
        }
        if refused {
            self.forget_refusal();
        }
    }

    /// The answer to this question may be outdated; `None`: all answers may be. It is requested
    /// again, and the old answer stays valid until the reply.
    pub(super) fn invalidate(&mut self, question: Option<&Question>) {
        let Some(question) = question else {
            for entry in self.entries.values_mut() {
                entry.outdated |= matches!(entry.phase, Phase::UnderWay(_) | Phase::Arrived);
            }
            return self.requeue_all(|phase| matches!(phase, Phase::Fresh(_) | Phase::Checked));
        };
        let Some(entry) = self.entries.get_mut(question) else {
            return;
        };
        match entry.phase {
            Phase::Fresh(_) | Phase::Checked => self.requeue(question.clone()),
            Phase::UnderWay(_) | Phase::Arrived => entry.outdated = true,
            Phase::Ready | Phase::Later(_) => {}
        }
    }

    /// The connection to the broker is back. Invalidations may have been missed, so everything is
    /// asked again; and the service can be reached again.
    pub(super) fn on_reconnect(&mut self) {
        if self.outage.take().is_some() {
            self.requeue_all(|phase| matches!(phase, Phase::Later(_)));
        }
        self.invalidate(None);
    }

    /// Queues all questions in the given phases again, in a stable order.
    fn requeue_all(&mut self, is_one: impl Fn(Phase) -> bool) {
        let entries = self.entries.iter();
        let questions: Vec<_> = entries
            .filter(|(_, entry)| is_one(entry.phase))
            .map(|(question, _)| question.clone())
            .collect();
        for question in questions {
            self.requeue(question);
        }
    }

    /// When the next step is due, if nothing happens before.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        let retry_at = self.outage.as_ref().map(|outage| outage.retry_at);
        let retry_at = retry_at.filter(|_| self.under_way == 0 && !self.ready.is_empty());
        let first = self.deadlines.first().map(|(at, _)| *at);
        first.into_iter().chain(retry_at).min()
    }

    /// How many answers the directory has, how many it lacks, and whether the service is away.
    pub(super) fn figures(&self) -> (usize, usize, bool) {
        let held = self.entries.values().filter(|entry| entry.held).count();
        (held, self.entries.len() - held, self.outage.is_some())
    }

    /// For how long the service has been away, in milliseconds, and why. `None` if it isn't away. A
    /// service counts as away, too, if its replies are unusable and the directory has no answer at
    /// all.
    pub(super) fn outage(&self, now: u64) -> Option<(u64, String)> {
        let is_unread = || self.entries.values().all(|entry| !entry.held);
        let unread = || self.refusal.as_ref().filter(|_| is_unread());
        let (since, why) = match &self.outage {
            Some(outage) => (outage.since, &outage.why),
            None => unread().map(|(since, why)| (*since, why))?,
        };
        let away_ms = now.saturating_sub(since);
        (away_ms >= AWAY_MS).then(|| (away_ms, why.clone()))
    }

    /// The numbers of all user ids in the questions.
    pub(super) fn ids(&self) -> RoaringBitmap {
        let taken = self.arrived.iter().map(|(question, _)| question);
        let questions = self.entries.keys().chain(taken);
        questions
            .filter_map(Question::user)
            .map(|id| id.0)
            .collect()
    }
}

/// The wait that follows a wait of `wait_ms`.
fn longer(wait_ms: u64) -> u64 {
    (wait_ms * 2).min(RETRY_MS.1)
}

#[cfg(test)]
mod tests;
