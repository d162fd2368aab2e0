//! A storm: all connections of a tenant are lost at once, and come back within ten seconds, on a
//! node that also serves a quiet tenant. With a grace, nobody is told of anything; without one, of
//! every change. The queues stay bounded in both cases. The times of the quiet tenant's events are
//! measured.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use presence_tests::client::{Client, Recording, now_ms};
use presence_tests::wait;
use toml::{Table, toml};

use super::entrants::Entrant;
use super::fairness::{plain, until_served};
use super::load::{Population, name};
use super::operating::{OneByOne, resident};
use super::times::Times;
use super::{Args, Broker};

/// How long the connections take to come back.
const BACK: Duration = Duration::from_secs(10);
/// In how many pieces they come back.
const PIECES: usize = 1_000;

/// Where each event of the storming tenant is published once.
const EVENTS: &str = "storm.presence.events";

/// The storming tenant's label on metrics.
const STORM: [&str; 1] = ["tenant=\"storm\""];

/// What one storm did.
pub(crate) struct Row {
    pub(crate) title: &'static str,
    pub(crate) connections: usize,
    /// How long the quiet tenant's events took before it, and during it.
    pub(crate) before: Times,
    pub(crate) during: Times,
    /// How many events of the storming tenant were published.
    pub(crate) events: usize,
    /// How many messages were dropped because a queue was full.
    pub(crate) dropped: f64,
    /// The most bytes that waited for shards, and that waited for the broker.
    pub(crate) waiting: f64,
    pub(crate) unacknowledged: f64,
    /// The node's resident bytes before it, and the most during it.
    pub(crate) resident: [u64; 2],
}

/// Measures a storm with a grace, and one without.
pub(crate) fn measure(broker: &Broker, args: &Args) -> Result<Vec<Row>> {
    let graces = [("with a grace of 30 s", 30_000), ("without a grace", 0)];
    let rows = graces.into_iter().map(|(title, grace_ms)| {
        eprintln!("Measuring a storm {title}");
        one(broker, args.connections, title, grace_ms)
    });
    rows.collect()
}

fn one(broker: &Broker, connections: usize, title: &'static str, grace_ms: i64) -> Result<Row> {
    let population = Population {
        users: 100,
        viewers: 100,
    };
    let mut entrant = Entrant::presence(broker, title, None, &population.directory(), |site| {
        let storm = Population {
            users: connections,
            viewers: 1,
        };
        std::fs::write(site.path().join("storm.json"), storm.directory())?;
        site.with("tenant", vec![toml! { name = "quiet" }, storming(grace_ms)])
    })?;
    entrant.root = "quiet.presence".into();
    until_served(broker, &entrant, 2).with_context(|| entrant.log_tail())?;
    let mut quiet = OneByOne::new(broker, &entrant, population)?;

    let mut stream = plain(broker.server.port())?;
    let all = (0..connections, "c");
    for piece in pieces(all.0.clone(), PIECES) {
        send(&mut stream, "connect", piece, "c")?;
        quiet.run(&mut Times::default(), Duration::from_millis(5))?;
    }
    let are = |count: f64| count == connections as f64;
    let host = entrant.host().context("it is a host")?;
    let connected = host.until_metric("presence_connections", &STORM, are);
    broker.runtime.block_on(connected)?;
    quiet.run(&mut Times::default(), Duration::from_secs(2))?;
    let mut row = Row {
        title,
        connections,
        before: Times::default(),
        during: Times::default(),
        events: 0,
        dropped: 0.0,
        waiting: 0.0,
        unacknowledged: 0.0,
        resident: [resident(entrant.pid())?, 0],
    };
    quiet.run(&mut row.before, Duration::from_secs(5))?;

    let (client, mut tape) = broker.runtime.block_on(listen(broker))?;
    let begin = Instant::now();
    let storm = std::thread::spawn(move || -> Result<TcpStream> {
        send(&mut stream, "disconnect", all.0.clone(), "c")?;
        let begin = Instant::now();
        for (number, piece) in (1_u32..).zip(pieces(all.0.clone(), PIECES)) {
            send(&mut stream, "connect", piece, "d")?;
            let next = BACK * number / u32::try_from(PIECES)?;
            std::thread::sleep(next.saturating_sub(begin.elapsed()));
        }
        // The clients send heartbeats, by which the node adopts connections whose connect was
        // dropped.
        let begin = Instant::now();
        for (number, piece) in (1_u32..).zip(pieces(all.0.clone(), PIECES)) {
            send(&mut stream, "heartbeat", piece, "d")?;
            let next = BACK * number / u32::try_from(PIECES)?;
            std::thread::sleep(next.saturating_sub(begin.elapsed()));
        }
        Ok(stream)
    });
    while !storm.is_finished() || begin.elapsed() < BACK {
        quiet.run(&mut row.during, Duration::from_millis(200))?;
        row.look(broker, &entrant)?;
    }
    let stream = storm.join();
    let _connection = stream.map_err(|_| anyhow::anyhow!("the storm panicked"))??;
    row.end(broker, &entrant, &client, &mut tape)?;
    Ok(row)
}

