//! The messages themselves, before a client evaluates them: within an epoch, no viewer is told the
//! same twice, and no viewer is told an offline who wasn't told the online.

use std::collections::BTreeMap;

use super::super::trace::Fact;

/// What each client was told by each source.
#[derive(Debug, Default)]
pub(super) struct Tellings {
    is_orderly: bool,
    has_failed: bool,
    sources: BTreeMap<(usize, String), Telling>,
    pub(super) successions: usize,
}

#[derive(Debug)]
struct Telling {
    epoch: u64,
    /// The last number on each of the two subjects.
    seqs: [u64; 2],
    told: BTreeMap<(usize, usize), bool>,
    /// Whether everything that the source has ever told is known.
    is_complete: bool,
    /// Violations that would be excused if the client has missed a message on one of the subjects.
    /// The next number on this subject decides it.
    open: Vec<(Subject, String)>,
}

/// The subjects on which onlines and offlines are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Online,
    Offline,
}

impl Tellings {
    pub(super) fn new(is_orderly: bool) -> Self {
        Self {
            is_orderly,
            ..Self::default()
        }
    }

    /// A client may have missed messages of any source.
    pub(super) fn missed(&mut self, client: usize) {
        let of = self.sources.iter_mut().filter(|((of, _), _)| *of == client);
        of.for_each(|(_, telling)| telling.forget());
        self.has_failed = true;
    }

    /// From now on, a client may miss the first messages of a new epoch.
    pub(super) fn fault(&mut self) {
        self.has_failed = true;
    }

    /// A lease may have run out, so that shards change hands without a hand-over.
    pub(super) fn stall(&mut self) {
        self.is_orderly = false;
    }

    /// Takes a message or a beacon. Returns what is surely wrong.
    pub(super) fn take(&mut self, fact: &Fact) -> Vec<String> {
        match fact {
            Fact::Told {
                client,
                source,
                epoch,
                seq,
                online,
                user,
                viewers,
            } => {
                let Some(telling) = self.of(*client, source, *epoch) else {
                    return Vec::new();
                };
                let subject = match online {
                    true => Subject::Online,
                    false => Subject::Offline,
                };
                let Some(found) = telling.next(subject, *seq) else {
                    return Vec::new();
                };
                let place = format!("in epoch {epoch} of {source}");
                telling.tell(*online, *user, viewers, &place);
                found
            }
            Fact::Counted {
                client,
                source,
                epoch,
                seqs: [online, offline],
            } => {
                let Some(telling) = self.of(*client, source, *epoch) else {
                    return Vec::new();
                };
                let mut found = telling.counted(Subject::Online, *online);
                found.extend(telling.counted(Subject::Offline, *offline));
                found
            }
            _ => Vec::new(),
        }
    }

    /// Violations that nothing has excused by the end.
    pub(super) fn end(&mut self) -> Vec<String> {
        let open = self.sources.values_mut().flat_map(|it| it.open.drain(..));
        open.map(|(_, what)| what).collect()
    }

    /// What a source has told a client, to add a message of this epoch. `None` if the epoch is
    /// over: clients drop the message.
    fn of(&mut self, client: usize, source: &str, epoch: u64) -> Option<&mut Telling> {
        let is_complete = !self.has_failed;
        let place = (client, source.to_owned());
        let telling = self.sources.entry(place).or_insert_with(|| Telling {
            epoch,
            seqs: [0; 2],
            told: BTreeMap::new(),
            is_complete,
            open: Vec::new(),
        });
        if epoch > telling.epoch {
            self.successions += 1;
            telling.epoch = epoch;
            telling.seqs = [0; 2];
            telling.open.clear();
            if !self.is_orderly {
                telling.forget();
            }
        }
        (epoch == telling.epoch).then_some(telling)
    }
}

impl Telling {
    /// Takes the number of a message. `None` if the message has to be dropped; otherwise the
    /// violations that are certain now.
    fn next(&mut self, subject: Subject, seq: u64) -> Option<Vec<String>> {
        let last = self.last(subject);
        if seq <= *last {
            // A message that may have been lost is published again under the same number.
            return None;
        }
        let is_gap = seq > *last + 1;
        *last = seq;
        if is_gap {
            self.forget();
        }
        Some(self.close(subject))
    }

    /// Takes a beacon's number. Returns the violations that are certain now.
    fn counted(&mut self, subject: Subject, seq: u64) -> Vec<String> {
        let last = self.last(subject);
        if seq > *last {
            *last = seq;
            self.forget();
        }
        self.close(subject)
    }

    fn last(&mut self, subject: Subject) -> &mut u64 {
        let [online, offline] = &mut self.seqs;
        match subject {
            Subject::Online => online,
            Subject::Offline => offline,
        }
    }

    /// No message is missing on a subject: violations that a missing one would have excused are
    /// certain.
    fn close(&mut self, subject: Subject) -> Vec<String> {
        let open = std::mem::take(&mut self.open);
        let (found, open) = open.into_iter().partition(|(of, _)| *of == subject);
        self.open = open;
        found.into_iter().map(|(_, what)| what).collect()
    }

    fn tell(&mut self, online: bool, user: usize, viewers: &[usize], place: &str) {
        let (state, other) = match online {
            true => ("online", Subject::Offline),
            false => ("offline", Subject::Online),
        };
        for viewer in viewers {
            let what = match self.told.insert((*viewer, user), online) {
                Some(before) if before == online => {
                    format!("viewer {viewer} was told twice that user {user} is {state}, {place}")
                }
                None if !online && self.is_complete => format!(
                    "viewer {viewer} was told that user {user} left, and never that they came, \
                     {place}"
                ),
                _ => continue,
            };
            self.open.push((other, what));
        }
    }

    fn forget(&mut self) {
        self.told.clear();
        self.is_complete = false;
        self.open.clear();
    }
}
