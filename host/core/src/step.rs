//! The next step in handling an event.

use std::sync::Arc;

use roaring::RoaringBitmap;

use crate::event::Event;
use crate::recipients::Recipients;

/// The next step in handling an event.
#[derive(Clone, Debug)]
pub enum Step {
    /// Enrich and broadcast the event. False: an application has already published it on its own
    /// subject.
    Announce(Arc<Event>, bool),
    /// Send the event to viewers who were told that the user is online.
    Tell(Arc<Event>, Recipients),
    /// Show the user by the metadata of their newest connection, as it is when this is done.
    Show(Arc<Event>),
}

impl Step {
    /// The event.
    pub fn event(&self) -> &Arc<Event> {
        match self {
            Self::Announce(event, _) | Self::Tell(event, _) | Self::Show(event) => event,
        }
    }

    /// All ids in the step, as numbers.
    pub(crate) fn ids(&self) -> RoaringBitmap {
        let mut ids = match self {
            Self::Announce(..) | Self::Show(_) => RoaringBitmap::new(),
            Self::Tell(_, told) => told.audience().bitmap(),
        };
        ids.insert(self.event().user.0);
        ids
    }
}
