//! The pulse: what the broker is known to have, and up to when it has been heard.
//!
//! A client of NATS doesn't say when the broker has answered its PING. So the node has
//! a second connection, for this alone. A marker goes out on the main connection, behind
//! all that has been handed to it; when it comes in on the second one, the broker has
//! all of that. It is sent back on the second connection, and when it comes in on the
//! main one, all has been heard that the broker had by then.
//!
//! What is known this way is never too much. A marker that comes over a connection
//! that was made after it was sent says nothing of what went over the one before.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::connection::State;
use async_nats::{Client, Message, Statistics, Subscriber};
use futures_util::StreamExt;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::broker::{self, Health};
use crate::clock;
use crate::config::Nats;

/// How soon the broker is asked, at the earliest, where something isn't acknowledged.
const QUICK: Duration = Duration::from_millis(10);

/// How many markers may be under way. Of more, the oldest counts as lost.
const MARKERS_MAX: usize = 256;

/// How far a source has handed its messages to the broker's client, and how far the
/// broker has them. Places are the journal's.
#[derive(Debug)]
pub(crate) struct Handed {
    /// The connection that they were handed to, counted as the client counts.
    link: AtomicU64,
    /// Up to which place they were.
    end: AtomicU64,
    /// Up to which place the broker has them.
    acknowledged: AtomicU64,
    moved: Notify,
    /// Said when something is there to be acknowledged.
    wanted: Arc<Notify>,
}

impl Handed {
    pub(crate) fn new(wanted: Arc<Notify>) -> Self {
        Self {
            link: AtomicU64::new(0),
            end: AtomicU64::new(0),
            acknowledged: AtomicU64::new(0),
            moved: Notify::new(),
            wanted,
        }
    }

    /// From this place on, messages are handed to this connection.
    pub(crate) fn begin(&self, link: u64, place: u64) {
        // In this order: who sees the new connection sees no place of the one before.
        self.end.store(place, Ordering::Release);
        self.link.store(link, Ordering::Release);
    }

    /// Messages up to this place have been handed over.
    pub(crate) fn advance(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    /// Asks for an acknowledgement soon.
    pub(crate) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Up to which place the broker has the messages.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Acquire)
    }

    /// Waits until the broker has more of them. It may return too early.
    pub(crate) async fn moved(&self) {
        self.moved.notified().await;
    }

    /// The connection, and up to which place messages were handed to it.
    fn mark(&self) -> (u64, u64) {
        let link = self.link.load(Ordering::Acquire);
        (link, self.end.load(Ordering::Acquire))
    }

    fn acknowledge(&self, end: u64) {
        if self.acknowledged.fetch_max(end, Ordering::AcqRel) < end {
            self.moved.notify_one();
        }
    }

    fn is_behind(&self) -> bool {
        self.end.load(Ordering::Relaxed) > self.acknowledged.load(Ordering::Relaxed)
    }
}

/// A marker that is under way.
struct Marker {
    number: u64,
    /// When it was sent, by the host's clock.
    at: u64,
    /// Of each source: the connection, and the place behind what was handed to it.
    marks: Vec<(u64, u64)>,
}

/// What keeps the pulse.
pub(crate) struct Pulse {
    main: Client,
    second: Client,
    statistics: Arc<Statistics>,
    health: Arc<Health>,
    sources: Vec<Arc<Handed>>,
    wanted: Arc<Notify>,
    every: Duration,
    /// Where markers come in on the second connection, and on the main one.
    out: (String, Subscriber),
    back: (String, Subscriber),
    markers: VecDeque<Marker>,
    sent: u64,
    heard: watch::Sender<u64>,
}

