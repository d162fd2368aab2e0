//! What the core asks of a tenant's rules, and what they answer.
//!
//! The sandbox implements [`Rules`] with components; tests do it with closures.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::audience::Audience;
use crate::directory::{Directory, Question};
use crate::event::Event;
use crate::metadata::MetadataChange;
use crate::names::{Id, Names};

/// What a call is about and may know.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The wall time, in milliseconds since the Unix epoch: what rules go by.
    pub now: u64,
    /// The monotonic time in milliseconds, for durations such as how long a plugin that
    /// failed stays in quarantine.
    pub monotonic: u64,
    /// The event.
    pub event: &'a Arc<Event>,
    /// The directory.
    pub directory: &'a Arc<Directory>,
    /// The tenant's ids.
    pub names: &'a Arc<Names>,
}

/// A tenant's pipeline, as one thread runs it.
pub trait Rules {
    /// The changes that the enrichers make, in order. One that fails is passed over.
    fn enrich(&mut self, context: Context<'_>) -> Enriched;

    /// Who may see the event, and what each of them gets.
    fn decide(&mut self, context: Context<'_>) -> Decision;

    /// What each of these viewers gets to see of the event. Calls only the redactor.
    fn redact(&mut self, context: Context<'_>, told: &Audience) -> Decision;

    /// Decides as [`Self::decide`] does, and tells what each stage did to a viewer:
    /// nothing, where there are no stages.
    fn explain(&mut self, context: Context<'_>, _viewer: Id) -> Explanation {
        Explanation {
            stages: Vec::new(),
            decision: self.decide(context),
        }
    }

    /// An earlier decision holds for the event, so that they aren't asked.
    fn reused(&mut self, _context: Context<'_>) {}

    /// Whether the last good generation of a filter or redactor has taken over since the
    /// last call of this method.
    fn take_replaced(&mut self) -> bool {
        false
    }
}

/// A decision, and how it came about for one viewer.
#[derive(Debug)]
pub struct Explanation {
    /// The stages, in the order in which they are asked.
    pub stages: Vec<StageReport>,
    /// What came of it.
    pub decision: Decision,
}

/// What a stage did to a viewer.
#[derive(Clone, Debug)]
pub struct StageReport {
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// Its version.
    pub version: String,
    /// The SHA-256 of its file, in hexadecimal.
    pub sha256: Arc<str>,
    /// What it does: `enricher`, `filter` or `redactor`.
    pub role: &'static str,
    /// Whether it is the last good generation, which has taken over from a newer
    /// one that failed.
    pub is_fallback: bool,
    /// What it did.
    pub outcome: StageOutcome,
    /// What it gave as its reasons, about the event.
    pub reasons: Vec<String>,
    /// What it gave as its reasons about the viewer alone.
    pub viewer_reasons: Vec<String>,
    /// How it failed, if it did.
    pub failure: Option<String>,
}

/// What a stage can do to a viewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageOutcome {
    /// The viewer wasn't in the audience before it, and is after it.
    Admitted,
    /// The viewer was in the audience before it, and is not after it.
    Removed,
    /// The viewer was in the audience, and stays.
    Kept,
    /// The viewer was not in the audience, before or after.
    Absent,
    /// It failed, and nobody new may see the user.
    Failed,
    /// An earlier stage failed.
    NotReached,
    /// It has no say: it changed the event's metadata before the event was announced.
    NotAsked,
}

impl StageOutcome {
    /// The turn as an explanation spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Admitted => "admitted",
            Self::Removed => "removed",
            Self::Kept => "kept",
            Self::Absent => "absent",
            Self::Failed => "failed",
            Self::NotReached => "not-reached",
            Self::NotAsked => "not-asked",
        }
    }
}

/// What the enrichers did.
#[derive(Debug, Default)]
pub struct Enriched {
    /// What they changed.
    pub changes: Vec<MetadataChange>,
    /// Those of them that failed.
    pub failures: Vec<Failure>,
    /// What some of them asked for that isn't cached: fetch it, and ask all again.
    pub cache_misses: BTreeSet<Question>,
    /// Which of them did. They have been passed over.
    pub unanswered: Vec<Arc<str>>,
}

/// What came of asking the rules.
#[derive(Debug)]
pub enum Decision {
    /// They decided.
    Decided(Vec<Rendition>, Reads),
    /// They asked for what isn't cached: fetch it, and ask again.
    CacheMiss(BTreeSet<Question>),
    /// One of them failed.
    Failed(Failure),
}

/// What a part of the audience gets to see of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendition {
    /// The part of the audience.
    pub audience: Audience,
    /// The metadata keys it gets.
    pub keys: Arc<[Box<str>]>,
    /// Whether it gets to know when the user was last seen. Of an online event: whether
    /// it will, once the user is gone.
    pub last_seen: bool,
}

impl Rendition {
    /// Whether it shows a metadata key.
    pub fn shows(&self, key: &str) -> bool {
        self.keys.iter().any(|shown| &**shown == key)
    }
}

/// What a decision depends on, beside the rules and the user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// The questions put to the directory.
    pub questions: BTreeSet<Question>,
    /// The metadata keys read.
    pub keys: BTreeSet<Box<str>>,
    /// All of the metadata was read.
    pub all_metadata: bool,
    /// The event's own timestamp was read.
    pub timestamp: bool,
    /// The time was read.
    pub time: bool,
    /// The earliest wall time at which a component asked to be asked again.
    pub reconsider_at: Option<u64>,
    /// A component read the time, and didn't say until when its answer holds. What
    /// others say of their own answers doesn't hold for it.
    pub open_ended: bool,
}

impl Reads {
    /// Adds what one more stage read. Whatever holds only under a condition holds
    /// under the conditions of all stages together.
    pub fn add(&mut self, mut stage: Self) {
        self.questions.append(&mut stage.questions);
        self.keys.append(&mut stage.keys);
        self.all_metadata |= stage.all_metadata;
        self.timestamp |= stage.timestamp;
        self.open_ended |= stage.is_open_ended();
        self.time |= stage.time;
        let ends = [self.reconsider_at, stage.reconsider_at];
        self.reconsider_at = ends.into_iter().flatten().min();
    }

    /// Takes out what says how long an answer holds, and leaves the rest: what a call says
    /// of its own answer doesn't hold for those of others.
    #[must_use]
    pub fn take_times(&mut self) -> Self {
        Self {
            time: std::mem::take(&mut self.time),
            reconsider_at: self.reconsider_at.take(),
            open_ended: std::mem::take(&mut self.open_ended),
            ..Self::default()
        }
    }

    /// Whether what was made of it, at `made_at`, holds at `now` as far as the time
    /// goes. A clock that was set back makes that a moment yet to come.
    pub fn holds_at(&self, made_at: u64, now: u64) -> bool {
        let not_before = !self.time || made_at <= now;
        let not_after = self.reconsider_at.is_none_or(|at| now < at);
        not_before && not_after && !self.is_open_ended()
    }

    fn is_open_ended(&self) -> bool {
        self.open_ended || (self.time && self.reconsider_at.is_none())
    }
}

/// A component that didn't answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// What happened, in one line.
    pub error: String,
}
