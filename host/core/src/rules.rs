//! What the core asks a tenant's rules, and what they answer.
//!
//! The sandbox implements [`Rules`] with components; tests do it with closures.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::audience::Audience;
use crate::directory::{Directory, Question};
use crate::event::Event;
use crate::metadata::MetadataChange;
use crate::names::{Id, Names};

/// The event that a call is about, and what the rules may know.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The wall time for rules, in milliseconds since the Unix epoch.
    pub now: u64,
    /// The monotonic time in milliseconds, for durations such as a quarantine.
    pub monotonic: u64,
    /// The event.
    pub event: &'a Arc<Event>,
    /// The directory.
    pub directory: &'a Arc<Directory>,
    /// The tenant's ids.
    pub names: &'a Arc<Names>,
}

/// A tenant's pipeline, as one thread uses it.
pub trait Rules {
    /// The changes that the enrichers make, in order. An enricher that fails is skipped.
    fn enrich(&mut self, context: Context<'_>) -> Enriched;

    /// Who may see the event, and what each of them is shown.
    fn decide(&mut self, context: Context<'_>) -> Decision;

    /// What each of these viewers is shown of the event. Calls only the redactor.
    fn redact(&mut self, context: Context<'_>, told: &Audience) -> Decision;

    /// Decides as [`Self::decide`] does, and reports what each stage did to a viewer. Without
    /// stages, the report is empty.
    fn explain(&mut self, context: Context<'_>, _viewer: Id) -> Explanation {
        Explanation {
            stages: Vec::new(),
            decision: self.decide(context),
        }
    }

    /// An earlier decision is reused for the event, so the rules aren't asked.
    fn reused(&mut self, _context: Context<'_>) {}

    /// Whether the last good generation of a filter or redactor has replaced a newer one since the
    /// last call.
    fn take_replaced(&mut self) -> bool {
        false
    }
}

/// A decision, and how it was made for one viewer.
#[derive(Debug)]
pub struct Explanation {
    /// The stages, in the order in which they are asked.
    pub stages: Vec<StageReport>,
    /// The decision.
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
    /// The plugin's role: `enricher`, `filter` or `redactor`.
    pub role: &'static str,
    /// Whether this is the last good generation, which has replaced a newer one that failed.
    pub is_fallback: bool,
    /// What the stage did.
    pub outcome: StageOutcome,
    /// The plugin's reasons about the event.
    pub reasons: Vec<String>,
    /// The plugin's reasons about the viewer alone.
    pub viewer_reasons: Vec<String>,
    /// The error, if the stage failed.
    pub failure: Option<String>,
}

/// What a stage can do to a viewer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StageOutcome {
    /// The stage added the viewer to the audience.
    Admitted,
    /// The stage removed the viewer from the audience.
    Removed,
    /// The viewer was in the audience before the stage, and after it.
    Kept,
    /// The viewer was not in the audience, neither before the stage nor after it.
    Absent,
    /// The stage failed, and nobody new may see the user.
    Failed,
    /// An earlier stage failed.
    NotReached,
    /// The stage doesn't decide: it changed the event's metadata before the event was announced.
    NotAsked,
}

impl StageOutcome {
    /// The outcome as an explanation spells it.
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

/// The result of the enrichers.
#[derive(Debug, Default)]
pub struct Enriched {
    /// The changes of the metadata.
    pub changes: Vec<MetadataChange>,
    /// The failures of enrichers.
    pub failures: Vec<Failure>,
    /// Questions whose answers aren't cached: fetch them, and ask all enrichers again.
    pub cache_misses: BTreeSet<Question>,
    /// The plugins that asked these questions. They were skipped.
    pub unanswered: Vec<Arc<str>>,
}

/// The result of asking the rules.
#[derive(Debug)]
pub enum Decision {
    /// The rules decided.
    Decided(Vec<Rendition>, Reads),
    /// The rules need answers that aren't cached: fetch them, and ask again.
    CacheMiss(BTreeSet<Question>),
    /// One of the rules failed.
    Failed(Failure),
}

/// What a part of the audience is shown of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendition {
    /// The part of the audience.
    pub audience: Audience,
    /// The metadata keys that these viewers get.
    pub keys: Arc<[Box<str>]>,
    /// Whether these viewers are told when the user was last seen. For an online event: whether
    /// they will be told when the user goes offline.
    pub last_seen: bool,
}

impl Rendition {
    /// Whether these viewers get a metadata key.
    pub fn shows(&self, key: &str) -> bool {
        self.keys.iter().any(|shown| &**shown == key)
    }
}

/// What a decision depends on, beside the rules and the user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// The questions asked of the directory.
    pub questions: BTreeSet<Question>,
    /// The metadata keys that were read.
    pub keys: BTreeSet<Box<str>>,
    /// Whether all of the metadata was read.
    pub all_metadata: bool,
    /// Whether the event's timestamp was read.
    pub timestamp: bool,
    /// Whether the time was read.
    pub time: bool,
    /// The earliest wall time at which a component wants to be asked again.
    pub reconsider_at: Option<u64>,
    /// Whether a component read the time without saying how long its answer holds. The limits of
    /// other components don't apply to its answer.
    pub open_ended: bool,
}

impl Reads {
    /// Adds what one more stage read. The result holds only while the conditions of all stages
    /// hold.
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

    /// Removes and returns the fields that say how long an answer holds: they apply only to the
    /// answer of the call that set them.
    #[must_use]
    pub fn take_times(&mut self) -> Self {
        Self {
            time: std::mem::take(&mut self.time),
            reconsider_at: self.reconsider_at.take(),
            open_ended: std::mem::take(&mut self.open_ended),
            ..Self::default()
        }
    }

    /// Whether a decision made at `made_at` still holds at `now`, as far as time is concerned. It
    /// doesn't if the clock was set back before `made_at`.
    pub fn holds_at(&self, made_at: u64, now: u64) -> bool {
        let not_before = !self.time || made_at <= now;
        let not_after = self.reconsider_at.is_none_or(|at| now < at);
        not_before && not_after && !self.is_open_ended()
    }

    fn is_open_ended(&self) -> bool {
        self.open_ended || (self.time && self.reconsider_at.is_none())
    }
}

/// The failure of a component.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// What happened, in one line.
    pub error: String,
}