impl Pulse {
    /// Connects a second time, and begins. What comes back says up to when everything
    /// has been heard, by the host's clock.
    ///
    /// # Errors
    /// If what it takes to connect can't be read.
    pub(crate) async fn start(
        nats: &Nats,
        name: &str,
        main: Client,
        health: Arc<Health>,
        sources: Vec<Arc<Handed>>,
        wanted: Arc<Notify>,
        timeout_ms: u64,
    ) -> anyhow::Result<watch::Receiver<u64>> {
        let options = broker::lasting(nats, timeout_ms)
            .await?
            .name(format!("presence {name} pulse"))
            .subscription_capacity(MARKERS_MAX * 4);
        let second = options.connect(nats.url.clone()).await;
        let second = second.context("can't connect to NATS a second time")?;
        let (out, back) = (second.new_inbox(), main.new_inbox());
        let (heard, hearing) = watch::channel(0);
        let pulse = Self {
            out: (out.clone(), second.subscribe(out).await?),
            back: (back.clone(), main.subscribe(back).await?),
            statistics: main.statistics(),
            main,
            second,
            health,
            sources,
            wanted,
            every: Duration::from_millis(broker::pulse_ms(timeout_ms)),
            markers: VecDeque::new(),
            sent: 0,
            heard,
        };
        tokio::spawn(pulse.run());
        Ok(hearing)
    }

    async fn run(mut self) {
        let mut next = Instant::now();
        loop {
            tokio::select! {
                () = sleep_until(next) => {
                    self.health.tell_silence();
                    self.send().await;
                    let is_behind = self.sources.iter().any(|source| source.is_behind());
                    let wait = if is_behind { QUICK.min(self.every) } else { self.every };
                    next = Instant::now() + wait;
                }
                () = self.wanted.notified() => next = next.min(Instant::now() + QUICK),
                Some(marker) = self.out.1.next() => self.came_out(&marker).await,
                Some(marker) = self.back.1.next() => self.came_back(&marker),
                // The clients are gone: the node ends.
                else => return,
            }
        }
    }

    /// Sends a marker, unless nobody would get it.
    async fn send(&mut self) {
        let are_connected = [&self.main, &self.second]
            .iter()
            .all(|client| client.connection_state() == State::Connected);
        if !are_connected {
            return;
        }
        self.sent += 1;
        if self.markers.len() == MARKERS_MAX {
            self.markers.pop_front();
        }
        let marks = self.sources.iter().map(|source| source.mark());
        self.markers.push_back(Marker {
            number: self.sent,
            at: clock::now_ms(),
            marks: marks.collect(),
        });
        let (subject, body) = (self.out.0.clone(), self.sent.to_string());
        // Where there is no room in time, the connection hangs: the next one may get out.
        let sent = self.main.publish(subject, body.into());
        let _ = timeout(self.every, sent).await;
    }

    /// A marker went out to the broker: so did all before it.
    async fn came_out(&mut self, received: &Message) {
        let Some(marker) = number(received).and_then(|number| self.find(number)) else {
            return;
        };
        let link = self.statistics.connects.load(Ordering::Acquire);
        for (source, (handed_to, end)) in self.sources.iter().zip(&marker.marks) {
            // Else the marker may have gone over a later connection than they did.
            if *handed_to == link {
                source.acknowledge(*end);
            }
        }
        let (subject, body) = (self.back.0.clone(), received.payload.clone());
        let _ = timeout(self.every, self.second.publish(subject, body)).await;
    }

    /// A marker came back from the broker: so did all that it had before.
    fn came_back(&mut self, received: &Message) {
        self.health.count_elsewhere();
        let Some(number) = number(received) else {
            return;
        };
        let Some(marker) = self.find(number) else {
            return;
        };
        let at = marker.at;
        self.markers.retain(|marker| marker.number > number);
        self.health.heard();
        self.heard.send_replace(at);
    }

    fn find(&self, number: u64) -> Option<&Marker> {
        self.markers.iter().find(|marker| marker.number == number)
    }
}

fn number(received: &Message) -> Option<u64> {
    std::str::from_utf8(&received.payload).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_to_a_new_connection_is_marked_from_its_beginning() {
        let handed = Handed::new(Arc::default());
        handed.begin(1, 0);
        handed.advance(7);
        assert_eq!((handed.mark(), handed.is_behind()), ((1, 7), true));
        handed.acknowledge(5);
        handed.acknowledge(3);
        assert_eq!(handed.acknowledged(), 5);
        handed.begin(2, 5);
        assert_eq!((handed.mark(), handed.is_behind()), ((2, 5), false));
    }
}
