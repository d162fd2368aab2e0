//! Gateways, each with a connection of its own, and users who come and go on them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::{ConnectOptions, RequestErrorKind, ServerAddr};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use presence_core::fleet::hash;
use presence_tests::client::{Client, now_ms};
use presence_tests::cluster::{Cluster, SERVERS};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::people::{Random, USERS, user_id};
use super::trace::{Fact, Trace};
use crate::inputs::{self, CONNECT, DISCONNECT, HEARTBEAT};

/// How many shards there are, as in `partition.conf`.
const SHARDS: u32 = 64;

pub(super) const HEARTBEAT_MS: u64 = 500;

/// Users up to here stay connected from the beginning to the end; of them, up to the first number,
/// a further connection comes and goes.
const STAY_AND_MOVE: usize = 8;
const STAY: usize = 24;
/// Users from there up to here come and go. The others fall silent and come back.
const MOVE: usize = 46;

/// A client that changes to another server when its own is gone, and soon notices when its server
/// doesn't answer.
pub(super) fn options(name: &str) -> ConnectOptions {
    ConnectOptions::new()
        .name(name)
        .ping_interval(Duration::from_millis(500))
        .request_timeout(Some(Duration::from_secs(5)))
        .connection_timeout(Duration::from_secs(2))
        .reconnect_delay_callback(|attempts| {
            Duration::from_millis(if attempts > 3 { 50 } else { 5 })
        })
        .retain_servers_order()
        .subscription_capacity(1 << 20)
}

/// Connects to one of these servers.
pub(super) async fn connect(options: ConnectOptions, urls: &[String]) -> Result<Client> {
    let addresses = urls.iter().map(|url| url.parse::<ServerAddr>());
    let addresses = addresses.collect::<Result<Vec<_>, _>>()?;
    let nats = options.connect(addresses).await;
    let nats = nats.with_context(|| format!("connecting to one of {urls:?}"))?;
    Ok(Client { nats })
}

/// What the users do at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// They come and go.
    Busy,
    /// Nobody comes or goes; those who are there go on with heartbeats.
    Calm,
    Ended,
}

/// The gateways, until this is dropped.
#[derive(Debug)]
pub(super) struct Load {
    phase: watch::Sender<Phase>,
    gateways: Vec<JoinHandle<Result<()>>>,
}

impl Load {
    /// Starts one gateway on each server. If `partitions`, the brokers partition users by their
    /// subjects, and gateways write every other user into the subject.
    pub(super) async fn start(
        cluster: &Cluster,
        trace: &Arc<Trace>,
        partitions: bool,
        seed: u64,
    ) -> Result<Self> {
        let phase = watch::Sender::new(Phase::Busy);
        let mut gateways = Vec::new();
        for number in 0..SERVERS {
            let options = options(&format!("gateway-{number}"));
            let gateway = Gateway {
                client: connect(options, &cluster.urls(number)).await?,
                persons: persons(number),
                crowd: crowd(number),
                crowd_at: 0,
                partitions,
                random: Random(seed ^ (number as u64) << 32),
                last_conn: number as u64 * 1_000_000,
                trace: Arc::clone(trace),
                phase: phase.subscribe(),
            };
            gateways.push(tokio::spawn(gateway.run()));
        }
        Ok(Self { phase, gateways })
    }

    /// From here on nobody comes or goes.
    pub(super) fn calm(&self) {
        self.phase.send_replace(Phase::Calm);
    }

