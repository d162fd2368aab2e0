//! What the core asks of a tenant's rules, and what they answer.
//!
//! The sandbox implements [`Rules`] with components; tests do it with closures.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::audience::Audience;
use crate::directory::{Directory, Question};
use crate::event::Event;
use crate::names::Names;

/// What a call is about and may know.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The time, in milliseconds since the Unix epoch.
    pub now: u64,
    /// The event.
    pub event: &'a Arc<Event>,
    /// The directory.
    pub directory: &'a Arc<Directory>,
    /// The tenant's ids.
    pub names: &'a Arc<Names>,
}

/// A tenant's pipeline, as one worker runs it.
pub trait Rules {
    /// The changes that the enrichers make, in order. One that fails is passed over.
    fn enrich(&mut self, context: Context<'_>) -> Enriched;

    /// Who may see the event, and what each of them gets.
    fn decide(&mut self, context: Context<'_>) -> Decision;

    /// What each of those who are told of the event gets: the redactor alone.
    ///
    /// # Errors
    /// The failure of the redactor.
    fn redact(&mut self, context: Context<'_>, told: &Audience) -> Result<Vec<Rendition>, Failure>;

    /// Whether the rules have become others, of their own accord, since this
    /// was last asked.
    fn take_replaced(&mut self) -> bool {
        false
    }
}

/// What the enrichers did.
#[derive(Debug, Default)]
pub struct Enriched {
    /// What they changed.
    pub changes: Vec<MetadataChange>,
    /// Those of them that failed.
    pub failures: Vec<Failure>,
}

/// A change to a metadata key: its value as JSON text, or none to remove it.
pub type MetadataChange = (String, Option<String>);

/// What came of asking the rules.
#[derive(Debug)]
pub enum Decision {
    /// They decided.
    Decided(Vec<Rendition>, Reads),
    /// They asked for what isn't at hand: fetch it, and ask again.
    NotAtHand(BTreeSet<Question>),
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
    /// Whether it gets to know when the user was last seen.
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
    /// The earliest time at which a component asked to be asked again.
    pub reconsider_at: Option<u64>,
}

/// A component that didn't answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// What happened, in one line.
    pub error: String,
}
