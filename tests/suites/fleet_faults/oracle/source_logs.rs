//! The messages themselves, before a client evaluates them: within an epoch, no viewer is told the
//! same twice, and no viewer is told an offline who wasn't told the online.

use std::collections::BTreeMap;

use super::super::trace::Fact;

/// What each client was told by each source.
#[derive(Debug, Default)]
pub(super) struct SourceLogs {
    is_orderly: bool,
    has_failed: bool,
    sources: BTreeMap<(usize, String), SourceLog>,
    pub(super) successions: usize,
}

#[derive(Debug)]
struct SourceLog {
    epoch: u64,
    /// The last number on each of the two subjects.
    seqs: [u64; 2],
    told: BTreeMap<(usize, usize), bool>,
    /// Whether everything that the source has ever told is known.
    is_complete: bool,
    /// Violations that would be excused if the client has missed a message on one of the subjects.
    /// The next number on this subject decides it.
    pending_violations: Vec<(Subject, String)>,
}

/// The subjects on which onlines and offlines are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    Online,
    Offline,
}

impl SourceLogs {
    pub(super) fn new(is_orderly: bool) -> Self {
        Self {
            is_orderly,
            ..Self::default()
        }
    }

    /// A client may have missed messages of any source.
    pub(super) fn missed(&mut self, client: usize) {
        let of = self.sources.iter_mut().filter(|((of, _), _)| *of == client);
        of.for_each(|(_, log)| log.forget());
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
    pub(super) fn apply(&mut self, fact: &Fact) -> Vec<String> {
        match fact {
            Fact::Received {
                client,
                source,
                epoch,
                seq,
                online,
                user,
                viewers,
            } => {
                let Some(log) = self.log_of(*client, source, *epoch) else {
                    return Vec::new();
                };
                let subject = match online {
                    true => Subject::Online,
                    false => Subject::Offline,
                };
                let Some(found) = log.advance(subject, *seq) else {
                    return Vec::new();
                };
                let place = format!("in epoch {epoch} of {source}");
                log.record(*online, *user, viewers, &place);
                found
            }
            Fact::Beacon {
                client,
                source,
                epoch,
                seqs: [online, offline],
            } => {
                let Some(log) = self.log_of(*client, source, *epoch) else {
                    return Vec::new();
                };
                let mut found = log.beacon(Subject::Online, *online);
                found.extend(log.beacon(Subject::Offline, *offline));
                found
            }
            _ => Vec::new(),
        }
    }

    /// Violations that nothing has excused by the end.
    pub(super) fn end(&mut self) -> Vec<String> {
        let open = self
            .sources
            .values_mut()
            .flat_map(|it| it.pending_violations.drain(..));
        open.map(|(_, what)| what).collect()
    }

    /// What a source has told a client, to add a message of this epoch. `None` if the epoch is
    /// over: clients drop the message.
    fn log_of(&mut self, client: usize, source: &str, epoch: u64) -> Option<&mut SourceLog> {
        let is_complete = !self.has_failed;
        let place = (client, source.to_owned());
        let log = self.sources.entry(place).or_insert_with(|| SourceLog {
            epoch,
            seqs: [0; 2],
            told: BTreeMap::new(),
            is_complete,
            pending_violations: Vec::new(),
        });
        if epoch > log.epoch {
            self.successions += 1;
            log.epoch = epoch;
            log.seqs = [0; 2];
            log.pending_violations.clear();
            if !self.is_orderly {
                log.forget();
            }
        }
        (epoch == log.epoch).then_some(log)
    }
}

impl SourceLog {
    /// Takes the number of a message. `None` if the message has to be dropped; otherwise the
    /// violations that are certain now.
    fn advance(&mut self, subject: Subject, seq: u64) -> Option<Vec<String>> {
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
        Some(self.settle(subject))
    }

    /// Takes a beacon's number. Returns the violations that are certain now.
    fn beacon(&mut self, subject: Subject, seq: u64) -> Vec<String> {
        let last = self.last(subject);
        if seq > *last {
            *last = seq;
            self.forget();
        }
        self.settle(subject)
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
    fn settle(&mut self, subject: Subject) -> Vec<String> {
        let pending = std::mem::take(&mut self.pending_violations);
        let (found, pending) = pending.into_iter().partition(|(of, _)| *of == subject);
        self.pending_violations = pending;
        found.into_iter().map(|(_, what)| what).collect()
    }

    fn record(&mut self, online: bool, user: usize, viewers: &[usize], place: &str) {
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
            self.pending_violations.push((other, what));
        }
    }

    fn forget(&mut self) {
        self.told.clear();
        self.is_complete = false;
        self.pending_violations.clear();
    }
}
