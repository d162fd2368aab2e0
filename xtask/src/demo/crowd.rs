//! A crowd that comes and goes, to time the way from an input to its filtered event.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::cast::{self, CROWD};
use super::expected::Expected;
use super::latency::{Latencies, readable};
use super::observer::Observed;
use super::page::Page;
use super::world::World;

/// How many times each person in the crowd comes and goes.
const STAYS: usize = 6;

/// The time between two arrivals of the same person, in milliseconds.
const CYCLE_MS: usize = 500;

/// A person in the crowd comes or goes.
struct Move {
    due: Duration,
    number: usize,
    stay: usize,
    online: bool,
}

/// Lets the crowd come and go. Returns, for each input, the time from its publication until its
/// filtered event was received, measured by the same clock in this process.
///
/// # Errors
/// When somebody isn't told who should be, or is told who shouldn't be.
pub(crate) async fn come_and_go(world: &mut World, page: &mut Page) -> Result<Latencies> {
    let lines = ["Six teams of eight, each of them seen by the other seven, for the figures."];
    page.step("A crowd comes and goes", &lines).await;
    let before = world.observer.counts();
    let begin = Instant::now();
    let latencies = play(world).await?;
    let took = readable(begin.elapsed());
    // Nothing else was published.
    world.show(page, Expected::default()).await?;
    let counts = world.observer.counts();
    let (events, filtered) = (
        counts.events - before.events,
        counts.filtered - before.filtered,
    );
    let inputs = 2 * CROWD * STAYS;
    ensure!(
        (events, filtered) == (inputs as u64, inputs as u64),
        "{inputs} inputs should be as many events, not {events}, and filtered ones, not {filtered}"
    );
    page.note(&format!(
        "{CROWD} people came and went {STAYS} times each, in {took}: {inputs} inputs, each told once, to the right seven"
    ));
    Ok(latencies)
}

async fn play(world: &mut World) -> Result<Latencies> {
    let mut moves = VecDeque::from(moves());
    let mut under_way: BTreeMap<(String, bool), VecDeque<Instant>> = BTreeMap::new();
    let mut latencies = Latencies::default();
    let wanted = moves.len();
    let begin = Instant::now();
    while latencies.len() < wanted {
        let due = moves.front().map(|next| begin + next.due);
        tokio::select! {
            () = until(due) => if let Some(next) = moves.pop_front() {
                let name = cast::name(next.number);
                let sent = under_way.entry((name.clone(), next.online)).or_default();
                sent.push_back(Instant::now());
                send(world, &name, &next).await?;
            },
            saw = world.observer.next("what the crowd is told") => match saw? {
                Observed::FilteredEvent(event) => {
                    let change = &event.change;
                    let received = Instant::now();
                    let sent = under_way.get_mut(&(change.user.clone(), change.online));
                    let sent = sent.and_then(VecDeque::pop_front);
                    let sent = sent.with_context(|| format!("nobody expected this: {change}"))?;
                    ensure!(
                        change.moved && change.viewers == world.audience(&change.user),
                        "the wrong ones are told: {change}"
                    );
                    latencies.push(received - sent);
                }
                Observed::DeadLetter(letter) => bail!("nobody expected the dead letter {letter}"),
                Observed::Broadcast { .. } | Observed::Mark(_) | Observed::Other => {}
            },
        }
    }
    Ok(latencies)
}

async fn send(world: &World, name: &str, next: &Move) -> Result<()> {
    let conn = format!("c{}", next.stay);
    if next.online {
        world.transport.send_connect(name, &conn, "web").await
    } else {
        world.transport.send_disconnect(name, &conn).await
    }
}

/// Everyone's comings and goings in their order: a little apart, each at their
/// own pace, and the same in every run.
fn moves() -> Vec<Move> {
    let mut moves = Vec::new();
    for number in 0..CROWD {
        let offset_ms = number * 137 % CYCLE_MS;
        let stay_ms = 120 + number * 89 % 240;
        for stay in 0..STAYS {
            let came_ms = stay * CYCLE_MS + offset_ms;
            for (online, at_ms) in [(true, came_ms), (false, came_ms + stay_ms)] {
                let due = Duration::from_millis(at_ms as u64);
                moves.push(Move {
                    due,
                    number,
                    stay,
                    online,
                });
            }
        }
    }
    moves.sort_by_key(|next| next.due);
    moves
}

/// Waits until a moment; for ever, if there is none.
async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everyone_comes_and_goes_in_turns() {
        for number in 0..CROWD {
            let own: Vec<_> = moves()
                .into_iter()
                .filter(|next| next.number == number)
                .collect();
            assert_eq!(own.len(), 2 * STAYS);
            assert!(
                own.iter()
                    .enumerate()
                    .all(|(index, next)| next.online == (index % 2 == 0))
            );
            assert!(own.windows(2).all(|pair| pair[0].due < pair[1].due));
        }
    }
}
