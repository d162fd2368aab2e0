//! What a viewer's client knows, by applying the client's rule to what arrives.

use std::collections::{BTreeMap, BTreeSet};

use presence_core::fleet::sources::{SequenceCheck, Sources};
use presence_core::publish::Subject;

use crate::rules::{Shows, VIEWERS};
use crate::wires::is_filtered;
use crate::world::SHARDS;

/// A filtered event, as it is published.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) shard: u32,
    pub(crate) epoch: u64,
    /// When its owner decided on it.
    pub(crate) decided: u64,
    pub(crate) subject: Subject,
    pub(crate) seq: u64,
    pub(crate) user: usize,
    pub(crate) online: bool,
    /// What is shown, if the user is online.
    pub(crate) shows: Shows,
    pub(crate) visible_to: [bool; VIEWERS],
}

/// An answer of a shard's owner.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) shard: u32,
    pub(crate) epoch: u64,
    pub(crate) question: u64,
    /// When its owner gave it.
    pub(crate) decided: u64,
    /// Each user, and what is shown of them. `None`: the user is offline.
    pub(crate) users: Vec<(usize, Option<Shows>)>,
}

/// A user who is online, as far as the client knows.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    /// When an owner last said that the user is online.
    pub(crate) said_at: u64,
    pub(crate) shows: Shows,
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) server: usize,
    sources: Sources,
    /// Whether the client drops messages of an earlier epoch.
    fencing: bool,
    /// The users who are online, as far as the client knows.
    pub(crate) view: BTreeMap<usize, Shown>,
    /// For each shard: the question that waits for an answer, and the users about whom an event has
    /// been taken since.
    pub(crate) asking: BTreeMap<u32, (u64, BTreeSet<usize>)>,
    /// The shards to ask again.
    again: BTreeSet<u32>,
    questions: u64,
}

/// The result of handling a message.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Users who were online, and no longer are as far as the client knows, and when an owner last
    /// said that they were online.
    pub(crate) gone: Vec<(usize, u64)>,
    /// Whether the client must ask about the shard.
    pub(crate) ask: bool,
}

impl Client {
    pub(crate) fn new(number: usize, fencing: bool) -> Self {
        Self {
            number,
            server: number % 3,
            sources: Sources::default(),
            fencing,
            view: BTreeMap::new(),
            asking: BTreeMap::new(),
            again: BTreeSet::new(),
            questions: 0,
        }
    }

    /// The newest epoch of a shard that the client knows.
    pub(crate) fn epoch(&self, shard: u32) -> u64 {
        self.sources.epoch(shard)
    }

    pub(crate) fn event(&mut self, event: &Event) -> Taken {
        let is_stale = event.epoch < self.sources.epoch(event.shard);
        let mut check = self
            .sources
            .check(event.shard, event.epoch, event.subject, event.seq);
        if is_stale && !self.fencing {
            check = SequenceCheck::Next;
        }
        let mut taken = Taken::default();
        if check == SequenceCheck::Old {
            return taken;
        }
        if event.visible_to[self.number] {
            for (_, since) in self.asking.values_mut() {
                since.insert(event.user);
            }
            let shown = event.online.then(|| Shown {
                said_at: event.decided,
                shows: event.shows.clone(),
            });
            self.set(event.user, shown, &mut taken);
        }
        taken.ask = check != SequenceCheck::Next;
        taken
    }

    pub(crate) fn beacon(&mut self, shard: u32, epoch: u64, seqs: &[(Subject, u64)]) -> Taken {
        let filtered = seqs.iter().copied();
        let filtered = filtered.filter(|(subject, _)| is_filtered(*subject));
        let check = self.sources.check_beacon(shard, epoch, filtered);
        Taken {
            ask: matches!(check, SequenceCheck::New | SequenceCheck::Gap),
            gone: Vec::new(),
        }
    }

    /// Asks about a shard, or asks again. Returns the number of the question.
    pub(crate) fn ask(&mut self, shard: u32) -> u64 {
        self.questions += 1;
        self.asking.insert(shard, (self.questions, BTreeSet::new()));
        self.again.remove(&shard);
        self.questions
    }

    /// Notes that the client must ask again, since it has noticed something while it waits for an
    /// answer.
    pub(crate) fn ask_again(&mut self, shard: u32) {
        self.again.insert(shard);
    }

    pub(crate) fn answer(&mut self, answer: &Answer) -> Taken {
        let mut taken = Taken::default();
        let asked = self.asking.get(&answer.shard);
        let Some((question, since)) = asked.filter(|(question, _)| *question == answer.question)
        else {
            return taken;
        };
        let (_, since) = (question, since.clone());
        if !self.sources.check_answer(answer.shard, answer.epoch) && self.fencing {
            return taken;
        }
        self.asking.remove(&answer.shard);
        for (user, shows) in &answer.users {
            if !since.contains(user) {
                let shown = shows.clone().map(|shows| Shown {
                    said_at: answer.decided,
                    shows,
                });
                self.set(*user, shown, &mut taken);
            }
        }
        taken.ask = self.again.remove(&answer.shard);
        taken
    }

    fn set(&mut self, user: usize, shown: Option<Shown>, taken: &mut Taken) {
        if let Some(shown) = shown {
            self.view.insert(user, shown);
        } else if let Some(shown) = self.view.remove(&user) {
            taken.gone.push((user, shown.said_at));
        }
    }

    /// A new client asks about everything.
    pub(crate) fn begin() -> impl Iterator<Item = u32> {
        0..SHARDS
    }
}
