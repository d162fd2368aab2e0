//! The pulse: finds out which messages the broker has, and up to which time everything from the
//! broker has been received.
//!
//! A NATS client doesn't say when the broker has answered its PING. So the node has a second
//! connection for this purpose alone. The node sends a marker on the main connection. It follows
//! all messages that were handed to that connection, so when it arrives on the second connection,
//! the broker has them all. The marker is sent back on the second connection. When it arrives on
//! the main connection, the node has received everything that the broker had sent by then.
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
use crate::link::drops::{SubscriptionKind, WatchedSubscriber};
use crate::link::progress::Sources;
use crate::tasks::Tasks;

/// The shortest time between two markers, while a message isn't acknowledged.
const QUICK: Duration = Duration::from_millis(10);

/// How many markers may be in flight. When there are more, the oldest counts as lost.
const MARKERS_MAX: usize = 256;

/// After this long without a marker on it, the second connection isn't relied on.
const SILENT: Duration = Duration::from_secs(1);

/// After this long without a marker, the second connection is made anew although it seems up. It is
/// made anew at most this often.
const RENEW_AFTER: Duration = Duration::from_secs(3);

/// A marker in flight.
struct Marker {
    number: u64,
    /// When it was sent, by the host's clock.
    at: u64,
    /// For each source: the connection, and the place behind the last message handed to it.
    marks: Vec<(u64, u64)>,
}

/// The task that sends and receives markers.
pub(crate) struct Pulse {
    main: Client,
    second: SecondConnection,
    statistics: Arc<Statistics>,
    health: Arc<BrokerHealth>,
    sources: Sources,
    /// Where markers come in on the main connection: the prefix of the subjects, to which one token
    /// is added, and their subscription.
    replies: (String, WatchedSubscriber),
    /// A subject without subscribers.
    unused_subject: String,
    markers: VecDeque<Marker>,
    sent: u64,
    /// When a marker last came in on the main connection.
    answered: Instant,
    received_up_to: watch::Sender<u64>,
}

/// The second connection.
struct SecondConnection {
    client: Client,
    /// The subject and the subscription for markers on this connection.
    probes: (String, Subscriber),
    /// When a marker last came in on it.
    last_marker_at: Instant,
    /// When it was last made anew although it seemed up.
    renewed: Instant,
}

impl Pulse {
    /// Makes the second connection, and starts the pulse. Returns the time up to which everything
    /// has been received, by the host's clock.
    ///
    /// # Errors
    /// If a file that the connection needs can't be read, or the main connection is closed.
    pub(crate) async fn start(
        access: &BrokerAccess,
        main: &Connection,
        health: Arc<BrokerHealth>,
        sources: Sources,
        tasks: &Tasks,
    ) -> anyhow::Result<watch::Receiver<u64>> {
        let main = main.client().clone();
        let reply_prefix = main.new_inbox();
        let markers = main.subscribe(format!("{reply_prefix}.*")).await?;
        let markers = health
            .drops
            .watch(markers, SubscriptionKind::Markers, &reply_prefix);
        let (received_up_to, received) = watch::channel(0);
        let pulse = Self {
            second: SecondConnection::connect(access).await?,
            replies: (reply_prefix, markers),
            unused_subject: main.new_inbox(),
            statistics: main.statistics(),
            main,
            health,
            sources,
            markers: VecDeque::new(),
            sent: 0,
            answered: Instant::now(),
            received_up_to,
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
                    self.check_second().await;
                    self.send().await;
                    let every = self.sources.poll_interval();
                    let wait = if self.sources.are_behind() { QUICK.min(every) } else { every };
                    next = Instant::now() + wait;
                }
                () = self.sources.ack_requested() => next = next.min(Instant::now() + QUICK),
                Some(marker) = self.second.probes.1.next() => self.on_probe(&marker).await,
                Some(marker) = self.replies.1.next() => self.on_reply(&marker),
                // Both clients are gone: the node ends.
                else => return,
            }
        }
    }

    /// Sends a marker, if the main connection is up.
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
        self.send_to(self.second.probes.0.clone()).await;
        if self.second.is_silent() {
            self.send_to(self.unused_subject.clone()).await;
        }
    }

    /// Sends the last marker to a subject.
    async fn send_to(&self, subject: String) {
        let (prefix, body) = (&self.replies.0, self.sent.to_string());
        let reply = format!("{prefix}.{body}");
        let sent = self.main.publish_with_reply(subject, reply, body.into());
        // If there is no room within the interval, the connection hangs. A later marker may get
        // out.
        let _ = timeout(self.sources.poll_interval(), sent).await;
    }

    /// A marker has come in on the second connection: the broker has everything that was sent
    /// before it.
    async fn on_probe(&mut self, received: &Message) {
        self.second.last_marker_at = Instant::now();
        self.health.mark_pulse_back();
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

    /// A marker has come back on the main connection: everything that the broker had sent before it
    /// has been received.
    fn on_reply(&mut self, received: &Message) {
        self.health.count_elsewhere();
        let token = received.subject.rsplit('.').next().unwrap_or_default();
        let Some(number) = number(token.as_bytes()) else {
            return;
        };
        let Some(marker) = self.find(number) else {
            return;
        };
        // The broker itself has answered, because the marker's subject has no subscriber. So
        // `on_probe` hasn't seen this marker.
        if received.status == Some(StatusCode::NO_RESPONDERS) {
            self.acknowledge(marker);
        }
        let at = marker.at;
        self.markers.retain(|marker| marker.number > number);
        self.answered = Instant::now();
        self.health.note_heard(at);
        // Every shard is told of a new time, so a busy node doesn't announce each marker.
        if at >= *self.received_up_to.borrow() + self.sources.poll_interval_ms() / 2 {
            self.received_up_to.send_replace(at);
        }
    }

    /// Notes that the broker has all messages that were handed over before a marker, if they went
    /// to the current connection. The marker may have gone over a later connection than they did.
    fn acknowledge(&self, marker: &Marker) {
        let link = self.statistics.connects.load(Ordering::Acquire);
        self.sources.acknowledge(&marker.marks, link);
    }

    /// Logs it, and makes the second connection anew, if markers arrive only on the main connection
    /// although the second one seems up.
    async fn check_second(&mut self) {
        if self.answered.elapsed() > SILENT || self.second.last_marker_at.elapsed() < RENEW_AFTER {
            return;
        }
        self.health.mark_pulse_lost();
        self.second.renew().await;
    }

    fn find(&self, number: u64) -> Option<&Marker> {
        self.markers.iter().find(|marker| marker.number == number)
    }
}

impl SecondConnection {
    async fn connect(access: &BrokerAccess) -> anyhow::Result<Self> {
        let options = access
            .lasting(" pulse")?
            .subscription_capacity(MARKERS_MAX * 4);
        let client = access.connect(options).await?;
        let subject = client.new_inbox();
        Ok(Self {
            probes: (subject.clone(), client.subscribe(subject).await?),
            client,
            last_marker_at: Instant::now(),
            renewed: Instant::now(),
        })
    }

    /// Whether no marker has come in on it for some time, or it is down.
    fn is_silent(&self) -> bool {
        !self.is_connected() || self.last_marker_at.elapsed() > SILENT
    }

    /// Makes it anew, unless it is down, or this was done a moment ago.
    async fn renew(&mut self) {
        if self.is_connected() && self.renewed.elapsed() > RENEW_AFTER {
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
