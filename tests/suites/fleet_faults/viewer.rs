//! A client that shows viewers who is online. It follows the rule in `docs/use/clients.md`, with
//! the reference implementation in Rust.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use async_nats::{Event, Message, Subscriber};
use futures_util::{FutureExt, StreamExt};
use presence_core::fleet::sources::{SequenceCheck, Sources};
use presence_core::publish::Subject;
use presence_tests::client::Client;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::load;
use super::people::{Random, USERS, user_id, user_of, viewer_id, viewer_of};
use super::trace::{Fact, Trace};

/// The subjects that it reads: those that exist without statuses.
const SUBJECTS: [Subject; 2] = [Subject::FilteredOnline, Subject::FilteredOffline];

/// The first and the longest timeout of an answer.
const ANSWER: Duration = Duration::from_millis(700);
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// The client, until this is dropped.
#[derive(Debug)]
pub(super) struct Viewer(JoinHandle<()>);

impl Drop for Viewer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Viewer {
    /// Starts a client of some viewers.
    pub(super) async fn start(
        client: usize,
        viewers: Vec<usize>,
        urls: &[String],
        trace: &Arc<Trace>,
    ) -> Result<Self> {
        let (lost, connected) = mpsc::unbounded_channel();
        let options = load::options(&format!("viewer-{client}")).event_callback(move |event| {
            if event == Event::Connected {
                let _ = lost.send(());
            }
            std::future::ready(())
        });
        let nats = load::connect(options, urls).await?;
        let mut task = Task {
            filtered: nats.nats.subscribe("presence.filtered.*").await?,
            beacons: nats.nats.subscribe("presence.beacon").await?,
            inbox: nats.nats.new_inbox(),
            answers: nats.nats.subscribe("_INBOX.none").await?,
            nats,
            connected,
            has_connected: false,
            client,
            viewers,
            trace: Arc::clone(trace),
            sources: Sources::default(),
            numbers: BTreeMap::new(),
            view: BTreeSet::new(),
            round: None,
            asks_at: None,
            pause: ANSWER,
            rounds: 0,
            random: Random(client as u64),
        };
        task.answers = task
            .nats
            .nats
            .subscribe(format!("{}.*", task.inbox))
            .await?;
        task.nats.round_trip().await?;
        Ok(Self(tokio::spawn(task.run())))
    }
}

#[derive(Debug)]
struct Task {
    nats: Client,
    filtered: Subscriber,
    beacons: Subscriber,
    answers: Subscriber,
    inbox: String,
    /// Gets an item each time that the client has connected.
    connected: mpsc::UnboundedReceiver<()>,
    has_connected: bool,
    client: usize,
    viewers: Vec<usize>,
    trace: Arc<Trace>,
    sources: Sources,
    /// A number for each source's name.
    numbers: BTreeMap<String, u32>,
    /// Which viewer sees whom.
    view: BTreeSet<(usize, usize)>,
    round: Option<Round>,
    /// When to ask, if there is something to ask.
    asks_at: Option<Instant>,
    pause: Duration,
    rounds: u64,
    random: Random,
}

/// Questions under way: one for each viewer.
#[derive(Debug)]
struct Round {
    number: u64,
    waits_for: BTreeSet<usize>,
    until: Instant,
    /// The users about whom an event came since the round began. The event holds, whatever the
    /// answer says.
    updated_during: BTreeSet<(usize, usize)>,
}

impl Task {
    async fn run(mut self) {
        loop {
            let wakes_at = match &self.round {
                Some(round) => Some(round.until),
                None => self.asks_at,
            };
            let wakes_at = wakes_at.unwrap_or_else(|| Instant::now() + Duration::from_secs(60));
            // Messages are read before beacons: a beacon counts messages that were published before
            // it.
            tokio::select! {
                biased;
                Some(()) = self.connected.recv() => self.on_connected(),
                Some(message) = self.filtered.next() => self.on_message(&message),
                Some(beacon) = self.beacons.next() => {
                    while let Some(Some(message)) = self.filtered.next().now_or_never() {
                        self.on_message(&message);
                    }
                    self.on_beacon(&beacon);
                }
                Some(answer) = self.answers.next() => self.take_answer(&answer),
                () = tokio::time::sleep_until(wakes_at.into()) => self.on_timer().await,
                else => return,
            }
        }
    }

    fn on_connected(&mut self) {
        // Before the first connection, nothing was lost.
        if std::mem::replace(&mut self.has_connected, true) {
            self.trace.note(Fact::Missed {
                client: self.client,
            });
            self.schedule_query();
        }
    }

    /// Plans a question: soon, at a random time, so that clients don't all ask at once.
    fn schedule_query(&mut self) {
        let wait = Duration::from_millis(self.random.within(0, 500));
        self.asks_at.get_or_insert(Instant::now() + wait);
    }

    fn number(&mut self, source: &str) -> u32 {
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        *self.numbers.entry(source.to_owned()).or_insert(next)
    }

    fn on_message(&mut self, message: &Message) {
        if let Some(check) = self.record_message(message)
            && check != SequenceCheck::Next
            && check != SequenceCheck::Old
        {
            self.schedule_query();
        }
    }

