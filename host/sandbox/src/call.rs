//! What a component instance has before it while it is called: the event, the
//! directory, and the audiences made so far. It records what the call reads.

use std::collections::BTreeSet;
use std::sync::Arc;

use presence_core::audience::Audience;
use presence_core::directory::{Directory, NotAtHand, Question};
use presence_core::event::Event;
use presence_core::names::{Id, Names};
use presence_core::rules::{Context, Reads};
use wasmtime::{Result, StoreLimits, bail};

/// How many audiences one call may make.
const AUDIENCES_MAX: usize = 65_536;

/// How many lines one call may log or explain, and how long each may be.
const LINES_MAX: usize = 16;
const LINE_BYTES_MAX: usize = 1_024;

/// The state of a store.
pub(crate) struct Call {
    pub(crate) plugin: Arc<str>,
    pub(crate) limits: StoreLimits,
    about: Option<About>,
    audiences: Vec<Audience>,
    /// The token of the first audience: one from another call is below it or
    /// past the last, and so never other data.
    base: u32,
    lines: usize,
    pub(crate) reads: Reads,
    pub(crate) not_at_hand: BTreeSet<Question>,
}

pub(crate) struct About {
    pub(crate) now: u64,
    pub(crate) event: Arc<Event>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) names: Arc<Names>,
}

impl Call {
    pub(crate) fn new(plugin: Arc<str>, limits: StoreLimits) -> Self {
        Self {
            plugin,
            limits,
            about: None,
            audiences: Vec::new(),
            base: 1,
            lines: 0,
            reads: Reads::default(),
            not_at_hand: BTreeSet::new(),
        }
    }

    /// Begins a call.
    pub(crate) fn begin(&mut self, context: Context<'_>) {
        self.about = Some(About {
            now: context.now,
            event: Arc::clone(context.event),
            directory: Arc::clone(context.directory),
            names: Arc::clone(context.names),
        });
        self.lines = 0;
        self.reads = Reads::default();
        self.not_at_hand.clear();
    }

    /// Ends a call: its tokens are good for nothing from here on.
    pub(crate) fn end(&mut self) {
        let made = u32::try_from(self.audiences.len()).unwrap_or(u32::MAX);
        self.base = self
            .base
            .checked_add(made)
            .filter(|base| *base < u32::MAX / 2)
            .unwrap_or(1);
        self.audiences.clear();
        self.about = None;
    }

    pub(crate) fn about(&self) -> Result<&About> {
        match &self.about {
            Some(about) => Ok(about),
            None => bail!("there is no event to ask about while a plugin is configured"),
        }
    }

    pub(crate) fn put(&mut self, audience: Audience) -> Result<u32> {
        if self.audiences.len() >= AUDIENCES_MAX {
            bail!("made more than {AUDIENCES_MAX} audiences in one call");
        }
        let token = self.base + u32::try_from(self.audiences.len()).unwrap_or(u32::MAX);
        self.audiences.push(audience);
        Ok(token)
    }

    pub(crate) fn audience(&self, token: u32) -> Result<&Audience> {
        let place = token.checked_sub(self.base).map(|place| place as usize);
        match place.and_then(|place| self.audiences.get(place)) {
            Some(audience) => Ok(audience),
            None => bail!("used an audience that is not of this call"),
        }
    }

    /// The number of a user. Of the event's own user it is at hand.
    pub(crate) fn user(&self, name: &str) -> Result<Id> {
        let about = self.about()?;
        if about.event.name.as_str() == name {
            return Ok(about.event.user);
        }
        Ok(about.names.intern(name))
    }

    /// Puts a question to the directory. Where the answer isn't at hand, the
    /// call goes on with nobody, and its outcome is thrown away.
    pub(crate) fn ask(&mut self, question: Question) -> Result<u32> {
        let answer = self.about()?.directory.audience(&question);
        let audience = answer.unwrap_or_else(|NotAtHand| {
            self.not_at_hand.insert(question.clone());
            Audience::nobody()
        });
        self.reads.questions.insert(question);
        self.put(audience)
    }

    /// A line for the log or an explanation, if this call has any left.
    pub(crate) fn line<'a>(&mut self, text: &'a str) -> Option<&'a str> {
        self.lines += 1;
        (self.lines <= LINES_MAX).then(|| {
            let end = (0..=LINE_BYTES_MAX.min(text.len()))
                .rev()
                .find(|end| text.is_char_boundary(*end));
            text.get(..end.unwrap_or(0)).unwrap_or_default()
        })
    }
}
