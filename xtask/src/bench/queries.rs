//! Queries about 100 users, beside a bare request and its reply. One is under way at a time, in
//! turns, and all have the same question and an answer of the same size.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use presence_tests::site::Site;
use serde_json::json;

use super::entrants::Entrant;
use super::generator::{Frames, Generator, Window};
use super::load::{BEGIN_MS, Population, name, viewer};
use super::times::Times;
use super::{Args, Broker};

/// How many users a query asks about.
const USERS: usize = 100;
/// How many queries there are in a round.
const QUERIES: usize = 300;
const REPLIES: &str = "_INBOX.load.answers";

/// How long the answers of one contender took.
pub(crate) struct Row {
    pub(crate) title: &'static str,
    pub(crate) took: Times,
}

/// Measures the bare answerer, and the host with cached verdicts and without.
pub(crate) fn measure(broker: &Broker, args: &Args) -> Result<Vec<Row>> {
    let population = Population::with(100);
    let directory = population.directory();
    let warm = Entrant::presence(broker, "presence", None, &directory, Ok)?;
    let without = |site: Site| site.with("engine.reuse_verdicts", false);
    let title = "presence, every verdict made anew";
    let cold = Entrant::presence(broker, title, Some("cold"), &directory, without)?;
    let mut hosts = vec![warm, cold];
    if let Some(binary) = &args.baseline {
        let (title, tenant) = ("the earlier presence", Some("earlier"));
        let warm = Entrant::presence_of(broker, title, tenant, &directory, Ok, binary)?;
        let (title, tenant) = ("the earlier, verdicts made anew", Some("earliercold"));
        let cold = Entrant::presence_of(broker, title, tenant, &directory, without, binary)?;
        hosts.extend([warm, cold]);
    }

    let mut generator = Generator::connect(broker.server.port(), REPLIES)?;
    let mut answer_bytes = 0;
    for host in &hosts {
        let window = Window {
            messages: args.window,
            per_answer: 1,
        };
        Generator::connect(broker.server.port(), &format!("{}.filtered.*", host.root))?
            .feed(&population.online(&host.root, BEGIN_MS), window)?;
        let answer = generator.ask(&query(&host.root, population))?;
        let online = answer.matches("\"online\"").count();
        ensure!(
            online == USERS,
            "{USERS} users are online, not {online}: {answer:.300}"
        );
        answer_bytes = answer.len();
    }
    let answer_bytes = answer_bytes.to_string();
    let args_of_bare = ["--answer-bytes", &*answer_bytes];
    let bare = Entrant::own(broker, "bare request and reply", "answer", &args_of_bare)?;
    let title = "the same, by way of another thread";
    let elsewhere = Entrant::own(broker, title, "answer-elsewhere", &args_of_bare)?;

    let lanes: Vec<_> = [bare, elsewhere].into_iter().chain(hosts).collect();
    let rows = lanes.iter().map(|entrant| Row {
        title: entrant.title,
        took: Times::default(),
    });
    let mut rows: Vec<_> = rows.collect();
    let queries = lanes.iter().map(|entrant| query(&entrant.root, population));
    let queries: Vec<_> = queries.collect();
    for round in 0..=args.rounds {
        for ((entrant, row), query) in lanes.iter().zip(&mut rows).zip(&queries) {
            for _ in 0..QUERIES {
                let begin = Instant::now();
                let asked = generator.ask(query);
                asked.with_context(|| format!("{}\n{}", entrant.title, entrant.log_tail()))?;
                if round > 0 {
                    row.took.push(begin.elapsed());
                }
            }
        }
    }
    Ok(rows)
}

/// A query of one viewer, about users of whom the viewer was told.
fn query(root: &str, population: Population) -> Frames {
    const VIEWER: usize = 42;
    let users = population.seen_by(VIEWER).take(USERS).map(name);
    let users: Vec<_> = users.collect();
    let body = json!({"viewerId": viewer(VIEWER), "userIds": users});
    let mut frames = Frames::default();
    frames.push(&format!("{root}.query"), REPLIES, &body.to_string());
    frames
}
