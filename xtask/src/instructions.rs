//! `cargo xtask instructions`: how many instructions an event takes in the core, counted by
//! valgrind. Unlike times, these don't depend on what else the machine does, so CI can compare
//! them: `--check` fails if a figure has risen since the figures were committed.

mod valgrind;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use presence_tests::tools;
use serde::{Deserialize, Serialize};

use valgrind::Valgrind;

/// The committed figures.
const FIGURES: &str = "xtask/instructions/figures.json";
/// By which part a figure may rise before `--check` fails.
const TOLERANCE: f64 = 0.05;
/// How many events the measured program handles.
const EVENTS: u64 = 1_000;
/// Kinds of events, and how many viewers each user has.
const KINDS: [(&str, u32); 8] = [
    ("online", 10),
    ("online", 100),
    ("online", 1_000),
    ("offline", 10),
    ("connect", 10),
    ("disconnect", 10),
    ("heartbeat", 10),
    ("query", 1_000),
];

/// Counts the instructions of an event in the core.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fail if more are needed than the committed figures say.
    #[arg(long)]
    check: bool,
}

/// What was counted, and with what.
#[derive(Serialize, Deserialize)]
struct Figures {
    arch: String,
    rustc: String,
    /// Instructions an event, by its name.
    events: BTreeMap<String, u64>,
}

/// Counts, and compares with the committed figures or replaces them.
///
/// # Errors
/// When there is no valgrind, or a figure has risen.
pub(crate) fn run(args: &Args) -> Result<()> {
    let committed = committed();
    let figures = count()?;
    print!("{}", table(&figures, committed.as_ref().ok()));
    if !args.check {
        let json = serde_json::to_string_pretty(&figures)? + "\n";
        return fs::write(tools::root().join(FIGURES), json).with_context(|| FIGURES.to_owned());
    }
    let committed = committed?;
    if committed.arch != figures.arch {
        println!("the committed figures are of {}", committed.arch);
        return Ok(());
    }
    let risen = risen(&figures, &committed);
    ensure!(
        risen.is_empty(),
        "an event takes over {:.0} % more instructions than {FIGURES} says (of {}): {}; if \
         it is worth them, `cargo xtask instructions` renews the figures",
        100.0 * TOLERANCE,
        committed.rustc,
        risen.join(", ")
    );
    Ok(())
}

/// Counts every kind of event, for the bench.
///
/// # Errors
/// When there is no valgrind, or the program fails.
pub(crate) fn counted() -> Result<String> {
    Ok(table(&count()?, committed().ok().as_ref()))
}

fn committed() -> Result<Figures> {
    let json = fs::read(tools::root().join(FIGURES)).with_context(|| FIGURES.to_owned())?;
    serde_json::from_slice(&json).with_context(|| FIGURES.to_owned())
}

fn count() -> Result<Figures> {
    let valgrind = Valgrind::find()?;
    let program = tools::build("presence-instructions", &["--release"])?;
    let mut events = BTreeMap::new();
    for (kind, viewers) in KINDS {
        let name = format!("{kind}, {viewers} viewers");
        let all = one(&valgrind, &program, kind, viewers).with_context(|| name.clone())?;
        events.insert(name, all / EVENTS);
    }
    let rustc = tools::run(Command::new("rustc").arg("--version"))?;
    Ok(Figures {
        arch: std::env::consts::ARCH.into(),
        rustc: rustc.trim().into(),
        events,
    })
}

fn one(valgrind: &Valgrind, program: &Path, kind: &str, viewers: u32) -> Result<u64> {
    let mut command = valgrind.command();
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg("--toggle-collect=presence_instructions::measured*")
        .arg(program)
        .args([kind, &viewers.to_string()]);
    let output = command.output().context("running valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", said.trim_end());
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let (_, count) = collected.with_context(|| format!("no count in:\n{said}"))?;
    let count = count.trim().parse()?;
    ensure!(count > 0, "valgrind has found no function `measured`");
    Ok(count)
}

/// The figures that have risen by more than the tolerance: before and now.
fn risen(now: &Figures, committed: &Figures) -> Vec<String> {
    let mut risen = Vec::new();
    for (name, now) in &now.events {
        match committed.events.get(name) {
            Some(before) if *now as f64 <= *before as f64 * (1.0 + TOLERANCE) => {}
            Some(before) => risen.push(format!("{name}: {before} → {now}")),
            None => risen.push(format!("{name}: {now}, not committed")),
        }
    }
    risen
}

fn table(figures: &Figures, committed: Option<&Figures>) -> String {
    let mut text = format!(
        "  {:32}{:>12}{:>12}\n",
        "instructions an event", "now", "committed"
    );
    for (name, now) in &figures.events {
        let before = committed.and_then(|committed| committed.events.get(name));
        let before = before.map_or_else(String::new, u64::to_string);
        text += &format!("  {name:32}{now:>12}{before:>12}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(online: u64) -> Figures {
        Figures {
            arch: "x86_64".into(),
            rustc: "rustc".into(),
            events: [("online".to_owned(), online)].into(),
        }
    }

    #[test]
    fn only_a_rise_of_more_than_a_twentieth_counts() {
        let before = figures(1_000);
        assert!(risen(&figures(1_050), &before).is_empty());
        assert!(risen(&figures(500), &before).is_empty());
        assert_eq!(risen(&figures(1_051), &before), ["online: 1000 → 1051"]);
        let none = Figures {
            events: BTreeMap::new(),
            ..figures(0)
        };
        assert_eq!(risen(&figures(1), &none), ["online: 1, not committed"]);
    }
}
