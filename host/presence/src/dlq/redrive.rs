//! `presence dlq redrive`

use std::io::{BufRead as _, IsTerminal as _, stdin};
use std::time::Duration;

use anyhow::{bail, ensure};
use presence_config::escape::{line, print, print_json, say};
use presence_config::subjects::Subjects;
use presence_core::message::Kind;
use presence_kit::ConfigArg;
use presence_node::clock;
use presence_node::link::dead_letters::{DeadLetter, DeadLetters, Redriven};
use serde_json::json;
use tokio::time::sleep;

use super::filter::Filter;

/// How often, and how long apart, it is looked for the new letter of a refused message.
const LOOKS: usize = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(50);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Their numbers, as `presence dlq list` prints them.
    numbers: Vec<u64>,
    #[command(flatten)]
    filter: Filter,
    /// All that there are.
    #[arg(long, conflicts_with = "numbers")]
    all: bool,
    /// Also connects and heartbeats that are older than [tracker] timeout_ms: their users are
    /// shown as online until the connection times out.
    #[arg(long)]
    old: bool,
    /// Doesn't ask first.
    #[arg(long)]
    yes: bool,
    /// Prints what became of each as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArg,
}

/// What became of a letter.
enum Outcome {
    Accepted,
    Stale(String),
    Refused(String, String),
    /// It stays as it is, and why.
    Left(String),
}

/// Redrives those that are meant, in their order.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        args.all || !args.numbers.is_empty() || !args.filter.is_empty(),
        "say which dead letters: their numbers, a filter such as --reason, or --all"
    );
    let (config, letters) = super::open(&args.config).await?;
    let (meant, last) = meant(args, &letters).await?;
    if meant.is_empty() {
        print("no dead letters\n")?;
        return Ok(());
    }
    if !args.yes {
        confirm(meant.len(), letters.name())?;
    }
    let subjects = Subjects::new(config.tenant.prefix.as_deref());
    let too_old = |letter: &DeadLetter| {
        let lives_ms = config.tracker.timeout_ms;
        let kind = subjects.kind(&letter.content.subject);
        let is_session = matches!(kind, Some(Kind::Connect | Kind::Heartbeat));
        let age_ms = clock::now_ms().saturating_sub(letter.content.timestamp);
        (is_session && !args.old && age_ms > lives_ms).then(|| {
            format!(
                "older than a connection lives without heartbeats ({lives_ms} ms); --old redrives \
                 it nonetheless"
            )
        })
    };
    let mut outcomes = Vec::new();
    for letter in &meant {
        let outcome = match too_old(letter) {
            Some(why) => Outcome::Left(why),
            None => redrive(&letters, letter, last).await?,
        };
        if !args.json {
            print(format_args!("{}\n", described(letter, &outcome)))?;
        }
        outcomes.push((letter, outcome));
    }
    if args.json {
        let outcomes = outcomes.iter().map(|(letter, outcome)| {
            let (what, why) = outcome.words();
            json!({"number": letter.number, "subject": letter.content.subject, "outcome": what, "why": why})
        });
        print_json(json!({"redriven": outcomes.collect::<Vec<_>>()}))?;
    }
    let open = |outcome: &Outcome| matches!(outcome, Outcome::Refused(..) | Outcome::Left(_));
    match outcomes.iter().filter(|(_, outcome)| open(outcome)).count() {
        0 => Ok(()),
        open => bail!("{open} of {} were refused again or left", meant.len()),
    }
}

/// The letters that are meant, and the number of the newest that there is.
async fn meant(args: &Args, letters: &DeadLetters) -> anyhow::Result<(Vec<DeadLetter>, u64)> {
    let (mut meant, mut last) = (Vec::new(), 0);
    let read = letters.read(1, |letter| {
        last = letter.number;
        let is_named = args.numbers.is_empty() || args.numbers.contains(&letter.number);
        if is_named && args.filter.takes(&letter) {
            meant.push(letter);
        }
        Ok(true)
    });
    read.await?;
    for number in &args.numbers {
        ensure!(
            meant.iter().any(|letter| letter.number == *number),
            "there is no dead letter {number} in the stream `{}`{}",
            letters.name(),
            if args.filter.is_empty() {
                ""
            } else {
                " that the filter takes"
            }
        );
    }
    Ok((meant, last))
}

fn confirm(count: usize, stream: &str) -> anyhow::Result<()> {
    ensure!(
        stdin().is_terminal(),
        "nobody is there to be asked: --yes redrives {count} dead letters without asking"
    );
    say(format_args!(
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

/// Redrives a letter, and removes it if nothing of it is left to be done. `last` is the
/// newest letter before any was redriven.
async fn redrive(letters: &DeadLetters, letter: &DeadLetter, last: u64) -> anyhow::Result<Outcome> {
    if let Err(error) = letter.payload() {
        return Ok(Outcome::Left(format!("{error:#}")));
    }
    let outcome = match letters.redrive(letter).await? {
        Redriven::Accepted => Outcome::Accepted,
        Redriven::Stale(why) => Outcome::Stale(why),
        Redriven::Refused(reason, error) => Outcome::Refused(reason, error),
    };
    let is_done = match &outcome {
        // Its new dead letter may have been left out, as one of too many.
        Outcome::Refused(..) => is_replaced(letters, letter, last).await?,
        _ => true,
    };
    if is_done {
        letters.remove(letter.number).await?;
    }
    Ok(outcome)
}

/// Whether there is a newer letter for the same message. The answer to the message may come
/// before the stream has it.
async fn is_replaced(
    letters: &DeadLetters,
    letter: &DeadLetter,
    last: u64,
) -> anyhow::Result<bool> {
    for _ in 0..LOOKS {
        let mut is_replaced = false;
        let read = letters.read(last + 1, |newer| {
            is_replaced = newer.content.subject == letter.content.subject
                && newer.payload().ok() == letter.payload().ok();
            Ok(!is_replaced)
        });
        read.await?;
        if is_replaced {
            return Ok(true);
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(false)
}

impl Outcome {
    fn words(&self) -> (&'static str, String) {
        match self {
            Self::Accepted => ("accepted", String::new()),
            Self::Stale(why) => ("stale", why.clone()),
            Self::Refused(reason, error) => ("refused", format!("{reason}: {error}")),
            Self::Left(why) => ("left", why.clone()),
        }
    }
}

fn described(letter: &DeadLetter, outcome: &Outcome) -> String {
    let (what, why) = outcome.words();
    let colon = if why.is_empty() { "" } else { ": " };
    let (number, subject) = (letter.number, line(&letter.content.subject));
    format!("{number}  {subject}  {what}{colon}{}", line(why))
}