    /// Ends all gateways, and says what was wrong with any.
    pub(super) async fn end(&mut self) -> Result<()> {
        self.phase.send_replace(Phase::Ended);
        for gateway in self.gateways.drain(..) {
            gateway.await??;
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.phase.send_replace(Phase::Ended);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    Stays,
    ComesAndGoes,
    FallsSilent,
}

/// A user on a gateway, with at most one connection there.
#[derive(Debug)]
struct Person {
    user: usize,
    habit: Habit,
    opens_at: u64,
    conn: Option<Conn>,
}

#[derive(Clone, Copy, Debug)]
struct Conn {
    number: u64,
    next_heartbeat: u64,
    closes_at: u64,
}

/// Who is on a gateway. A user's further connection is on another one.
fn persons(gateway: usize) -> Vec<Person> {
    let person = |user, habit| Person {
        user,
        habit,
        opens_at: 0,
        conn: None,
    };
    let habit = |user| match user {
        ..STAY => Habit::Stays,
        STAY..MOVE => Habit::ComesAndGoes,
        _ => Habit::FallsSilent,
    };
    let own = (0..USERS).filter(|user| user % SERVERS == gateway);
    let further = (0..STAY_AND_MOVE).filter(|user| (user + 1) % SERVERS == gateway);
    let further = further.map(|user| person(user, Habit::ComesAndGoes));
    own.map(|user| person(user, habit(user)))
        .chain(further)
        .collect()
}

/// The number of crowd users on each gateway, whom no viewer sees, and the interval of their
/// heartbeats. It is so short that the owner of their shard tells its standby of heartbeats.
const CROWD: usize = 8;
const CROWD_MS: u64 = 100;

/// The user whose shard the crowd of a gateway shares. The gateways' three users have different
/// habits.
fn in_crowded_shard(gateway: usize) -> usize {
    [0, STAY, MOVE].get(gateway).copied().unwrap_or_default()
}

/// In how many shards there is a crowd.
pub(super) fn crowded_shards() -> usize {
    let shards = (0..SERVERS).map(|gateway| shard_of(&user_id(in_crowded_shard(gateway))));
    shards.collect::<BTreeSet<_>>().len()
}

fn crowd(gateway: usize) -> Vec<String> {
    let shard = shard_of(&user_id(in_crowded_shard(gateway)));
    let ids = (0..).map(|number| format!("crowd-{gateway}-{number}"));
    ids.filter(|id| shard_of(id) == shard).take(CROWD).collect()
}

fn shard_of(user: &str) -> u32 {
    hash::shard_of(user, SHARDS)
}

#[derive(Debug)]
struct Gateway {
    client: Client,
    persons: Vec<Person>,
    /// The crowd users, and the time of their next heartbeats. Only in a fleet, they are heard, so
    /// that standbys are told of heartbeats.
    crowd: Vec<String>,
    crowd_at: u64,
    partitions: bool,
    random: Random,
    last_conn: u64,
    trace: Arc<Trace>,
    phase: watch::Receiver<Phase>,
}

/// A message to send, and the facts to note before it is sent and after it has arrived.
struct Message {
    user: usize,
    subject: &'static str,
    body: Value,
    before: Option<Fact>,
    after: Fact,
}

impl Gateway {
    async fn run(mut self) -> Result<()> {
        let now = self.trace.now();
        for person in &mut self.persons {
            person.opens_at = now + self.random.within(0, 800);
        }
        loop {
            let phase = *self.phase.borrow();
            if phase == Phase::Ended {
                return Ok(());
            }
            self.hear_crowd().await?;
            let mut arrived = Vec::new();
            for number in 0..self.persons.len() {
                let Some(message) = self.act(number, phase == Phase::Calm) else {
                    continue;
                };
                self.trace.note_all(message.before);
                let partitioned = self.partitions && !message.user.is_multiple_of(2);
                let subject = match partitioned {
                    true => format!("{}.{}", message.subject, user_id(message.user)),
                    false => message.subject.to_owned(),
                };
                self.client.publish(&subject, &message.body).await?;
                arrived.push(message.after);
            }
            if !arrived.is_empty() {
                self.arrives().await;
                self.trace.note_all(arrived);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn hear_crowd(&mut self) -> Result<()> {
        let now = self.trace.now();
        if self.partitions && now >= self.crowd_at {
            self.crowd_at = now + CROWD_MS;
            for id in &self.crowd {
                let heartbeat = heartbeat(id, "c1");
                self.client.publish(HEARTBEAT, &heartbeat).await?;
            }
        }
        Ok(())
    }

    /// What a person sends now. `None`: nothing.
    fn act(&mut self, number: usize, is_calm: bool) -> Option<Message> {
        let now = self.trace.now();
        let random = &mut self.random;
        let person = self.persons.get_mut(number)?;
        let user = person.user;
        let id = user_id(user);
        let Some(conn) = &mut person.conn else {
            if is_calm || now < person.opens_at {
                return None;
            }
            self.last_conn += 1;
            let conn = self.last_conn;
            let stays_ms = match person.habit {
                Habit::Stays => u64::MAX / 2,
                Habit::ComesAndGoes => random.within(300, 6_000),
                Habit::FallsSilent => random.within(800, 5_000),
            };
            person.conn = Some(Conn {
                number: conn,
                next_heartbeat: now + random.within(100, HEARTBEAT_MS),
                closes_at: now + stays_ms,
            });
            return Some(Message {
                user,
                subject: CONNECT,
                body: inputs::connect(&id, &conn_id(conn), now_ms()),
                before: Some(Fact::Opens { user, conn }),
                after: Fact::Spoke { user, conn },
            });
        };
        let (conn_number, is_over) = (conn.number, now >= conn.closes_at && !is_calm);
        let (user, conn_id) = (person.user, conn_id(conn_number));
        if !is_over {
            if now < conn.next_heartbeat {
                return None;
            }
            conn.next_heartbeat = now + HEARTBEAT_MS;
            return Some(Message {
                user,
                subject: HEARTBEAT,
                body: heartbeat(&id, &conn_id),
                before: None,
                after: Fact::Spoke {
                    user,
                    conn: conn_number,
                },
            });
        }
        person.conn = None;
        // May be shorter or longer than a timeout.
        person.opens_at = now + random.within(300, 9_000);
        let conn = conn_number;
        let (closes, closed) = (Fact::Closes { user, conn }, Fact::Closed { user, conn });
        if person.habit == Habit::FallsSilent {
            self.trace.note_all([closes, closed]);
            return None;
        }
        Some(Message {
            user,
            subject: DISCONNECT,
            body: inputs::disconnect(&id, &conn_id, now_ms(), "client_disconnect"),
            before: Some(closes),
            after: closed,
        })
    }

    /// Waits until a broker has all that was sent, or until the load ends.
    async fn arrives(&self) {
        const AGAIN: Duration = Duration::from_millis(500);
        // Nobody listens on this subject. The server says so after it has handled all that came
        // before. A request on a connection that broke gets no answer, so it is sent again.
        let mut asked = FuturesUnordered::new();
        while *self.phase.borrow() != Phase::Ended {
            let nobody = self.client.nats.request("presence-tests.nobody", "".into());
            asked.push(nobody);
            let answered = async {
                while let Some(answer) = asked.next().await {
                    let error = answer.err().map(|error| error.kind());
                    if error.is_none_or(|kind| kind == RequestErrorKind::NoResponders) {
                        return true;
                    }
                }
                false
            };
            if tokio::time::timeout(AGAIN, answered).await.unwrap_or(false) {
                return;
            }
        }
    }
}

/// It has the same metadata as the connect, so that a node that has missed the connect decides the
/// same.
fn heartbeat(user: &str, conn: &str) -> Value {
    json!({
        "userId": user,
        "connId": conn,
        "timestamp": now_ms(),
        "metadata": {"device": "web"},
    })
}

fn conn_id(conn: u64) -> String {
    format!("conn-{conn}")
}
