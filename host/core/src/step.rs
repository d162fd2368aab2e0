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
    Notify(Arc<Event>, Recipients),
    /// Show the user by the metadata of their newest connection, as it is when this is done.
    Reshow(Arc<Event>),
}

impl Step {
    /// The event.
    pub fn event(&self) -> &Arc<Event> {
        match self {
            Self::Announce(event, _) | Self::Notify(event, _) | Self::Reshow(event) => event,
        }
    }

    /// All ids in the step, as numbers.
    pub(crate) fn ids(&self) -> RoaringBitmap {
        let mut ids = match self {
            Self::Announce(..) | Self::Reshow(_) => RoaringBitmap::new(),
            Self::Notify(_, told) => told.audience().bitmap(),
        };
        ids.insert(self.event().user.0);
        ids
    }
}
