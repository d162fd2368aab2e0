//! The current rules, which scripts change.

use std::collections::BTreeSet;

use presence_core::audience::Audience;
use presence_core::directory::Question;
use presence_core::event::Event;
use presence_core::names::Id;
use presence_core::rules::{Context, Decision, Enriched, Failure, Reads, Rendition, Rules};
use presence_core::share::{Assignment, Share};

/// Contacts may see a user, except those who are blocked, and unless the user is hidden. The rules
/// fail for some users.
#[derive(Clone, Default)]
pub(crate) struct Generation {
    pub(crate) hidden: BTreeSet<Id>,
    pub(crate) failing: BTreeSet<Id>,
    /// A viewer whom the redactor leaves out of all renditions.
    pub(crate) unredacted: Option<Id>,
    pub(crate) secretive: BTreeSet<Id>,
    pub(crate) shy: BTreeSet<Id>,
    /// A viewer who is shown only these keys.
    pub(crate) plain: Option<Id>,
    pub(crate) plain_keys: Vec<&'static str>,
}

/// The rules for all users, and perhaps other rules for a share of them, each with a number.
#[derive(Default)]
pub(crate) struct Sides {
    pub(crate) active: (u64, Generation),
    pub(crate) candidate: Option<(u64, Share, Generation)>,
    /// The last number that was assigned.
    pub(crate) last: u64,
}

impl Sides {
    /// The rules that decide on a user.
    pub(crate) fn of(&self, user: &str) -> &Generation {
        match &self.candidate {
            Some((_, share, rules)) if share.has(user) => rules,
            _ => &self.active.1,
        }
    }

    pub(crate) fn assignment(&self) -> Assignment {
        let candidate = self.candidate.as_ref();
        Assignment {
            active: self.active.0,
            candidate: candidate.map(|(number, share, _)| (*number, *share)),
        }
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    fn of_event(&mut self, context: Context<'_>) -> &mut Generation {
        match &mut self.candidate {
            Some((_, share, rules)) if share.has(context.event.name.as_str()) => rules,
            _ => &mut self.active.1,
        }
    }
}

impl Rules for Sides {
    fn enrich(&mut self, context: Context<'_>) -> Enriched {
        self.of_event(context).enrich(context)
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        self.of_event(context).decide(context)
    }

    fn redact(&mut self, context: Context<'_>, told: &Audience) -> Decision {
        self.of_event(context).redact(context, told)
    }
}

impl Generation {
    fn split(&self, event: &Event, audience: &Audience) -> Result<Vec<Rendition>, Failure> {
        if self.failing.contains(&event.user) {
            return Err(Failure {
                plugin: "rule".into(),
                error: "told to fail".into(),
            });
        }
        let audience = self
            .unredacted
            .map_or_else(|| audience.clone(), |viewer| audience.without(viewer));
        let last_seen = !self.secretive.contains(&event.user);
        let plain: Audience = self.plain.into_iter().collect();
        let rendition = |audience, keys: &[&str]| Rendition {
            audience,
            keys: keys.iter().map(|key| (*key).into()).collect(),
            last_seen,
        };
        Ok(vec![
            rendition(audience.intersection(&plain), &self.plain_keys),
            rendition(
                audience.difference(&plain),
                &["device", "activity", "status"],
            ),
        ])
    }
}

impl Rules for Generation {
    fn enrich(&mut self, _: Context<'_>) -> Enriched {
        Enriched::default()
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        let user = context.event.user;
        let questions = [Question::Contacts(user), Question::BlockedBy(user)];
        let unanswered = questions.iter().filter(|it| !context.directory.has(it));
        let unanswered: BTreeSet<_> = unanswered.cloned().collect();
        if !unanswered.is_empty() {
            return Decision::CacheMiss(unanswered);
        }
        let [contacts, blocked] = questions
            .each_ref()
            .map(|question| context.directory.audience(question).unwrap());
        // Without statuses, this key of a connection's metadata is no status.
        let mut entries = context.event.metadata.entries();
        let idle = entries.any(|it| it.public && it.key == "activity" && it.value == "\"idle\"");
        let hidden = self.hidden.contains(&user) || (self.shy.contains(&user) && idle);
        let audience = if hidden {
            Audience::nobody()
        } else {
            contacts.difference(&blocked)
        };
        let reads = Reads {
            questions: questions.into(),
            keys: ["activity".into()].into(),
            ..Reads::default()
        };
        match self.split(context.event, &audience) {
            Ok(renditions) => Decision::Decided(renditions, reads),
            Err(failure) => Decision::Failed(failure),
        }
    }

    fn redact(&mut self, context: Context<'_>, told: &Audience) -> Decision {
        match self.split(context.event, told) {
            Ok(renditions) => Decision::Decided(renditions, Reads::default()),
            Err(failure) => Decision::Failed(failure),
        }
    }
}
