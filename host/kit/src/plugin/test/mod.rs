//! `presence plugin test`: a plugin's self-tests, in the real sandbox.

mod diff;

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{bail, ensure};
use presence_config::escape::{eprint_line, line, print, print_json};
use presence_rules::limits::limits;
use presence_rules::loader;
use presence_sandbox::self_test::{self, Outcome};
use presence_sandbox::{Limits, Plugin};
use serde_json::{Value, json};

use super::update;
use crate::ConfigArg;
use crate::figures;
use crate::text;

/// The arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The plugin: a .wasm file, or a folder, which is built first.
    file: PathBuf,
    /// Writes what comes out into the manifest, as what is expected.
    #[arg(long)]
    update: bool,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
    // Its limits apply to the calls.
    #[command(flatten)]
    config: ConfigArg,
}

/// Runs the cases, and prints the results.
///
/// # Errors
/// When a case fails, unless its expectation is updated.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let path = super::file(&args.file)?;
    let bytes = super::read(&path)?;
    let plugin = super::load(&loader::engine(&config)?, &path, &bytes)?;
    let limits = limits(&config, true).capped_by(plugin.manifest.limits);
    let outcomes: Vec<_> = self_test::run(&plugin, limits).collect();
    let failed: Vec<_> = outcomes
        .iter()
        .filter(|outcome| !outcome.passes())
        .collect();
    if args.json {
        print_json(object(&plugin, limits, &outcomes))?;
    } else if args.update && !failed.is_empty() {
        for outcome in &failed {
            let (case, diff) = (line(&outcome.case), diff::diff(outcome));
            print(format_args!("{case}\n{diff}"))?;
        }
    } else {
        print(page(&plugin, limits, &outcomes))?;
        for outcome in &failed {
            let (case, diff) = (line(&outcome.case), diff::diff(outcome));
            print(format_args!("\n{case}\n{diff}"))?;
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    if args.update {
        for file in update::update(&path, &bytes, &outcomes)? {
            eprint_line(format_args!("updated {}", file.display()));
        }
        let broken = failed.iter().filter(|outcome| !update::is_taken(outcome));
        let broken = broken.count();
        ensure!(
            broken == 0,
            "a failure is not taken for what is expected: {broken} of {} calls failed",
            outcomes.len()
        );
        return Ok(());
    }
    bail!("{} of {} self-tests fail", failed.len(), outcomes.len());
}

fn object(plugin: &Plugin, limits: Limits, outcomes: &[Outcome]) -> Value {
    let case = |outcome: &Outcome| {
        json!({
            "name": outcome.case,
            "passes": outcome.passes(),
            "expected": outcome.expected,
            "found": outcome.found,
            "lines": super::lines::objects(&outcome.lines),
            "reconsiderAt": outcome.reconsider_at,
            "fuel": outcome.spent.map(|spent| spent.fuel),
            "memoryBytes": outcome.spent.map(|spent| spent.memory_bytes),
            "timeNs": u64::try_from(outcome.took.as_nanos()).unwrap_or(u64::MAX),
        })
    };
    json!({
        "plugin": plugin.manifest.name,
        "version": plugin.manifest.version.to_string(),
        "role": plugin.manifest.role.as_str(),
        "limits": {
            "fuel": limits.fuel,
            "memoryBytes": limits.memory_bytes_max,
            "deadlineMs": limits.deadline_ms,
        },
        "cases": outcomes.iter().map(case).collect::<Vec<_>>(),
    })
}

fn page(plugin: &Plugin, limits: Limits, outcomes: &[Outcome]) -> String {
    let manifest = &plugin.manifest;
    if outcomes.is_empty() {
        return format!(
            "{} has no self-tests: give it some in plugin.json\n",
            line(&manifest.name)
        );
    }
    let mut rows: Vec<_> = outcomes.iter().map(row).collect();
    rows.push([
        String::new(),
        "the most that a call may take".into(),
        figures::grouped(limits.fuel),
        figures::bytes(limits.memory_bytes_max as u64),
        limits
            .deadline_ms
            .map(|ms| format!("{ms} ms"))
            .unwrap_or_default(),
    ]);
    let table = text::table(["", "CASE", "FUEL", "MEMORY", "TIME"], &rows);
    let mut page = String::new();
    for (number, row) in table.lines().enumerate() {
        page.push_str(row);
        page.push('\n');
        // The first row holds the titles.
        let case = number.checked_sub(1).and_then(|place| outcomes.get(place));
        for line in case.into_iter().flat_map(|case| &case.lines) {
            page.push_str(&super::lines::indented(line));
        }
        if let Some(at) = case.and_then(|case| case.reconsider_at) {
            let when = text::time(at);
            let _ = writeln!(page, "        asks to be asked again: {when} ({at})");
        }
    }
    page
}

fn row(outcome: &Outcome) -> [String; 5] {
    let result = if outcome.passes() { "ok" } else { "FAILED" };
    let spent = outcome.spent;
    [
        result.into(),
        line(&outcome.case),
        spent.map_or("-".into(), |spent| figures::grouped(spent.fuel)),
        spent.map_or("-".into(), |spent| {
            figures::bytes(spent.memory_bytes as u64)
        }),
        spent.map_or("-".into(), |_| figures::time(outcome.took)),
    ]
}
