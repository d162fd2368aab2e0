//! `presence dlq redrive`

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, IsTerminal as _, stdin};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::ArgGroup;
use presence_config::escape::{eprint_line, line, print, print_json};
use presence_core::message::Kind;
use presence_node::clock;
use presence_node::link::dlq_stream::{DeadLetter, DlqStream, RedriveMode, RedriveResult};
use presence_node::link::redrive_lock::RedriveLock;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::StreamArgs;
use super::filter::Filter;

/// The arguments that select dead letters. One of them is required, so that nobody redrives all
/// letters by mistake.
const SELECTIONS: [&str; 7] = [
    "numbers", "reason", "subject", "plugin", "since", "until", "all",
];

/// How many times, and at which interval, the stream is read for the new letter of a refused
/// message.
const READS_MAX: usize = 20;
const READ_INTERVAL: Duration = Duration::from_millis(50);

#[derive(clap::Args)]
#[command(group(
    ArgGroup::new("which").args(SELECTIONS).required(true).multiple(true)
))]
pub(crate) struct Args {
    /// Their numbers, as `presence dlq list` prints them.
    numbers: Vec<u64>,
    #[command(flatten)]
    filter: Filter,
    /// All that there are.
    #[arg(long, conflicts_with = "numbers")]
    all: bool,
    /// Also messages that are older than `[tracker] timeout_ms`: a connect or heartbeat shows its
    /// user as online until the connection times out, and what an application stated holds
    /// again.
    #[arg(long)]
    old: bool,
    /// Doesn't ask first.
    #[arg(long)]
    yes: bool,
    /// Prints what became of each as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: StreamArgs,
}

/// How long to wait before trying again to get the turn that another redrive has.
const TURN_RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// What became of a letter.
enum Outcome {
    Accepted,
    Stale(String),
    Refused(String, String),
    /// It was not redriven, and stays in the stream, for this reason.
    Skipped(String),
    /// It isn't in the stream any more.
    Gone,
}

/// Redrives the selected dead letters, in order.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let (config, letters) = args.place.open().await?;
    let selected = select_letters(args, &letters).await?;
    if selected.is_empty() {
        match args.json {
            true => print_json(json!({"redriven": []}))?,
            false => print("no dead letters\n")?,
        }
        return Ok(());
    }
    if !args.yes {
        confirm(selected.len(), letters.name())?;
    }
    let age_max_ms = (!args.old).then_some(config.tracker.timeout_ms);
    let turn = turn(&letters).await?;
    let mut outcomes = Vec::new();
    let end = redrive_all(
        &turn,
        &letters,
        (&selected, age_max_ms),
        |letter, outcome| {
            if !args.json {
                print(format_args!("{}\n", describe(letter, &outcome)))?;
            }
            outcomes.push((letter, outcome));
            Ok(())
        },
    );
    let end = end.await;
    turn.end().await;
    if args.json {
        let outcomes = outcomes.iter().map(|(letter, outcome)| {
            let (what, why) = outcome.as_words();
            json!({"number": letter.number, "subject": letter.content.subject, "outcome": what, "why": why})
        });
        print_json(json!({"redriven": outcomes.collect::<Vec<_>>()}))?;
    }
    end?;
    let open = |outcome: &Outcome| matches!(outcome, Outcome::Refused(..) | Outcome::Skipped(_));
    match outcomes.iter().filter(|(_, outcome)| open(outcome)).count() {
        0 => Ok(()),
        open => bail!("{open} of {} were refused again or left", selected.len()),
    }
}

