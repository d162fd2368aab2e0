//! Decides which of the node's shards subscribe to heartbeats. A standby whose owner forwards them
//! doesn't.
//!
//! At first a node has one subscription for all of a shard's messages. When the shard stops taking
//! heartbeats for the first time, one subscription per kind of message replaces it. From then on
//! the heartbeats have subscriptions of their own, which are added and removed. So no other
//! messages are at risk when a standby suddenly has to hear heartbeats.

use presence_config::causes::Causes;
use presence_core::message::Kind;

use super::{Completion, Driver, SubscriptionState};
use crate::clock;
use crate::fleet::parts::SubscriptionChange;
use crate::link::broker::BrokerHealth;
use crate::link::connection::{Connection, Subscription};
use crate::link::drops::SubscriptionKind;

/// How a shard's messages are subscribed to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SubscriptionScope {
    /// One subscription for everything.
    Whole,
    /// Separate subscriptions per kind of message; those for heartbeats may be missing.
    Apart { heartbeats: bool },
}

/// The state of the heartbeat subscriptions of a shard.
#[derive(Clone, Copy)]
pub(super) struct Heartbeats {
    /// Whether the shard should get heartbeats.
    wanted: bool,
    listened: SubscriptionScope,
    is_changing: bool,
}

impl Default for Heartbeats {
    fn default() -> Self {
        Self {
            wanted: true,
            listened: SubscriptionScope::Whole,
            is_changing: false,
        }
    }
}

impl Driver {
    /// The shard takes heartbeats itself from now on, or its owner forwards them to it.
    pub(super) fn set_receives_heartbeats(&mut self, shard: u32, wanted: bool) {
        if let Some(heartbeats) = self.heartbeats.get_mut(shard as usize) {
            heartbeats.wanted = wanted;
            if wanted {
                self.fleet.set_heartbeats(shard, true);
            }
        }
        self.subscribe_anew(shard);
    }

    /// Resets a shard that the node begins or ceases to listen to: it gets all messages again.
    pub(super) fn forget_heartbeats(&mut self, shard: u32) {
        if let Some(heartbeats) = self.heartbeats.get_mut(shard as usize) {
            *heartbeats = Heartbeats::default();
        }
        self.fleet.set_heartbeats(shard, true);
    }

    /// Changes the subscriptions if the shard has others than it should have.
    fn subscribe_anew(&mut self, shard: u32) {
        let listens = self.listens_to(shard);
        let Some(heartbeats) = self.heartbeats.get_mut(shard as usize) else {
            return;
        };
        if !listens || heartbeats.is_changing {
            return;
        }
        match (heartbeats.listened, heartbeats.wanted) {
            (SubscriptionScope::Whole, true) => {}
            (SubscriptionScope::Apart { heartbeats: has }, wanted) if has == wanted => {}
            (SubscriptionScope::Apart { .. }, false) => {
                heartbeats.listened = SubscriptionScope::Apart { heartbeats: false };
                self.fleet.set_heartbeats(shard, false);
                self.parts
                    .change(SubscriptionChange::RemoveHeartbeats(shard));
            }
            (SubscriptionScope::Apart { .. }, true) => {
                heartbeats.is_changing = true;
                self.subscribe_to_heartbeats(shard);
            }
            (SubscriptionScope::Whole, false) => {
                heartbeats.is_changing = true;
                self.subscribe_apart(shard);
            }
        }
    }

    fn subscribe_to_heartbeats(&self, shard: u32) {
        let alone = self.subjects.shard_input(shard, Some(Kind::Heartbeat));
        let subjects = [alone, self.subjects.shard_heartbeats(shard)];
        let (connection, broker) = (self.connection.clone(), self.broker.clone());
        let subscribed = async move {
            let messages = subscribe_to(subjects, &connection, &broker).await;
            Completion::Subscribed(shard, true, messages)
        };
        self.under_way.push(Box::pin(subscribed));
    }

    fn subscribe_apart(&self, shard: u32) {
        let subjects = self.subjects.shard_without_heartbeats(shard);
        let (connection, broker) = (self.connection.clone(), self.broker.clone());
        let mut received_up_to = self.received_up_to.clone();
        let subscribed = async move {
            let messages = match subscribe_to(subjects, &connection, &broker).await {
                Ok(messages) => messages,
                Err(error) => return Completion::Subscribed(shard, false, Err(error)),
            };
            // What the broker sent before it knew the new subscriptions arrives by the old one. The
            // old one may end only after that has arrived: the client drops what is on its way to a
            // subscription that ends.
            let at = clock::now_ms();
            let is_known = received_up_to
                .wait_for(|received_up_to| *received_up_to > at)
                .await
                .map(|_| ());
            match is_known {
                Ok(()) => Completion::Subscribed(shard, false, Ok(messages)),
                Err(error) => Completion::Subscribed(shard, false, Err(error.into())),
            }
        };
        self.under_way.push(Box::pin(subscribed));
    }

    fn listens_to(&self, shard: u32) -> bool {
        let listens = self.roles.get(shard as usize);
        listens.is_some_and(|(_, listening)| *listening == SubscriptionState::Yes)
    }

    /// Puts new subscriptions in force. Those for everything but heartbeats replace the single one;
    /// those for heartbeats are added.
    pub(super) fn on_subscribed(
        &mut self,
        (shard, to_heartbeats): (u32, bool),
        messages: anyhow::Result<Vec<Subscription>>,
    ) {
        let listens = self.listens_to(shard);
        let Some(heartbeats) = self.heartbeats.get_mut(shard as usize) else {
            return;
        };
        heartbeats.is_changing = false;
        let before = match to_heartbeats {
            true => SubscriptionScope::Apart { heartbeats: false },
            false => SubscriptionScope::Whole,
        };
        match messages {
            Ok(messages) if listens && heartbeats.listened == before => {
                heartbeats.listened = SubscriptionScope::Apart {
                    heartbeats: to_heartbeats,
                };
                self.fleet.set_heartbeats(shard, heartbeats.wanted);
                let change = match to_heartbeats {
                    true => SubscriptionChange::AddHeartbeats(shard, messages),
                    false => SubscriptionChange::Replace(shard, messages),
                };
                self.parts.change(change);
            }
            // The node has left the shard meanwhile, or has begun anew with it.
            Ok(_) => {}
            // The connection is closed only when the node ends.
            Err(error) => {
                tracing::error!("can't listen to a shard: {}", Causes(&error));
                return;
            }
        }
        self.subscribe_anew(shard);
    }
}

async fn subscribe_to(
    subjects: impl IntoIterator<Item = String>,
    connection: &Connection,
    broker: &BrokerHealth,
) -> anyhow::Result<Vec<Subscription>> {
    let mut messages = Vec::new();
    for subject in subjects {
        let subscribed = connection.subscribe(subject, SubscriptionKind::Inputs, broker);
        messages.push(subscribed.await?);
    }
    Ok(messages)
}
