//! Which of the node's shards take in heartbeats: a standby that its owner tells of them doesn't.

use presence_config::causes::Causes;

use super::{Done, Driver, Listening};
use crate::fleet::parts::PartChange;
use crate::link::connection::Subscription;
use crate::link::drops::SubscriptionKind;

/// Whether heartbeats are subscribed to for a shard.
#[derive(Clone, Copy)]
pub(super) struct Heartbeats {
    /// Whether the shard is to have them.
    wanted: bool,
    subscribed: bool,
    is_changing: bool,
}

impl Default for Heartbeats {
    fn default() -> Self {
        Self {
            wanted: true,
            subscribed: true,
            is_changing: false,
        }
    }
}

impl Driver {
    /// A shard takes in heartbeats from now on, or is told of them by its owner.
    pub(super) fn takes_heartbeats(&mut self, shard: u32, wanted: bool) {
        if let Some(heartbeats) = self.heartbeats.get_mut(shard as usize) {
            heartbeats.wanted = wanted;
            if wanted {
                self.fleet.set_heartbeats(shard, true);
            }
        }
        self.subscribe_anew(shard);
    }

    /// It begins to listen to a shard, or doesn't listen any more: then to all of it, again.
    pub(super) fn forget_heartbeats(&mut self, shard: u32) {
        if let Some(heartbeats) = self.heartbeats.get_mut(shard as usize) {
            *heartbeats = Heartbeats::default();
        }
        self.fleet.set_heartbeats(shard, true);
    }

    /// Subscribes to what the shard is to have, if that is something else than it has.
    fn subscribe_anew(&mut self, shard: u32) {
        let listens = self.roles.get(shard as usize);
        let listens = listens.is_some_and(|(_, listening)| *listening == Listening::Yes);
        let Some(heartbeats) = self.heartbeats.get_mut(shard as usize) else {
            return;
        };
        let wanted = heartbeats.wanted;
        if !listens || heartbeats.is_changing || heartbeats.subscribed == wanted {
            return;
        }
        heartbeats.is_changing = true;
        let subjects = match wanted {
            true => vec![self.subjects.of_shard(shard)],
            false => self.subjects.of_shard_but_heartbeats(shard),
        };
        let (connection, broker) = (self.connection.clone(), self.broker.clone());
        let subscribed = async move {
            let mut messages = Vec::new();
            for subject in subjects {
                let subscribed = connection.subscribe(subject, SubscriptionKind::Inputs, &broker);
                match subscribed.await {
                    Ok(subscription) => messages.push(subscription),
                    Err(error) => return Done::Subscribed(shard, wanted, Err(error)),
                }
            }
            Done::Subscribed(shard, wanted, Ok(messages))
        };
        self.under_way.push(Box::pin(subscribed));
    }

    /// What was subscribed to takes the place of what was subscribed to before.
    pub(super) fn subscribed(
        &mut self,
        (shard, with_heartbeats): (u32, bool),
        messages: anyhow::Result<Vec<Subscription>>,
    ) {
        let listens = self.roles.get(shard as usize);
        let listens = listens.is_some_and(|(_, listening)| *listening == Listening::Yes);
        let Some(heartbeats) = self.heartbeats.get_mut(shard as usize) else {
            return;
        };
        heartbeats.is_changing = false;
        match messages {
            Ok(messages) if listens => {
                heartbeats.subscribed = with_heartbeats;
                let is_given = with_heartbeats || heartbeats.wanted;
                self.fleet.set_heartbeats(shard, is_given);
                // The intake is gone when the node ends.
                let _ = self.parts.send(PartChange::Replaces(shard, messages));
                self.subscribe_anew(shard);
            }
            // It has no part in it any more.
            Ok(_) => {}
            // The connection is closed only when the node ends.
            Err(error) => tracing::error!("can't listen to a shard: {}", Causes(&error)),
        }
    }
}
