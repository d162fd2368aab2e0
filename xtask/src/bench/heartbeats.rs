//! Heartbeats of known connections: presence beside a bare subscriber that only counts.
//!
//! Nothing is published for a heartbeat. So one in `PER_ANSWER` has a reply subject, and the
//! answers limit how many messages are under way. The subscriber answers these, too.

use anyhow::{Context, Result, ensure};
use presence_tests::http;
use presence_tests::wait;

use super::cpu::Cpu;
use super::entrants::Entrant;
use super::fan_out::Row;
use super::generator::{Frames, Generator, Window};
use super::load::{BEGIN_MS, name};
use super::{Args, Broker};

const CONNECTIONS: usize = 10_000;
const HEARTBEATS: usize = 200_000;
/// One in this many heartbeats is answered.
const PER_ANSWER: usize = 1_000;
const REPLIES: &str = "_INBOX.load.heard";

/// Measures both, in turns.
pub(crate) fn measure(broker: &Broker, args: &Args) -> Result<Vec<Row>> {
    let counter = Entrant::own(broker, "bare subscriber that counts", "count", &[])?;
    let mut entrants = vec![counter];
    if !args.without_presence {
        let host = Entrant::presence(broker, "presence", None, "{}", Ok)?;
        entrants.push(host);
    }
    let mut generator = Generator::connect(broker.server.port(), REPLIES)?;
    let mut rows: Vec<Row> = Vec::new();
    for entrant in &entrants {
        generator.feed(
            &connects(&entrant.root),
            Window {
                messages: 512,
                per_answer: 1,
            },
        )?;
        rows.push(Row {
            title: entrant.title,
            rates: Vec::new(),
            cpu: Cpu::default(),
            events: 0,
            published: 0.0,
        });
    }
    for round in 0..=args.rounds {
        for (entrant, row) in entrants.iter().zip(&mut rows) {
            let done = measure_one(broker, &mut generator, entrant, round, row);
            done.with_context(|| format!("{}\n{}", entrant.title, entrant.log_tail()))?;
        }
    }
    Ok(rows)
}

fn measure_one(
    broker: &Broker,
    generator: &mut Generator,
    entrant: &Entrant,
    round: usize,
    row: &mut Row,
) -> Result<()> {
    let frames = heartbeats(&entrant.root, round);
    let window = Window {
        messages: 16 * PER_ANSWER,
        per_answer: PER_ANSWER,
    };
    let counted = counted(broker, entrant)?;
    let before = Cpu::now(entrant.pid(), broker.pid()?)?;
    let took = generator.feed(&frames, window)?;
    let used = Cpu::now(entrant.pid(), broker.pid()?)?.since(before);
    if let Some(counted) = counted {
        all_taken_in(broker, entrant, counted + frames.len() as f64)?;
    }
    if round > 0 {
        row.rates.push(frames.len() as f64 / took.as_secs_f64());
        row.cpu.add(used);
        row.events += frames.len();
    }
    Ok(())
}

/// How many heartbeats the host has counted. `None` for the subscriber.
fn counted(broker: &Broker, entrant: &Entrant) -> Result<Option<f64>> {
    let Some(host) = entrant.host() else {
        return Ok(None);
    };
    let metrics = broker.runtime.block_on(host.metrics())?;
    Ok(Some(http::metric(
        &metrics,
        "presence_inputs_total",
        &["kind=\"heartbeat\""],
    )))
}

/// Checks that no heartbeat was lost on the way.
fn all_taken_in(broker: &Broker, entrant: &Entrant, expected: f64) -> Result<()> {
    let counted = wait::until("presence to count every heartbeat", async || {
        let Some(host) = entrant.host() else {
            return Ok(Some(expected));
        };
        let metrics = host.metrics().await?;
        let counted = http::metric(&metrics, "presence_inputs_total", &["kind=\"heartbeat\""]);
        Ok((counted >= expected).then_some(counted))
    });
    let counted = broker.runtime.block_on(counted)?;
    ensure!(
        counted == expected,
        "{expected} heartbeats were sent, but {counted} counted"
    );
    Ok(())
}

/// Everyone connects; each connect is answered. The bare subscriber doesn't
/// listen for connects, so it gets heartbeats in their place.
fn connects(root: &str) -> Frames {
    let subject = if root == "presence" {
        "connect"
    } else {
        "heartbeat"
    };
    let mut frames = Frames::default();
    for user in 0..CONNECTIONS {
        frames.push(&format!("{root}.{subject}"), REPLIES, &body(user, BEGIN_MS));
    }
    frames
}

fn heartbeats(root: &str, round: usize) -> Frames {
    let subject = format!("{root}.heartbeat");
    let mut frames = Frames::default();
    for number in 0..HEARTBEATS {
        let lap = round * (HEARTBEATS / CONNECTIONS) + number / CONNECTIONS;
        let reply = if (number + 1) % PER_ANSWER == 0 {
            REPLIES
        } else {
            ""
        };
        frames.push(
            &subject,
            reply,
            &body(number % CONNECTIONS, BEGIN_MS + lap as u64 + 1),
        );
    }
    frames
}

/// The seed document's heartbeat.
fn body(user: usize, at: u64) -> String {
    format!(
        "{{\"userId\":\"{}\",\"connId\":\"conn_abc123\",\"timestamp\":{at},\
         \"metadata\":{{\"activity\":\"active\",\"location\":\"chat:67890\"}}}}",
        name(user)
    )
}
