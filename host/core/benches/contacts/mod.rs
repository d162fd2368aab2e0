//! A rule that costs almost nothing: a user's contacts may see the user and the user's device.

use std::collections::BTreeSet;
use std::sync::Arc;

use presence_core::audience::Audience;
use presence_core::directory::Question;
use presence_core::rules::{Context, Decision, Enriched, Reads, Rendition, Rules};

/// Admits all contacts.
pub(crate) struct Contacts(Arc<[Box<str>]>);

impl Contacts {
    pub(crate) fn new() -> Self {
        Self(["device".into()].into())
    }

    fn rendition(&self, audience: Audience) -> Vec<Rendition> {
        vec![Rendition {
            audience,
            keys: Arc::clone(&self.0),
            last_seen: true,
        }]
    }
}

impl Rules for Contacts {
    fn enrich(&mut self, _: Context<'_>) -> Enriched {
        Enriched::default()
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        let question = Question::Contacts(context.event.user);
        let contacts = context.directory.audience(&question).unwrap();
        let reads = Reads {
            questions: BTreeSet::from([question]),
            ..Reads::default()
        };
        Decision::Decided(self.rendition(contacts), reads)
    }

    fn redact(&mut self, _: Context<'_>, told: &Audience) -> Decision {
        Decision::Decided(self.rendition(told.clone()), Reads::default())
    }
}
