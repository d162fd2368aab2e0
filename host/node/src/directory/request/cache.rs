//! Which answers are at hand, which are being asked for, and when each is asked
//! for again. It does no I/O, and is handed the time.
//!
//! An answer is valid for its time to live. After that it is requested again if a shard still uses
//! it, and stays valid until the reply. If the service doesn't reply, the answer is removed from the
//! directory, so that decisions that need it are pending; it is requested again with back-off, as
//! are questions that were never answered.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use presence_core::directory::Question;
use roaring::RoaringBitmap;

/// How long to wait before a question is asked again that wasn't answered: at first,
/// and at most, in milliseconds.
const RETRY_MS: (u64, u64) = (250, 10_000);

/// How many questions may wait to be asked. Further ones are asked when those who need them
/// try again: a plugin can make questions up faster than they are answered.
const READY_MAX: usize = 1_000_000;

/// From when on the service is said to be away, in milliseconds: a question that is
/// answered when it is asked again was only late.
const AWAY_MS: u64 = 1_000;

/// What the cache goes by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// For how long an answer is good.
    pub(super) ttl_ms: u64,
    /// How many requests may be under way.
    pub(super) concurrency: usize,
}

/// All that is asked.
#[derive(Debug)]
pub(super) struct Cache {
    limits: Limits,
    entries: BTreeMap<Question, Entry>,
    /// What is to be asked next, in this order. One that isn't [`Phase::Ready`] any
    /// more is passed over.
    ready: VecDeque<Question>,
    /// When the time of an answer, or of a wait, is up.
    agenda: BTreeSet<(u64, Question)>,
    /// What came of asking, for the directory; none takes an answer away.
    arrived: Vec<(Question, Option<Bytes>)>,
    under_way: usize,
    /// While the service is away.
    outage: Option<Outage>,
    /// When the service last said something.
    replied_at: u64,
    /// How many of the entries were refused.
    refused: usize,
    /// Since when some have been, and why the last one was.
    refusal: Option<(u64, String)>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    phase: Phase,
    /// Whether the directory has an answer, or is about to get it.
    held: bool,
    /// What is under way was asked for before it changed.
    outdated: bool,
    refused: bool,
    /// How long to wait after the next failure; 0 after a success.
    wait_ms: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// To be asked when there is room.
    Ready,
    /// Asked at that time.
    UnderWay(u64),
    /// The reply hasn't been read yet.
    Arrived,
    /// Answered, and good until that time.
    Fresh(u64),
    /// Not answered, and to be asked again at that time.
    Later(u64),
    /// Its time is up, and whether somebody goes by it is being found out.
    Checked,
}

/// The service is away: one question at a time is asked, to see whether it is back.
#[derive(Debug)]
struct Outage {
    retry_at: u64,
    wait_ms: u64,
    /// When a question was first not answered, and the last reason.
    since: u64,
    why: String,
    /// What wasn't answered last. It is asked until it is, whether or not somebody still
    /// needs it: else nobody would find out that the service is back.
    probe: Question,
}

