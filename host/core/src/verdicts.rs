//! A cache of verdicts. A verdict is kept as long as what it was made from hasn't changed.
//!
//! Filters and redactors are pure, and the host sees everything that they read. So a verdict is
//! made once, and made again only when something it read has changed: a directory entry, a metadata
//! value, or the time.

use std::collections::BTreeSet;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::audience::{Audience, VisitedSets};
use crate::directory::{Changes, Question};
use crate::event::Event;
use crate::names::Id;
use crate::reverse_deps::ReverseDeps;
use crate::rules::{Reads, Rendition};

/// The maximum number of cached verdicts on users who are offline. When there are more, all of
/// those are dropped.
const IDLE_MAX: usize = 100_000;

/// The maximum size in bytes of what the verdicts of a shard read, and of the keys that they show:
/// `BYTES_MAX`, plus `BYTES_MORE` for each verdict. A verdict that would exceed it isn't cached.
const BYTES_MAX: usize = 64 << 20;
const BYTES_MORE: usize = 4_096;

/// About how many bytes a question or a key that was read takes beside its text, with the user for
/// whom it was read.
const READ_BYTES: usize = 64;

/// Who may see a user, and what each of them is shown.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Disjoint parts of the audience. The user is in none of them.
    pub renditions: Vec<Rendition>,
    /// The union of the parts.
    pub audience: Audience,
}

impl Verdict {
    /// Normalizes a redactor's answer: a viewer gets the first rendition that names them, and the
    /// user is no viewer.
    pub fn new(user: Id, renditions: Vec<Rendition>) -> Self {
        let mut verdict = Self::default();
        for mut rendition in renditions {
            let viewers = rendition
                .audience
                .without(user)
                .difference(&verdict.audience);
            if viewers.is_empty() {
                continue;
            }
            verdict.audience = verdict.audience.union(&viewers);
            rendition.audience = viewers;
            verdict.renditions.push(rendition);
        }
        verdict
    }

    /// The verdict, restricted to these viewers.
    #[must_use]
    pub fn among(&self, viewers: &Audience) -> Self {
        let renditions = self.renditions.iter().map(|rendition| Rendition {
            audience: rendition.audience.intersection(viewers),
            ..rendition.clone()
        });
        Self {
            renditions: renditions.filter(|it| !it.audience.is_empty()).collect(),
            audience: self.audience.intersection(viewers),
        }
    }

    /// What a viewer is shown, if they may see the user.
    pub fn rendition(&self, viewer: Id) -> Option<&Rendition> {
        let mut renditions = self.renditions.iter();
        renditions.find(|rendition| rendition.audience.contains(viewer))
    }
}

#[derive(Debug)]
struct CachedVerdict {
    verdict: Arc<Verdict>,
    /// The number of the rules that made the verdict.
    rules: u64,
    /// When it was made, in milliseconds since the Unix epoch.
    made_at: u64,
    reads: Reads,
    /// The approximate size in bytes.
    bytes: usize,
    /// The values of the metadata keys that were read.
    values: Vec<Option<Box<str>>>,
}

/// The verdicts of one shard's users.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// The number of the current rules. Verdicts of earlier rules don't hold, but tell which users
    /// a change of the directory probably affects.
    rules: u64,
    kept: HashMap<Id, CachedVerdict, foldhash::fast::FixedState>,
    /// The users whose verdicts asked a question about another user, or about no user.
    readers: ReverseDeps,
    /// The approximate size of all cached verdicts, in bytes.
    bytes: usize,
    /// The users whose verdicts were too large to cache. Any change may affect them.
    heavy: BTreeSet<Id>,
}

impl Verdicts {
    /// The cached verdict on an event, if it was made from the same inputs, and the wall time until
    /// which it holds. `None` as the time: it holds for good.
    pub fn find(&self, wall: u64, event: &Event) -> Option<(Arc<Verdict>, Option<u64>)> {
        let kept = self.kept.get(&event.user)?;
        let reads = &kept.reads;
        let same = kept.rules == self.rules
            && reads.holds_at(kept.made_at, wall)
            && !reads.timestamp
            && !reads.all_metadata
            && reads
                .keys
                .iter()
                .zip(&kept.values)
                .all(|(key, value)| event.metadata.get(key) == value.as_deref());
        same.then(|| (Arc::clone(&kept.verdict), reads.reconsider_at))
    }

