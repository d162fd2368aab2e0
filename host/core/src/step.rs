//! What is next for an event that has come in.

use std::sync::Arc;

use roaring::RoaringBitmap;

use crate::event::Event;
use crate::recipients::Recipients;

/// What is next for an event.
#[derive(Clone, Debug)]
pub enum Step {
    /// To be enriched and broadcast. Where it is not ours, an application has
    /// published it on its own subject.
    Announce(Arc<Event>, bool),
    /// To be sent to the viewers in the ledger.
    Tell(Arc<Event>, Recipients),
    /// The user is to be shown by what the newest of their connections says by then.
    Show(Arc<Event>),
}

impl Step {
    /// What it is about.
    pub fn event(&self) -> &Arc<Event> {
        match self {
            Self::Announce(event, _) | Self::Tell(event, _) | Self::Show(event) => event,
        }
    }

    /// All the numbers of ids in it.
    pub(crate) fn ids(&self) -> RoaringBitmap {
        let mut ids = match self {
            Self::Announce(..) | Self::Show(_) => RoaringBitmap::new(),
            Self::Tell(_, told) => told.audience().bitmap(),
        };
        ids.insert(self.event().user.0);
        ids
    }
}