    /// Handles a message. `None` if it isn't a host's message about one of the users.
    fn record_message(&mut self, message: &Message) -> Option<SequenceCheck> {
        let sequence = message.headers.as_ref()?.get("Presence-Seq")?.as_str();
        let mut words = sequence.split(' ');
        let (source, epoch, seq) = (words.next()?, words.next()?, words.next()?);
        let (epoch, seq) = (epoch.parse().ok()?, seq.parse().ok()?);
        let subject = SUBJECTS
            .into_iter()
            .find(|it| it.as_str() == message.subject.as_str())?;
        let online = subject == Subject::FilteredOnline;
        let body: Value = serde_json::from_slice(&message.payload).ok()?;
        let user = user_of(body.get("userId")?.as_str()?)?;
        let viewers = body.get("visibleTo")?.as_array()?.iter();
        let viewers = viewers.filter_map(|viewer| viewer_of(viewer.as_str()?));
        let viewers: Vec<_> = viewers.collect();
        self.trace.note(Fact::Received {
            client: self.client,
            source: source.to_owned(),
            epoch,
            seq,
            online,
            user,
            viewers: viewers.clone(),
        });
        let source = self.number(source);
        let check = self.sources.check(source, epoch, subject, seq);
        if check != SequenceCheck::Old {
            let own: Vec<_> = viewers
                .into_iter()
                .filter(|viewer| self.viewers.contains(viewer))
                .collect();
            for viewer in own {
                if let Some(round) = &mut self.round {
                    round.updated_during.insert((viewer, user));
                }
                self.set(viewer, user, online, "event");
            }
        }
        Some(check)
    }

    fn on_beacon(&mut self, message: &Message) {
        let beacon: Value = serde_json::from_slice(&message.payload).unwrap_or_default();
        let source = beacon.get("source").and_then(Value::as_str);
        let epoch = beacon.get("epoch").and_then(Value::as_u64);
        let seqs = beacon.get("seqs").and_then(Value::as_object);
        let (Some(source), Some(epoch), Some(seqs)) = (source, epoch, seqs) else {
            return;
        };
        let seq = |it: Subject| Some((it, seqs.get(it.as_str())?.as_u64()?));
        self.trace.note(Fact::Beacon {
            client: self.client,
            source: source.to_owned(),
            epoch,
            seqs: SUBJECTS.map(|it| seq(it).map_or(0, |(_, seq)| seq)),
        });
        let seqs = SUBJECTS.into_iter().filter_map(seq);
        let source = self.number(source);
        let check = self.sources.check_beacon(source, epoch, seqs);
        if matches!(check, SequenceCheck::New | SequenceCheck::Gap) {
            self.schedule_query();
        }
    }

    fn set(&mut self, viewer: usize, user: usize, online: bool, why: &'static str) {
        let changed = match online {
            true => self.view.insert((viewer, user)),
            false => self.view.remove(&(viewer, user)),
        };
        if changed {
            self.trace.note(Fact::ViewChanged {
                viewer,
                user,
                online,
                why,
            });
        }
    }

    /// Asks what is planned, or repeats questions that were not answered.
    async fn on_timer(&mut self) {
        let now = Instant::now();
        if let Some(round) = &self.round
            && round.until <= now
        {
            self.round = None;
            self.asks_at = Some(now);
            self.pause = (self.pause * 2).min(ANSWER_MAX);
        }
        if self.round.is_some() || self.asks_at.is_none_or(|at| at > now) {
            return;
        }
        self.asks_at = None;
        self.rounds += 1;
        self.round = Some(Round {
            number: self.rounds,
            waits_for: self.viewers.iter().copied().collect(),
            until: now + self.pause,
            updated_during: BTreeSet::new(),
        });
        let reply = format!("{}.{}", self.inbox, self.rounds);
        for viewer in &self.viewers {
            let body = question(*viewer).into();
            let asked = self
                .nats
                .nats
                .publish_with_reply("presence.query", reply.clone(), body);
            // If the connection is closed for good, there is nothing to hear either.
            let _ = asked.await;
        }
    }

    fn take_answer(&mut self, message: &Message) {
        let Some(round) = &mut self.round else {
            return;
        };
        let is_of_round = message.subject.ends_with(&format!(".{}", round.number));
        let Some((viewer, users)) = answered(&message.payload).filter(|_| is_of_round) else {
            // Not an answer, or an answer to an earlier round.
            return;
        };
        if !round.waits_for.remove(&viewer) {
            return;
        }
        let updated_during = round.updated_during.clone();
        if round.waits_for.is_empty() {
            self.round = None;
            self.pause = ANSWER;
        }
        for (user, online) in users {
            if !updated_during.contains(&(viewer, user)) {
                self.set(viewer, user, online, "answer");
            }
        }
    }
}

/// The question for what a viewer may see of all users.
pub(super) fn question(viewer: usize) -> String {
    let users: Vec<_> = (0..USERS).map(user_id).collect();
    json!({"viewerId": viewer_id(viewer), "userIds": users}).to_string()
}

/// The viewer of an answer, and who is online to the viewer. `None` if it isn't an answer.
pub(super) fn answered(payload: &[u8]) -> Option<(usize, Vec<(usize, bool)>)> {
    let answer: Value = serde_json::from_slice(payload).ok()?;
    let viewer = viewer_of(answer.get("viewerId")?.as_str()?)?;
    let users = answer.get("users")?.as_array()?.iter();
    let users = users.map(|user| {
        let online = user.get("status")? == "online";
        Some((user_of(user.get("userId")?.as_str()?)?, online))
    });
    Some((viewer, users.collect::<Option<_>>()?))
}

/// Asks as a client that knows nothing yet. Returns the answer for each viewer.
pub(super) async fn ask_anew(
    client: &Client,
    viewers: impl Iterator<Item = usize>,
) -> Result<Vec<(usize, Vec<(usize, bool)>)>> {
    let mut answers = Vec::new();
    for viewer in viewers {
        let answer = presence_tests::wait::until("a query to be answered", async || {
            let asked = client
                .nats
                .request("presence.query", question(viewer).into());
            Ok(asked
                .await
                .ok()
                .and_then(|answer| answered(&answer.payload)))
        });
        answers.push(answer.await.context("a fresh client")?);
    }
    Ok(answers)
}
