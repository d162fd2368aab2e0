//! The pulse: what the broker is known to have, and up to when it has been heard.
//!
//! A client of NATS doesn't say when the broker has answered its PING. So the node has
//! a second connection, for this alone. A marker goes out on the main connection, behind
//! all that has been handed to it; when it comes in on the second one, the broker has
//! all of that. It is sent back on the second connection, and when it comes in on the
//! main one, all has been heard that the broker had by then.
//!
//! The node doesn't depend on the second connection. A marker is a request: if there is no
//! subscriber, the broker answers at once with "no responders" on the main connection, which proves
//! the same. So while the second connection is down or silent, markers also go to a subject without
//! subscribers. (If some client subscribes to `>`, there is no such subject, and only the second
//! connection helps.)
//!
//! This never overestimates what the broker has: a marker that arrives on a connection that was made
//! after it was sent proves nothing about messages on the connection before.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Client, Message, Statistics, StatusCode, Subscriber};
use futures_util::StreamExt;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use crate::clock;
use crate::link::broker::{BrokerAccess, BrokerHealth};
use crate::link::connection::Connection;
use crate::link::drops::SubscriptionKind;
use crate::link::progress::Sources;
use crate::tasks::Tasks;

/// How soon the broker is asked, at the earliest, where something isn't acknowledged.
const QUICK: Duration = Duration::from_millis(10);

/// How many markers may be under way. Of more, the oldest counts as lost.
const MARKERS_MAX: usize = 256;

/// From when on, without a marker on it, the second connection isn't relied on.
const SILENT: Duration = Duration::from_secs(1);

/// From when on it is made anew, though it seems to stand, and how often at most.
const DEAF: Duration = Duration::from_secs(3);

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
    second: Second,
    statistics: Arc<Statistics>,
    health: Arc<BrokerHealth>,
    sources: Sources,
    /// Where markers come in on the main connection: one token below this.
    back: (String, Subscriber),
    /// Where nobody listens.
    nobody: String,
    markers: VecDeque<Marker>,
    sent: u64,
    /// When a marker came in on the main connection last.
    answered: Instant,
    heard: watch::Sender<u64>,
}

/// The second connection.
struct Second {
    client: Client,
    /// Where markers come in on it.
    out: (String, Subscriber),
    /// When one came in last.
    heard: Instant,
    /// When it was last made anew, though it seemed to stand.
    renewed: Instant,
}

impl Pulse {
    /// Connects a second time, and begins. Returns the time up to which everything
    /// has been received, by the host's clock.
    ///
    /// # Errors
    /// If what it takes to connect can't be read.
    pub(crate) async fn start(
        access: &BrokerAccess,
        main: &Connection,
        health: Arc<BrokerHealth>,
        sources: Sources,
        tasks: &Tasks,
    ) -> anyhow::Result<watch::Receiver<u64>> {
        let main = main.client().clone();
        let back = main.new_inbox();
        let markers = main.subscribe(format!("{back}.*")).await?;
        health
            .drops
            .watch(&markers, SubscriptionKind::Markers, &back);
        let (heard, received) = watch::channel(0);
        let pulse = Self {
            second: Second::connect(access).await?,
            back: (back, markers),
            nobody: main.new_inbox(),
            statistics: main.statistics(),
            main,
            health,
            sources,
            markers: VecDeque::new(),
            sent: 0,
            answered: Instant::now(),
            heard,
        };
        tasks.spawn("pulse", pulse.run());
        Ok(received)
    }

    async fn run(mut self) {
        let mut next = Instant::now();
        loop {
            tokio::select! {
                () = sleep_until(next) => {
                    self.health.log_silence();
                    self.look_at_second().await;
                    self.send().await;
                    let every = self.sources.poll_interval();
                    let wait = if self.sources.are_behind() { QUICK.min(every) } else { every };
                    next = Instant::now() + wait;
                }
                () = self.sources.wanted() => next = next.min(Instant::now() + QUICK),
                Some(marker) = self.second.out.1.next() => self.came_out(&marker).await,
                Some(marker) = self.back.1.next() => self.came_back(&marker),
                // The clients are gone: the node ends.
                else => return,
            }
        }
    }

