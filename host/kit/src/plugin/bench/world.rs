//! The data for the measured calls: a user with a number of contacts, who share a group with the
//! user, and are the audience so far.

use std::sync::Arc;

use presence_core::audience::Audience;
use presence_core::directory::{Directory, Question};
use presence_core::event::Event;
use presence_core::names::Names;
use presence_core::rules::Context;
use presence_sandbox::manifest::Case;
use presence_sandbox::self_test;
use serde_json::Map;

/// A fixed time, for calls without a case.
const NOW: u64 = 1_698_000_000_000;

pub(super) struct World {
    /// The audience so far.
    pub(super) audience: Audience,
    now: u64,
    names: Arc<Names>,
    directory: Arc<Directory>,
    event: Arc<Event>,
}

impl World {
    /// Data with this number of viewers, for the event of a case.
    pub(super) fn new(viewers: u32, case: Option<&Case>) -> Self {
        let names = Names::unbounded();
        let fields = case.map_or_else(Map::new, |case| case.event.clone());
        let event = self_test::event(&names, &fields);
        let contacts = (0..viewers).map(|viewer| names.intern(&format!("viewer-{viewer}")).0);
        let contacts: roaring::RoaringBitmap = contacts.collect();
        let mut edit = Directory::new().edit();
        edit.contacts(event.user, Some(contacts.clone()));
        let mut members = contacts;
        members.insert(event.user.0);
        edit.group("team", Some(members));
        let (directory, _) = edit.finish();
        let audience = directory.audience(&Question::Contacts(event.user));
        Self {
            audience: audience.unwrap_or_default(),
            now: case.map_or(NOW, |case| case.now),
            names: Arc::new(names),
            directory: Arc::new(directory),
            event: Arc::new(event),
        }
    }

    pub(super) fn context(&self) -> Context<'_> {
        Context {
            now: self.now,
            monotonic: self.now,
            event: &self.event,
            directory: &self.directory,
            names: &self.names,
        }
    }
}