/// Redrives letters in order, and passes each outcome to `report`.
///
/// # Errors
/// If a letter can't be redriven, or not be removed afterwards. The letters after it are not tried:
/// they would fare no better.
async fn redrive_all<'a>(
    turn: &RedriveLock<'_>,
    letters: &DlqStream,
    (selected, age_max_ms): (&'a [DeadLetter], Option<u64>),
    mut report: impl FnMut(&'a DeadLetter, Outcome) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut replaced_up_to = letters.last().await?;
    let in_stream = still_in_stream(letters, selected).await?;
    for letter in selected {
        let (outcome, removed) = match skip_reason(letters, letter, age_max_ms) {
            _ if !in_stream.contains(&letter.number) => (Outcome::Gone, Ok(())),
            Some(why) => (Outcome::Skipped(why), Ok(())),
            None => in_turn(turn, redrive(letters, letter, &mut replaced_up_to))
                .await
                .with_context(|| format!("redriving dead letter {}", letter.number))?,
        };
        report(letter, outcome)?;
        removed.context("the next redrive publishes its message again")?;
    }
    Ok(())
}

/// Waits until no other redrive has the turn, and takes it.
async fn turn(letters: &DlqStream) -> anyhow::Result<RedriveLock<'_>> {
    let mut is_printed = false;
    loop {
        if let Some(turn) = RedriveLock::acquire(letters).await? {
            return Ok(turn);
        }
        if !std::mem::replace(&mut is_printed, true) {
            eprint_line(format_args!(
                "another redrive of the stream `{}` runs: waiting until it is done",
                letters.name()
            ));
        }
        sleep(TURN_RETRY_INTERVAL).await;
    }
}

/// The numbers of the letters that are still there. Another redrive may have removed some. In a
/// stream that was made anew, other letters have these numbers, so the bodies are compared, too.
async fn still_in_stream(
    letters: &DlqStream,
    selected: &[DeadLetter],
) -> anyhow::Result<BTreeSet<u64>> {
    let first = selected.first().map_or(1, |letter| letter.number);
    let selected: BTreeMap<_, _> = selected.iter().map(|it| (it.number, &it.body)).collect();
    let mut in_stream = BTreeSet::new();
    let read = letters.read(first, |letter| {
        if selected.get(&letter.number) == Some(&&letter.body) {
            in_stream.insert(letter.number);
        }
        Ok(true)
    });
    read.await?;
    Ok(in_stream)
}

/// Redrives a letter while this process has the turn. Fails if it loses the turn.
async fn in_turn<T>(
    turn: &RedriveLock<'_>,
    redrive: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    // This process may have been suspended since it last renewed the turn.
    turn.renew().await?;
    tokio::select! {
        done = redrive => done,
        lost = turn.keep() => Err(lost),
    }
}

/// Why a letter is not redriven. `None`: it is redriven.
fn skip_reason(
    letters: &DlqStream,
    letter: &DeadLetter,
    age_max_ms: Option<u64>,
) -> Option<String> {
    let kind = match letters.redrive_mode(letter) {
        RedriveMode::None(why) => return Some(why.into()),
        RedriveMode::Event => None,
        RedriveMode::Input(kind) => Some(kind),
    };
    let payload = match letter.payload() {
        Ok(payload) => payload,
        Err(error) => return Some(format!("{error:#}")),
    };
    // Disconnects and events are about the past: they may be of any age.
    kind.filter(|kind| *kind != Kind::Disconnect)?;
    let age_max_ms = age_max_ms?;
    // The message may be older than its letter, and the sender's clock may be ahead: the earlier
    // time counts.
    let message: Option<Value> = serde_json::from_slice(&payload).ok();
    let sent_at = message
        .as_ref()
        .and_then(|message| message.get("timestamp")?.as_u64());
    let sent_at = sent_at.map_or(letter.content.timestamp, |at| {
        at.min(letter.content.timestamp)
    });
    (clock::now_ms().saturating_sub(sent_at) > age_max_ms).then(|| {
        format!("older than {age_max_ms} ms ([tracker] timeout_ms); --old redrives it nonetheless")
    })
}