impl Cache {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: BTreeMap::new(),
            ready: VecDeque::new(),
            agenda: BTreeSet::new(),
            arrived: Vec::new(),
            under_way: 0,
            outage: None,
            replied_at: 0,
            refused: 0,
            refusal: None,
        }
    }

    /// Has these questions asked, and says whether any is new. The others are at
    /// hand, on their way to those who want them, or being asked.
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

    /// The next question to ask, if one is to be asked now.
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
    pub(super) fn replied(&mut self, question: &Question, now: u64, payload: Bytes) {
        self.under_way -= 1;
        self.replied_at = now;
        if self.outage.take().is_some() {
            tracing::info!("the directory's service answers again");
            self.all_again(|phase| matches!(phase, Phase::Later(_)));
        }
        if let Some(entry) = self.entries.get_mut(question) {
            entry.phase = Phase::Arrived;
            self.arrived.push((question.clone(), Some(payload)));
        }
    }

    /// A question got no reply.
    pub(super) fn unanswered(&mut self, question: &Question, now: u64, why: &str) {
        self.under_way -= 1;
        let Some(Entry {
            phase: Phase::UnderWay(asked_at),
            ..
        }) = self.entries.get(question).copied()
        else {
            return;
        };
        // A service that has answered others meanwhile is there.
        if self.replied_at <= asked_at {
            let wait_ms = match &self.outage {
                None => {
                    tracing::error!(
                        "the directory's service doesn't answer; it is asked again, and nobody \
                         new is told where its answer is needed: {why}"
                    );
                    Some(RETRY_MS.0)
                }
                // Those that were under way when it began say nothing new.
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

    /// Takes away the answers that were to be asked for again.
    fn give_up_overdue(&mut self) {
        for question in &self.ready {
            if let Some(entry) = self.entries.get_mut(question)
                && std::mem::take(&mut entry.held)
            {
                self.arrived.push((question.clone(), None));
            }
        }
    }

    /// Puts a question off that wasn't answered. Says whether the directory has an
    /// older answer, which it has to give up.
    fn fail(&mut self, question: &Question, now: u64) -> bool {
        let Some(entry) = self.entries.get_mut(question) else {
            return false;
        };
        let wait_ms = entry.wait_ms.max(RETRY_MS.0);
        entry.wait_ms = longer(wait_ms);
        entry.outdated = false;
        entry.phase = Phase::Later(now + wait_ms);
        self.agenda.insert((now + wait_ms, question.clone()));
        std::mem::take(&mut entry.held)
    }

    /// Has a question asked when there is room. An older answer stands until then,
    /// unless the service is away.
    fn again(&mut self, question: Question) {
        let Some(entry) = self.entries.get_mut(&question) else {
            return;
        };
        if let Phase::Fresh(at) | Phase::Later(at) = entry.phase {
            self.agenda.remove(&(at, question.clone()));
        }
        entry.phase = Phase::Ready;
        if self.outage.is_some() && std::mem::take(&mut entry.held) {
            self.arrived.push((question.clone(), None));
        }
        self.ready.push_back(question);
    }

    /// Whether there is something to take.
    pub(super) fn has_arrived(&self) -> bool {
        !self.arrived.is_empty()
    }

    /// What has come for the directory since this was last called, in its order:
    /// replies, each of which is to be [settled](Self::settle), and what is to be
    /// taken away.
    pub(super) fn take_arrived(&mut self) -> Vec<(Question, Option<Bytes>)> {
        let arrived = std::mem::take(&mut self.arrived);
        let mut current = Vec::with_capacity(arrived.len());
        for (question, payload) in arrived {
            let entry = self.entries.get_mut(&question);
            let replied = entry.filter(|_| payload.is_some());
            if replied.is_some_and(|entry| std::mem::take(&mut entry.outdated)) {
                // What was said before a change may show too much after it.
                self.again(question);
            } else {
                current.push((question, payload));
            }
        }
        current
    }

    /// A reply was read: as an answer, or why it is none.
    pub(super) fn settle(&mut self, question: &Question, now: u64, refusal: Option<String>) {
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
                self.agenda.insert((until, question.clone()));
                if std::mem::take(&mut entry.outdated) {
                    self.invalidate(Some(question));
                }
            }
            // The reader of the reply takes the older answer away.
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

    /// Those whose time is up: to find out whether somebody goes by them, and say so
    /// with [`Self::checked`].
    pub(super) fn due(&mut self, now: u64) -> Vec<Question> {
        let mut due = Vec::new();
        while let Some((at, _)) = self.agenda.first()
            && *at <= now
            && let Some((_, question)) = self.agenda.pop_first()
        {
            if let Some(entry) = self.entries.get_mut(&question) {
                entry.phase = Phase::Checked;
                due.push(question);
            }
        }
        due
    }

    /// Asks again what is used, and forgets what isn't.
    pub(super) fn checked(&mut self, question: &Question, is_used: bool) {
        let Some(entry) = self.entries.get_mut(question) else {
            return;
        };
        if entry.phase != Phase::Checked {
            return;
        }
        let probe = self.outage.as_ref().map(|outage| &outage.probe);
        if is_used || probe == Some(question) {
            return self.again(question.clone());
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

    /// What is known of an answer may not hold any more; without one, of all. It is
    /// asked again, and stands until that is answered.
    pub(super) fn invalidate(&mut self, question: Option<&Question>) {
        let Some(question) = question else {
            for entry in self.entries.values_mut() {
                entry.outdated |= matches!(entry.phase, Phase::UnderWay(_) | Phase::Arrived);
            }
            return self.all_again(|phase| matches!(phase, Phase::Fresh(_) | Phase::Checked));
        };
        let Some(entry) = self.entries.get_mut(question) else {
            return;
        };
        match entry.phase {
            Phase::Fresh(_) | Phase::Checked => self.again(question.clone()),
            Phase::UnderWay(_) | Phase::Arrived => entry.outdated = true,
            Phase::Ready | Phase::Later(_) => {}
        }
    }

    /// The broker is back. What the service said meanwhile has been missed, and it
    /// can be reached again.
    pub(super) fn reconnected(&mut self) {
        if self.outage.take().is_some() {
            self.all_again(|phase| matches!(phase, Phase::Later(_)));
        }
        self.invalidate(None);
    }

    /// Asks all again that are in such a phase, in a stable order.
    fn all_again(&mut self, is_one: impl Fn(Phase) -> bool) {
        let entries = self.entries.iter();
        let questions: Vec<_> = entries
            .filter(|(_, entry)| is_one(entry.phase))
            .map(|(question, _)| question.clone())
            .collect();
        for question in questions {
            self.again(question);
        }
    }

    /// When to look again, if nothing happens before.
    pub(super) fn next_deadline(&self) -> Option<u64> {
        let retry_at = self.outage.as_ref().map(|outage| outage.retry_at);
        let retry_at = retry_at.filter(|_| self.under_way == 0 && !self.ready.is_empty());
        let first = self.agenda.first().map(|(at, _)| *at);
        first.into_iter().chain(retry_at).min()
    }

    /// How many answers there are, how many are wanted, and whether the service is
    /// away.
    pub(super) fn figures(&self) -> (usize, usize, bool) {
        let held = self.entries.values().filter(|entry| entry.held).count();
        (held, self.entries.len() - held, self.outage.is_some())
    }

    /// For how long the service has been away, in milliseconds, and what the last question
    /// came to; none where it isn't. One of which nothing can be read is as good as away.
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

    /// All the numbers of ids in the questions.
    pub(super) fn ids(&self) -> RoaringBitmap {
        let taken = self.arrived.iter().map(|(question, _)| question);
        let questions = self.entries.keys().chain(taken);
        questions
            .filter_map(Question::user)
            .map(|id| id.0)
            .collect()
    }
}

/// The next wait after one.
fn longer(wait_ms: u64) -> u64 {
    (wait_ms * 2).min(RETRY_MS.1)
}

#[cfg(test)]
mod tests;