impl Row {
    /// Raises the maxima to what the node has now.
    fn look(&mut self, broker: &Broker, entrant: &Entrant) -> Result<()> {
        let host = entrant.host().context("it is a host")?;
        let metric = |name: &str| broker.runtime.block_on(host.metric(name, &[]));
        self.waiting = self.waiting.max(metric("presence_input_queue_bytes")?);
        self.unacknowledged = self.unacknowledged.max(metric("presence_journal_bytes")?);
        let [_, most] = &mut self.resident;
        *most = resident(entrant.pid())?.max(*most);
        Ok(())
    }

    /// Waits until everybody is online again, and counts what was published.
    fn end(
        &mut self,
        broker: &Broker,
        entrant: &Entrant,
        client: &Client,
        tape: &mut Recording,
    ) -> Result<()> {
        let host = entrant.host().context("it is a host")?;
        let metric = |name: &str| broker.runtime.block_on(host.metric(name, &STORM));
        let back = wait::until("everybody to be back", async || {
            let online = host.metric("presence_online_users", &STORM).await?;
            Ok((online == self.connections as f64).then_some(()))
        });
        broker.runtime.block_on(back)?;
        // Either disconnects were dropped, whose connections live until their timeout, or connects,
        // which heartbeats have replaced. So there are at least as many connections as users.
        self.dropped = broker
            .runtime
            .block_on(host.metric("presence_slow_consumer_drops_total", &[]))?;
        anyhow::ensure!(
            metric("presence_connections")? >= self.connections as f64,
            "somebody is missing"
        );
        // All that is published before the mark is counted.
        let sent = host.until_metric("presence_journal_bytes", &[], |bytes| bytes == 0.0);
        broker.runtime.block_on(sent)?;
        let mark = serde_json::json!({"mark": true});
        broker.runtime.block_on(client.publish(EVENTS, &mark))?;
        let marked = tape.next("the mark", |seen| seen.body == mark);
        broker.runtime.block_on(marked)?;
        let events = tape.seen().iter().filter(|seen| seen.is_from_host());
        self.events = events.count();
        Ok(())
    }
}

async fn listen(broker: &Broker) -> Result<(Client, Recording)> {
    let client = Client::connect(&broker.server.url()).await?;
    let tape = client.record(EVENTS).await?;
    Ok((client, tape))
}

/// The section of the storming tenant.
fn storming(grace_ms: i64) -> Table {
    toml! {
        name = "storm"
        [directory]
        path = "storm.json"
        [tracker]
        timeout_ms = 3600000
        grace_ms = grace_ms
    }
}

fn pieces(
    all: std::ops::Range<usize>,
    count: usize,
) -> impl Iterator<Item = std::ops::Range<usize>> {
    let size = all.len().div_ceil(count).max(1);
    let end = all.end;
    all.step_by(size)
        .map(move |from| from..(from + size).min(end))
}

/// Sends one message for each of these users, about their connection `conn`.
fn send(
    stream: &mut TcpStream,
    kind: &str,
    users: std::ops::Range<usize>,
    conn: &str,
) -> Result<()> {
    let at = now_ms();
    let further = match kind {
        "connect" => ",\"metadata\":{\"device\":\"web\"}",
        _ => ",\"reason\":\"server_shutdown\"",
    };
    let mut text = String::new();
    for user in users {
        let user = name(user);
        let body =
            format!("{{\"userId\":\"{user}\",\"connId\":\"{conn}\",\"timestamp\":{at}{further}}}");
        let bytes = body.len();
        text.push_str(&format!("PUB storm.presence.{kind} {bytes}\r\n{body}\r\n"));
    }
    stream.write_all(text.as_bytes())?;
    Ok(())
}