    /// The metadata keys that the verdict on an event read, if the current rules made it, and it
    /// didn't read all of the metadata.
    pub fn keys_read(&self, event: &Event) -> Option<&BTreeSet<Box<str>>> {
        let kept = self.kept.get(&event.user)?;
        let reads = &kept.reads;
        (kept.rules == self.rules && !reads.all_metadata).then_some(&reads.keys)
    }

    /// Caches a verdict on an event that was made at a wall time, if there is room for it.
    pub fn keep(&mut self, wall: u64, event: &Event, verdict: Arc<Verdict>, reads: Reads) {
        self.forget(event.user);
        let value = |key: &str| event.metadata.get(key).map(Box::<str>::from);
        let values: Vec<_> = reads.keys.iter().map(|key| value(key)).collect();
        let values_bytes: usize = values.iter().flatten().map(|value| value.len()).sum();
        let bytes = bytes(&verdict, &reads) + values_bytes;
        if self.bytes + bytes > BYTES_MAX + BYTES_MORE * self.kept.len() {
            self.heavy.insert(event.user);
            return;
        }
        self.bytes += bytes;
        for question in foreign(event.user, &reads) {
            self.readers.insert(question, event.user);
        }
        self.kept.insert(
            event.user,
            CachedVerdict {
                verdict,
                rules: self.rules,
                made_at: wall,
                reads,
                bytes,
                values,
            },
        );
    }

    /// The users whose verdicts read the time, hold only up to a time, or weren't cached, in a
    /// stable order.
    pub fn time_readers(&self) -> Vec<Id> {
        let by_time = |reads: &Reads| reads.time || reads.reconsider_at.is_some();
        let kept = self.kept.iter().filter(|(_, kept)| by_time(&kept.reads));
        let users = kept.map(|(user, _)| *user);
        let mut users: Vec<_> = users.chain(self.heavy.iter().copied()).collect();
        users.sort_unstable();
        users
    }

    /// Drops the verdict on a user.
    pub fn forget(&mut self, user: Id) {
        self.heavy.remove(&user);
        let Some(kept) = self.kept.remove(&user) else {
            return;
        };
        self.bytes -= kept.bytes;
        for question in foreign(user, &kept.reads) {
            self.readers.remove(question, user);
        }
    }

    /// Drops the verdicts on some users.
    pub fn forget_where(&mut self, concerns: impl Fn(Id) -> bool) {
        let users = self.kept.keys().copied();
        let users: Vec<_> = users.filter(|user| concerns(*user)).collect();
        for user in users {
            self.forget(user);
        }
    }

    /// The rules have changed: no cached verdict holds any longer.
    pub fn rules_changed(&mut self) {
        self.rules += 1;
    }

    /// Reserves room for this number of verdicts, so that the map needn't grow while events wait.
    pub fn make_room(&mut self, verdicts: usize) {
        let more = verdicts.saturating_sub(self.kept.len());
        self.kept.reserve(more);
    }

    /// Whether nothing is known of any verdict.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty() && self.heavy.is_empty()
    }

    /// The users whose verdicts read one of the changed answers, or may have, in a stable order.
    pub fn affected(&self, changes: &Changes) -> BTreeSet<Id> {
        let readers = changes.others();
        let readers = readers.flat_map(|question| self.readers_of(question));
        let mut affected: BTreeSet<_> = readers.collect();
        let users = changes.co_members();
        if self.kept.len() as u64 + self.readers.len() as u64 > users.len() {
            for user in users {
                affected.extend(self.readers_of(&Question::CoMembers(Id(user))));
            }
        } else {
            // This is faster for a large group of which few are online.
            let own = self.kept.iter().filter(|(user, kept)| {
                let question = Question::CoMembers(**user);
                users.contains(user.0) && kept.reads.questions.contains(&question)
            });
            affected.extend(own.map(|(user, _)| *user));
            let is_one = |question: &&Question| match question {
                Question::CoMembers(user) => users.contains(user.0),
                _ => false,
            };
            let foreign = self.readers.questions().filter(is_one);
            affected.extend(foreign.flat_map(|question| self.readers.of(question)));
        }
        if !changes.is_empty() {
            affected.extend(&self.heavy);
        }
        affected
    }

    /// Whether the verdict on a user for whom `counts` is true read this answer, or may have.
    pub fn reads(&self, question: &Question, counts: impl Fn(Id) -> bool) -> bool {
        let readers = self.readers_of(question);
        readers.chain(self.heavy.iter().copied()).any(counts)
    }

    /// The users whose verdicts read an answer.
    fn readers_of(&self, question: &Question) -> impl Iterator<Item = Id> {
        let own = question.user().filter(|user| {
            let kept = self.kept.get(user);
            kept.is_some_and(|kept| kept.reads.questions.contains(question))
        });
        own.into_iter().chain(self.readers.of(question))
    }

    /// Drops the verdicts on offline users, if there are many.
    pub fn evict_offline(&mut self, is_online: impl Fn(Id) -> bool, online: usize) {
        if self.heavy.len() > online + IDLE_MAX {
            self.heavy.retain(|user| is_online(*user));
        }
        if self.kept.len() > online + IDLE_MAX {
            let idle: Vec<_> = self
                .kept
                .keys()
                .copied()
                .filter(|user| !is_online(*user))
                .collect();
            for user in idle {
                self.forget(user);
            }
        }
    }

    /// All ids in the verdicts, as numbers.
    pub fn ids(&self) -> roaring::RoaringBitmap {
        let mut ids: roaring::RoaringBitmap = self.heavy.iter().map(|user| user.0).collect();
        let mut seen = VisitedSets::default();
        for (user, kept) in &self.kept {
            ids.insert(user.0);
            kept.verdict.audience.add_to(&mut ids, &mut seen);
            ids.extend(
                kept.reads
                    .questions
                    .iter()
                    .filter_map(Question::user)
                    .map(|id| id.0),
            );
        }
        ids
    }
}