    /// Sends a marker, unless nobody would get it.
    async fn send(&mut self) {
        if self.main.connection_state() != State::Connected {
            return;
        }
        self.sent += 1;
        if self.markers.len() == MARKERS_MAX {
            self.markers.pop_front();
        }
        self.markers.push_back(Marker {
            number: self.sent,
            at: clock::now_ms(),
            marks: self.sources.marks(),
        });
        self.send_to(self.second.out.0.clone()).await;
        if self.second.is_silent() {
            self.send_to(self.nobody.clone()).await;
        }
    }

    /// Sends the last marker to a subject.
    async fn send_to(&self, subject: String) {
        let (back, body) = (&self.back.0, self.sent.to_string());
        let reply = format!("{back}.{body}");
        let sent = self.main.publish_with_reply(subject, reply, body.into());
        // Where there is no room in time, the connection hangs: the next one may get out.
        let _ = timeout(self.sources.poll_interval(), sent).await;
    }

    /// A marker went out to the broker: so did all before it.
    async fn came_out(&mut self, received: &Message) {
        self.second.heard = Instant::now();
        self.health.pulse_is_back();
        let body = &received.payload;
        let Some(marker) = number(body).and_then(|number| self.find(number)) else {
            return;
        };
        self.acknowledge(marker);
        if let Some(reply) = received.reply.clone() {
            let sent = self.second.client.publish(reply, body.clone());
            let _ = timeout(self.sources.poll_interval(), sent).await;
        }
    }

    /// A marker came back from the broker: so did all that it had before.
    fn came_back(&mut self, received: &Message) {
        self.health.count_elsewhere();
        let token = received.subject.rsplit('.').next().unwrap_or_default();
        let Some(number) = number(token.as_bytes()) else {
            return;
        };
        let Some(marker) = self.find(number) else {
            return;
        };
        // From the broker itself: it didn't go out on the second connection before.
        if received.status == Some(StatusCode::NO_RESPONDERS) {
            self.acknowledge(marker);
        }
        let at = marker.at;
        self.markers.retain(|marker| marker.number > number);
        self.answered = Instant::now();
        self.health.heard(at);
        // Each shard takes note of it: that isn't done for every marker of a node that is busy.
        if at >= *self.heard.borrow() + self.sources.poll_interval_ms() / 2 {
            self.heard.send_replace(at);
        }
    }

    /// The broker has all that was handed over before a marker, unless it was to an
    /// earlier connection than the marker may have gone over.
    fn acknowledge(&self, marker: &Marker) {
        let link = self.statistics.connects.load(Ordering::Acquire);
        self.sources.acknowledge(&marker.marks, link);
    }

    /// Makes the second connection anew where it seems to stand, and only the main one is
    /// heard; and has the log know.
    async fn look_at_second(&mut self) {
        if self.answered.elapsed() > SILENT || self.second.heard.elapsed() < DEAF {
            return;
        }
        self.health.pulse_is_away();
        self.second.renew().await;
    }

    fn find(&self, number: u64) -> Option<&Marker> {
        self.markers.iter().find(|marker| marker.number == number)
    }
}

impl Second {
    async fn connect(access: &BrokerAccess) -> anyhow::Result<Self> {
        let options = access
            .lasting(" pulse")?
            .subscription_capacity(MARKERS_MAX * 4);
        let client = access.connect(options).await?;
        let out = client.new_inbox();
        Ok(Self {
            out: (out.clone(), client.subscribe(out).await?),
            client,
            heard: Instant::now(),
            renewed: Instant::now(),
        })
    }

    /// Whether no marker is known to come in on it.
    fn is_silent(&self) -> bool {
        !self.is_connected() || self.heard.elapsed() > SILENT
    }

    /// Makes it anew, unless it is away, or that was tried a moment ago.
    async fn renew(&mut self) {
        if self.is_connected() && self.renewed.elapsed() > DEAF {
            self.renewed = Instant::now();
            // The client is gone only when the node ends.
            let _ = self.client.force_reconnect().await;
        }
    }

    fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
