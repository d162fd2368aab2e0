//! The memory of connections on one node that serves alone: resident bytes, with all of them
//! connected through the broker.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use presence_tests::client::now_ms;

use super::entrants::Entrant;
use super::generator::{Frames, Generator, Window};
use super::load::{Population, name};
use super::operating::resident;
use super::{Args, Broker};

/// How many connections each user has.
const OF_A_USER: usize = 2;

/// How many messages are laid out in memory at once.
const PIECE: usize = 50_000;

const REPLIES: &str = "_INBOX.load.memory";

/// The figures of a node with many connections.
pub(crate) struct Memory {
    pub(crate) connections: usize,
    /// The node's resident bytes before the first of them, and with all of them.
    pub(crate) resident: [u64; 2],
    /// How long it took until all were connected.
    pub(crate) took: Duration,
}

/// Measures a node with `--resident-connections` connections, two of each user.
pub(crate) fn measure(broker: &Broker, args: &Args) -> Result<Memory> {
    let users = args.resident_connections.div_ceil(OF_A_USER).max(1);
    eprintln!("Measuring a node with {} connections", users * OF_A_USER);
    let population = Population { users, viewers: 1 };
    let directory = population.directory();
    let entrant = Entrant::presence(broker, "presence", Some("memory"), &directory, Ok)?;
    drop(directory);
    let before = resident(entrant.pid())?;
    let mut generator = Generator::connect(broker.server.port(), REPLIES)?;
    let window = Window {
        messages: args.window,
        per_answer: 1,
    };
    let begun = Instant::now();
    let subject = format!("{}.connect", entrant.root);
    let all = users * OF_A_USER;
    let mut next = 0;
    while next < all {
        let mut frames = Frames::default();
        for number in next..all.min(next + PIECE) {
            let (user, conn, at) = (name(number % users), number / users, now_ms());
            let body = format!(
                "{{\"userId\":\"{user}\",\"connId\":\"conn-{conn}-{user}\",\"timestamp\":{at},\
                 \"metadata\":{{\"device\":\"web\"}}}}"
            );
            frames.push(&subject, REPLIES, &body);
        }
        next += frames.len();
        let fed = generator.feed(&frames, window);
        fed.with_context(|| entrant.log_tail())?;
    }
    let host = entrant.host().context("it is a host")?;
    let connected = host.metric("presence_connections", &[]);
    let connected = broker.runtime.block_on(connected)?;
    ensure!(connected == all as f64, "{connected} are connected");
    Ok(Memory {
        connections: all,
        resident: [before, resident(entrant.pid())?],
        took: begun.elapsed(),
    })
}