/// The approximate size of a verdict and of what was read for it, in bytes. It ignores that most
/// verdicts share their keys with others.
fn bytes(verdict: &Verdict, reads: &Reads) -> usize {
    let shown = verdict.renditions.iter().flat_map(|part| &*part.keys);
    let shown: usize = shown.map(|key| size_of::<Box<str>>() + key.len()).sum();
    let text = |question: &Question| match question {
        Question::Members(group) => group.len(),
        Question::WithSetting(setting) => setting.key().len() + setting.value().len(),
        _ => 0,
    };
    let questions = reads.questions.iter().map(text);
    let keys = reads.keys.iter().map(|key| key.len());
    shown
        + questions
            .chain(keys)
            .map(|text| READ_BYTES + text)
            .sum::<usize>()
}

/// The questions that are not about the user themselves.
fn foreign(user: Id, reads: &Reads) -> impl Iterator<Item = &Question> {
    reads
        .questions
        .iter()
        .filter(move |question| question.user() != Some(user))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Change;
    use crate::metadata::Metadata;
    use crate::names::Names;

    fn event(names: &Names) -> Event {
        let (user, name) = names.intern_name("ada");
        Event {
            user,
            name,
            timestamp: 5,
            change: Change::Online,
            metadata: Metadata::parse(r#"{"device":"web","plan":1}"#, |_| true),
        }
    }

    fn stage(time: bool, reconsider_at: Option<u64>) -> Reads {
        Reads {
            time,
            reconsider_at,
            ..Reads::default()
        }
    }

    /// Until when a verdict of these stages, made at 10, is reused. 100 means for good, 10 means
    /// never.
    fn reused_until(stages: &[Reads]) -> u64 {
        let names = Names::new();
        let event = event(&names);
        let mut reads = Reads::default();
        for stage in stages {
            reads.add(stage.clone());
        }
        let mut verdicts = Verdicts::default();
        verdicts.keep(10, &event, Arc::default(), reads);
        let holds = |now: &u64| verdicts.find(*now, &event).is_some();
        (10..100).find(|now| !holds(now)).unwrap_or(100)
    }

    #[test]
    fn a_verdict_holds_until_the_earliest_end_given_by_all_stages_that_read_the_time() {
        let (until_20, until_30) = (stage(true, Some(20)), stage(true, Some(30)));
        let (timeless, open) = (stage(false, None), stage(true, None));
        let asks_again = stage(false, Some(25));
        for (stages, until) in [
            (vec![timeless.clone()], 100),
            (vec![until_30.clone(), timeless.clone()], 30),
            (vec![until_30.clone(), until_20.clone()], 20),
            (vec![until_30.clone(), asks_again.clone()], 25),
            (vec![open.clone()], 10),
            (vec![open.clone(), timeless], 10),
            // The limit of one stage's answer doesn't apply to another's.
            (vec![open.clone(), until_20.clone()], 10),
            (vec![until_20, open.clone()], 10),
            (vec![open, asks_again], 10),
        ] {
            assert_eq!(reused_until(&stages), until, "{stages:?}");
        }
    }

    #[test]
    fn whatever_any_stage_read_is_read_by_all_together() {
        let names = Names::new();
        let mut event = event(&names);
        let keys = |key: &str| Reads {
            keys: [key.into()].into(),
            ..Reads::default()
        };
        let ada = Question::Contacts(event.user);
        let mut reads = keys("device");
        reads.add(keys("plan"));
        reads.add(Reads {
            questions: [ada.clone()].into(),
            ..Reads::default()
        });
        assert!(reads.questions.contains(&ada));
        let mut verdicts = Verdicts::default();
        verdicts.keep(1, &event, Arc::default(), reads.clone());
        assert!(verdicts.find(1, &event).is_some());
        event.metadata = Metadata::parse(r#"{"device":"web","plan":2}"#, |_| true);
        assert!(verdicts.find(1, &event).is_none());
        for whole in [
            Reads {
                timestamp: true,
                ..Reads::default()
            },
            Reads {
                all_metadata: true,
                ..Reads::default()
            },
        ] {
            let mut reads = reads.clone();
            reads.add(whole);
            reads.add(Reads::default());
            verdicts.keep(1, &event, Arc::default(), reads);
            assert!(verdicts.find(1, &event).is_none());
        }
    }

    #[test]
    fn verdicts_are_bounded_in_bytes_and_no_change_is_missed() {
        let names = Names::new();
        let mut verdicts = Verdicts::default();
        let mut event = event(&names);
        let group = |user: u32, number: usize| Question::Members(format!("{user}-{number}").into());
        // One mebibyte for each of a hundred users.
        for user in 0..100 {
            event.user = Id(user);
            let key = |number: usize| format!("{user}-{number:01023}").into_boxed_str();
            let reads = Reads {
                keys: (0..1_024).map(key).collect(),
                questions: [group(user, 0)].into(),
                ..Reads::default()
            };
            verdicts.keep(1, &event, Arc::default(), reads);
        }
        assert!(verdicts.bytes <= BYTES_MAX + 100 * BYTES_MORE);
        assert!((50..70).contains(&verdicts.kept.len()));
        assert_eq!(verdicts.kept.len() + verdicts.heavy.len(), 100);
        let found = |verdicts: &Verdicts, user: u32| {
            let event = Event {
                user: Id(user),
                ..event.clone()
            };
            (
                verdicts.find(1, &event).is_some(),
                verdicts.keys_read(&event).is_some(),
            )
        };
        assert_eq!(found(&verdicts, 0), (true, true));
        assert_eq!(found(&verdicts, 99), (false, false), "it is decided again");
        // A verdict that shows a mebibyte of keys is too large as well.
        let shown: Vec<Box<str>> = vec!["k".repeat(1 << 20).into()];
        let verdict = Verdict {
            renditions: vec![Rendition {
                audience: Audience::nobody(),
                keys: shown.into(),
                last_seen: false,
            }],
            audience: Audience::nobody(),
        };
        let by_99 = Event {
            user: Id(99),
            ..event.clone()
        };
        verdicts.keep(1, &by_99, verdict.into(), Reads::default());
        assert_eq!(found(&verdicts, 99), (false, false));
        // Any change may affect the users whose reads aren't known.
        assert!(verdicts.reads(&group(99, 0), |user| user == Id(99)));
        assert!(!verdicts.reads(&group(1, 0), |user| user == Id(0)));
        assert!(verdicts.time_readers().contains(&Id(99)));
        assert!(verdicts.ids().contains(99));
        for user in 0..100 {
            verdicts.forget(Id(user));
        }
        assert!(verdicts.is_empty());
        assert_eq!((verdicts.bytes, verdicts.heavy.len()), (0, 0));
        assert!(verdicts.readers.questions().next().is_none());
    }

    #[test]
    fn what_was_decided_by_a_later_time_does_not_hold_once_the_clock_is_set_back() {
        let names = Names::new();
        let event = event(&names);
        let mut verdicts = Verdicts::default();
        verdicts.keep(50, &event, Arc::default(), stage(true, Some(90)));
        assert!(verdicts.find(50, &event).is_some());
        assert!(verdicts.find(49, &event).is_none());
        verdicts.keep(50, &event, Arc::default(), stage(false, Some(90)));
        assert!(verdicts.find(49, &event).is_some(), "it reads no clock");
    }
}