/// The selected letters.
async fn select_letters(args: &Args, letters: &DlqStream) -> anyhow::Result<Vec<DeadLetter>> {
    let mut selected = Vec::new();
    let read = letters.read(1, |letter| {
        let is_named = args.numbers.is_empty() || args.numbers.contains(&letter.number);
        if is_named && args.filter.takes(&letter) {
            selected.push(letter);
        }
        Ok(true)
    });
    read.await?;
    for number in &args.numbers {
        ensure!(
            selected.iter().any(|letter| letter.number == *number),
            "there is no dead letter {number} in the stream `{}`{}",
            letters.name(),
            if args.filter.is_empty() {
                ""
            } else {
                " that the filter takes"
            }
        );
    }
    Ok(selected)
}

fn confirm(count: usize, stream: &str) -> anyhow::Result<()> {
    ensure!(
        stdin().is_terminal(),
        "there is no terminal to ask on: --yes redrives {count} dead letters without asking"
    );
    eprint_line(format_args!(
        "Redrive {count} dead letters of the stream `{stream}`? [y/N]"
    ));
    let mut answer = String::new();
    stdin().lock().read_line(&mut answer)?;
    ensure!(
        matches!(answer.trim(), "y" | "Y" | "yes"),
        "nothing was redriven"
    );
    Ok(())
}

/// Redrives a letter, and removes it, unless it was refused and no new dead letter has replaced it.
/// A replacement is looked for after the number `replaced_up_to`, which then becomes its number: no
/// letter replaces two. Returns the outcome, and whether the removal succeeded.
async fn redrive(
    letters: &DlqStream,
    letter: &DeadLetter,
    replaced_up_to: &mut u64,
) -> anyhow::Result<(Outcome, anyhow::Result<()>)> {
    let outcome = match letters.redrive(letter).await? {
        RedriveResult::Accepted => Outcome::Accepted,
        RedriveResult::Stale(why) => Outcome::Stale(why),
        RedriveResult::Refused(reason, error) => Outcome::Refused(reason, error),
    };
    let is_done = match &outcome {
        // The limit on dead letters may have left out the new one.
        Outcome::Refused(..) => match replacement(letters, letter, *replaced_up_to).await? {
            Some(number) => {
                *replaced_up_to = number;
                true
            }
            None => false,
        },
        _ => true,
    };
    let removed = match is_done {
        true => letters.remove(letter.number).await,
        false => Ok(()),
    };
    Ok((outcome, removed))
}

/// The number of the new dead letter for the same message, after the number `last`. `None` if there
/// is none after several reads: the answer to the message may come before the stream has the
/// letter.
async fn replacement(
    letters: &DlqStream,
    letter: &DeadLetter,
    last: u64,
) -> anyhow::Result<Option<u64>> {
    for _ in 0..READS_MAX {
        let mut found = None;
        let read = letters.read(last + 1, |newer| {
            let is_same = newer.content.subject == letter.content.subject
                && newer.payload().ok() == letter.payload().ok();
            found = is_same.then_some(newer.number);
            Ok(!is_same)
        });
        read.await?;
        if found.is_some() {
            return Ok(found);
        }
        sleep(READ_INTERVAL).await;
    }
    Ok(None)
}

impl Outcome {
    fn as_words(&self) -> (&'static str, String) {
        match self {
            Self::Accepted => ("accepted", String::new()),
            Self::Stale(why) => ("stale", why.clone()),
            Self::Refused(reason, error) => ("refused", format!("{reason}: {error}")),
            Self::Skipped(why) => ("left", why.clone()),
            Self::Gone => (
                "gone",
                "it is not in the stream any more: another redrive was faster, or it was removed"
                    .to_owned(),
            ),
        }
    }
}

fn describe(letter: &DeadLetter, outcome: &Outcome) -> String {
    let (what, why) = outcome.as_words();
    let colon = if why.is_empty() { "" } else { ": " };
    let (number, subject) = (letter.number, line(&letter.content.subject));
    format!("{number}  {subject}  {what}{colon}{}", line(why))
}
