//! What a viewer's client knows: the client's rule, over what arrives.

use std::collections::{BTreeMap, BTreeSet};

use presence_core::fleet::sources::{Heard, Sources};
use presence_core::publish::Subject;

use crate::rules::{Shows, VIEWERS};
use crate::wires::is_filtered;
use crate::world::SHARDS;

/// A filtered event, as it is published.
#[derive(Clone, Debug)]
pub(crate) struct Event {
    pub(crate) shard: u32,
    pub(crate) epoch: u64,
    /// When its owner decided so.
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
    /// When its owner answered so.
    pub(crate) decided: u64,
    /// Each user, and what is shown where the user is online.
    pub(crate) users: Vec<(usize, Option<Shows>)>,
}

/// A user who is online, as far as a client knows.
#[derive(Clone, Debug)]
pub(crate) struct Shown {
    /// When an owner last said so.
    pub(crate) said_at: u64,
    pub(crate) shows: Shows,
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) number: usize,
    pub(crate) server: usize,
    sources: Sources,
    /// Whether it drops what is of an earlier epoch.
    fencing: bool,
    /// Who is online, as far as it knows.
    pub(crate) view: BTreeMap<usize, Shown>,
    /// Of each shard: the question that waits for an answer, and the users for whom an
    /// event was taken since.
    pub(crate) asking: BTreeMap<u32, (u64, BTreeSet<usize>)>,
    /// The shards to ask once more.
    again: BTreeSet<u32>,
    questions: u64,
}

/// What becomes of what a client hears.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Users who were online and are not, as far as it knows now, and when an owner last said that they
    /// were.
    pub(crate) gone: Vec<(usize, u64)>,
    /// Whether it is to ask about the shard.
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

    /// The newest epoch of a shard that it has heard of.
    pub(crate) fn epoch(&self, shard: u32) -> u64 {
        self.sources.epoch(shard)
    }

    pub(crate) fn event(&mut self, event: &Event) -> Taken {
        let is_stale = event.epoch < self.sources.epoch(event.shard);
        let mut heard = self
            .sources
            .hear(event.shard, event.epoch, event.subject, event.seq);
        if is_stale && !self.fencing {
            heard = Heard::Next;
        }
        let mut taken = Taken::default();
        if heard == Heard::Old {
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
        taken.ask = heard != Heard::Next;
        taken
    }

    pub(crate) fn beacon(&mut self, shard: u32, epoch: u64, seqs: &[(Subject, u64)]) -> Taken {
        let filtered = seqs.iter().copied();
        let filtered = filtered.filter(|(subject, _)| is_filtered(*subject));
        let heard = self.sources.hear_beacon(shard, epoch, filtered);
        Taken {
            ask: matches!(heard, Heard::New | Heard::Gap),
            gone: Vec::new(),
        }
    }

    /// It asks about a shard, or asks again. Says which question that is.
    pub(crate) fn ask(&mut self, shard: u32) -> u64 {
        self.questions += 1;
        self.asking.insert(shard, (self.questions, BTreeSet::new()));
        self.again.remove(&shard);
        self.questions
    }

    /// It has noticed something more while a question is under way.
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
        if !self.sources.hear_answer(answer.shard, answer.epoch) && self.fencing {
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
