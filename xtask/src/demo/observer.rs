//! A client that sees all that the host publishes: it counts, and notes who was
//! told what.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use presence_tests::client::{Client, ReceivedMessage, Recording};
use serde_json::{Value, json};

use super::delivery_state::DeliveryState;
use super::filtered_event::FilteredEvent;

/// A subject that the host doesn't know.
const MARK: &str = "presence.demo.mark";

/// Something that was published.
#[derive(Debug)]
pub(crate) enum Saw {
    /// An event, as everyone may read it who may subscribe to `presence.events`.
    Broadcast {
        user: String,
        /// Why they went, if they did.
        went: Option<String>,
    },
    /// A filtered event.
    FilteredEvent(FilteredEvent),
    /// A dead letter.
    DeadLetter(Value),
    /// The client's own mark.
    Mark(u64),
    /// An input, or the same event on a subject of its own.
    Other,
}

/// How much the host has published.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// On all subjects.
    pub(crate) published: u64,
    /// On `presence.events`.
    pub(crate) events: u64,
    /// On `presence.filtered.*`.
    pub(crate) filtered: u64,
    /// How many viewers those name, all told.
    pub(crate) viewers: u64,
    /// How many of those correct what was told before.
    pub(crate) corrections: u64,
    /// How many viewers can no longer see a user who stayed online.
    pub(crate) hidden: u64,
    /// How many viewers can now see a user who was online.
    pub(crate) shown: u64,
    /// On `presence.dlq`.
    pub(crate) dead_letters: u64,
}

/// The client.
#[derive(Debug)]
pub(crate) struct Observer {
    client: Client,
    tape: Recording,
    counts: Counts,
    state: DeliveryState,
    /// Broadcasts whose filtered events haven't come: by user, when, and why they
    /// went if they did.
    announced: BTreeMap<String, (Value, Option<String>)>,
    marks: u64,
}

impl Observer {
    /// Sees all that is published from here on.
    pub(crate) async fn new(client: Client) -> Result<Self> {
        let tape = client.record("presence.>").await?;
        Ok(Self {
            client,
            tape,
            counts: Counts::default(),
            state: DeliveryState::default(),
            announced: BTreeMap::new(),
            marks: 0,
        })
    }

    /// The next that is published. It may be given up half-way.
    ///
    /// # Errors
    /// When nothing comes, or a viewer is told what they know already.
    pub(crate) async fn next(&mut self, what: &str) -> Result<Saw> {
        let seen = self.tape.next(what, |_| true).await?;
        if seen.subject == MARK {
            return Ok(Saw::Mark(seen.body.as_u64().unwrap_or_default()));
        }
        if !seen.is_hosts() || seen.subject == "presence.beacon" {
            return Ok(Saw::Other);
        }
        self.counts.published += 1;
        match seen.subject.as_str() {
            "presence.events" => {
                self.counts.events += 1;
                Ok(self.broadcast(&seen))
            }
            "presence.filtered.user_online" | "presence.filtered.user_offline" => {
                self.counts.filtered += 1;
                self.told(&seen)
            }
            "presence.dlq" => {
                self.counts.dead_letters += 1;
                Ok(Saw::DeadLetter(seen.body))
            }
            _ => Ok(Saw::Other),
        }
    }

    /// Publishes a mark: what was published before it is seen before it.
    pub(crate) async fn mark(&mut self) -> Result<u64> {
        // What a broadcast gave rise to has come by then.
        self.forget_broadcasts();
        self.marks += 1;
        self.client.publish(MARK, &json!(self.marks)).await?;
        Ok(self.marks)
    }

    /// Takes what comes from now on for corrections, until the next broadcast.
    pub(crate) fn forget_broadcasts(&mut self) {
        self.announced.clear();
    }

    /// How much the host has published.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }

    /// Who believes whom to be online.
    pub(crate) fn state(&self) -> &DeliveryState {
        &self.state
    }

    fn broadcast(&mut self, seen: &ReceivedMessage) -> Saw {
        let user = seen.text("userId").to_owned();
        let went = went(seen);
        let at = seen.field("timestamp").clone();
        self.announced.insert(user.clone(), (at, went.clone()));
        Saw::Broadcast { user, went }
    }

    fn told(&mut self, seen: &ReceivedMessage) -> Result<Saw> {
        let announced = self.announced.remove(seen.text("userId"));
        let announced = announced.filter(|(at, went)| {
            at == seen.field("timestamp") && went.is_none() == is_online(seen)
        });
        let told = FilteredEvent::read(seen, announced.map(|(_, went)| went.unwrap_or_default()));
        let keys: Vec<_> = seen
            .field("metadata")
            .as_object()
            .into_iter()
            .flatten()
            .collect();
        ensure!(
            keys.iter().all(|(key, _)| *key == "device"),
            "viewers are to see the device alone, not {}",
            seen.body
        );
        let change = &told.change;
        let viewers = change.viewers.len() as u64;
        self.counts.viewers += viewers;
        if !change.moved {
            self.counts.corrections += 1;
            let corrected = if change.online {
                &mut self.counts.shown
            } else {
                &mut self.counts.hidden
            };
            *corrected += viewers;
        }
        self.state.note(change)?;
        Ok(Saw::FilteredEvent(told))
    }
}

fn is_online(seen: &ReceivedMessage) -> bool {
    seen.text("type") == "user_online"
}

/// Why a user went, by a broadcast event; none if they came.
fn went(seen: &ReceivedMessage) -> Option<String> {
    (!is_online(seen)).then(|| seen.text("reason").to_owned())
}
