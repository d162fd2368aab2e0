//! A client that receives all that the host publishes. It counts messages, and notes who was told
//! what.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use presence_tests::client::{Client, ReceivedMessage, Recording};
use serde_json::{Value, json};

use super::delivery_state::DeliveryState;
use super::filtered_event::FilteredEvent;

/// The subject of the observer's marks. The host doesn't know it.
const MARK: &str = "presence.demo.mark";

/// Something that was published.
#[derive(Debug)]
pub(crate) enum Observed {
    /// An event on `presence.events`.
    Broadcast {
        user: String,
        /// The reason, if the user went offline.
        went: Option<String>,
    },
    /// A filtered event.
    FilteredEvent(FilteredEvent),
    /// A dead letter.
    DeadLetter(Value),
    /// One of the observer's own marks.
    Mark(u64),
    /// Anything else, such as an input, or the same event on another subject.
    Other,
}

/// How many messages the host has published, and their effects.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// On all subjects.
    pub(crate) published: u64,
    /// On `presence.events`.
    pub(crate) events: u64,
    /// On `presence.filtered.*`.
    pub(crate) filtered: u64,
    /// The sum of the viewers that these name.
    pub(crate) viewers: u64,
    /// How many filtered events are corrections of what was told before.
    pub(crate) corrections: u64,
    /// How many viewers can no longer see a user who stayed online.
    pub(crate) hidden: u64,
    /// How many viewers can now see a user who was online.
    pub(crate) shown: u64,
    /// On `presence.dlq`.
    pub(crate) dead_letters: u64,
}

/// The observer.
#[derive(Debug)]
pub(crate) struct Observer {
    client: Client,
    tape: Recording,
    counts: Counts,
    state: DeliveryState,
    /// The broadcasts whose filtered events haven't come yet, by user: the timestamp, and the
    /// reason if the user went offline.
    announced: BTreeMap<String, (Value, Option<String>)>,
    marks: u64,
}

impl Observer {
    /// An observer that receives all that is published from now on.
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

    /// The next message. The future can be dropped before it is done.
    ///
    /// # Errors
    /// When nothing comes, or a viewer is told what they know already.
    pub(crate) async fn next(&mut self, what: &str) -> Result<Observed> {
        let seen = self.tape.next(what, |_| true).await?;
        if seen.subject == MARK {
            return Ok(Observed::Mark(seen.body.as_u64().unwrap_or_default()));
        }
        if !seen.is_from_host() || seen.subject == "presence.beacon" {
            return Ok(Observed::Other);
        }
        self.counts.published += 1;
        match seen.subject.as_str() {
            "presence.events" => {
                self.counts.events += 1;
                Ok(self.broadcast(&seen))
            }
            "presence.filtered.user_online" | "presence.filtered.user_offline" => {
                self.counts.filtered += 1;
                self.filtered(&seen)
            }
            "presence.dlq" => {
                self.counts.dead_letters += 1;
                Ok(Observed::DeadLetter(seen.body))
            }
            _ => Ok(Observed::Other),
        }
    }

    /// Publishes a mark. All that was published before the mark is received before it.
    pub(crate) async fn mark(&mut self) -> Result<u64> {
        // The filtered events of all broadcasts have come by now.
        self.forget_broadcasts();
        self.marks += 1;
        self.client.publish(MARK, &json!(self.marks)).await?;
        Ok(self.marks)
    }

    /// From now on, filtered events count as corrections, until the next broadcast.
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

    fn broadcast(&mut self, seen: &ReceivedMessage) -> Observed {
        let user = seen.text("userId").to_owned();
        let went = went(seen);
        let at = seen.field("timestamp").clone();
        self.announced.insert(user.clone(), (at, went.clone()));
        Observed::Broadcast { user, went }
    }

    fn filtered(&mut self, seen: &ReceivedMessage) -> Result<Observed> {
        let announced = self.announced.remove(seen.text("userId"));
        let announced = announced.filter(|(at, went)| {
            at == seen.field("timestamp") && went.is_none() == is_online(seen)
        });
        let event = FilteredEvent::read(seen, announced.map(|(_, went)| went.unwrap_or_default()));
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
        let change = &event.change;
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
        Ok(Observed::FilteredEvent(event))
    }
}

fn is_online(seen: &ReceivedMessage) -> bool {
    seen.text("type") == "user_online"
}

/// The reason in a broadcast event. `None` if the user came online.
fn went(seen: &ReceivedMessage) -> Option<String> {
    (!is_online(seen)).then(|| seen.text("reason").to_owned())
}
