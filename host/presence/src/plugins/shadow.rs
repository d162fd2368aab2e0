//! `presence plugins shadow`

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use presence_config::escape::{eprint_line, line, print, print_json};
use presence_kit::explained::{reasons, what_it_does, word};
use presence_kit::text;
use presence_node::store::operator::{FoundNode, Operator};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::activate::{PluginRef, parse_plugin_ref};
use crate::arguments::{Output, span};
use crate::pipeline::change::StoreSession;

/// The message about a fleet member that doesn't answer.
const SILENT: &str = "it is one of the fleet and doesn't answer";

/// The shortest and the longest interval between two looks whether the shadow is over. The interval
/// is the time that is left, within these bounds.
const POLL_MIN: Duration = Duration::from_millis(200);
const POLL_MAX: Duration = Duration::from_secs(2);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The plugin's name, and its digest or the first digits of it.
    #[arg(value_name = "NAME@DIGEST", value_parser = parse_plugin_ref, required_unless_present = "end")]
    plugin: Option<PluginRef>,
    /// For how long.
    #[arg(long = "for", value_name = "TIME", value_parser = span, required_unless_present = "end")]
    lasts: Option<Duration>,
    /// Ends the shadow that runs, on every node, before its time.
    #[arg(long, conflicts_with_all = ["plugin", "lasts"])]
    end: bool,
    #[command(flatten)]
    output: Output,
}

/// Runs a shadow on every node that follows the store, and prints the reports.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = StoreSession::open(&args.output.config).await?;
    let (Some(plugin), Some(lasts)) = (&args.plugin, args.lasts) else {
        return end(&session.operator, args.output.json).await;
    };
    let digest = plugin.digest_in(&session).await?;
    let (nodes, silent) = shadow_nodes(&session.operator).await?;
    ensure!(!nodes.is_empty(), "no node follows the plugin store");
    let for_ms = u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX);
    let mut reports = Vec::new();
    let mut failed = 0;
    let (operator, name) = (&session.operator, &plugin.name);
    let mut begun = Vec::new();
    let began = Instant::now();
    for node in nodes {
        let asked = operator.shadow(&node, name, &digest, for_ms).await;
        begun.push((node, asked));
    }
    if !args.output.json && begun.iter().any(|(_, asked)| asked.is_ok()) {
        eprint_line(format_args!("{name}@{} runs in a shadow", digest.short()));
    }
    for (node, asked) in begun {
        let report = match asked {
            Ok(()) => wait_until_over(operator, &node, began + lasts).await,
            Err(error) => Err(error),
        };
        failed += usize::from(report.is_err());
        if !args.output.json {
            let text = match &report {
                Ok(shadow) => page(shadow),
                Err(error) => format!("  refused: {}\n", line(format_args!("{error:#}"))),
            };
            print(format_args!("{}\n{text}", line(&node.name)))?;
        }
        reports.push(match report {
            Ok(shadow) => json!({"node": node.name, "shadow": shadow}),
            Err(error) => json!({"node": node.name, "error": format!("{error:#}")}),
        });
    }
    failed += silent.len();
    for node in silent {
        if !args.output.json {
            print(format_args!("{}\n  unknown: {SILENT}\n", line(&node)))?;
        }
        reports.push(json!({"node": node, "error": SILENT}));
    }
    if args.output.json {
        print_json(json!({"plugin": name, "digest": digest, "nodes": reports}))?;
    }
    ensure!(
        failed == 0,
        "{failed} of {} nodes have no report",
        reports.len()
    );
    Ok(())
}

/// The nodes that are asked for a shadow, and those of the fleet that don't answer.
async fn shadow_nodes(operator: &Operator) -> anyhow::Result<(Vec<FoundNode>, BTreeSet<String>)> {
    let mut nodes = operator.nodes().await?;
    let silent = operator.silent(&nodes).await;
    nodes.retain(|node| node.follows_store && !node.waits);
    Ok((nodes, silent))
}

/// Ends the shadow on every node that runs one, and prints the outcome of each.
///
/// # Errors
/// If no node runs one, or a node can't be asked.
pub(super) async fn end(operator: &Operator, json: bool) -> anyhow::Result<()> {
    let (nodes, silent) = shadow_nodes(operator).await?;
    let (mut outcomes, mut failed, mut ended) = (Vec::new(), 0, 0);
    for node in nodes {
        let runs = operator.runs_shadow(&node).await;
        let done = match runs {
            Ok(true) => operator.end_shadow(&node).await.map(|()| "ended"),
            Ok(false) => Ok("no shadow runs"),
            Err(error) => Err(error),
        };
        failed += usize::from(done.is_err());
        ended += usize::from(matches!(done, Ok("ended")));
        let words = match &done {
            Ok(words) => (*words).to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if !json {
            print(format_args!("{}: {}\n", line(&node.name), line(&words)))?;
        }
        outcomes
            .push(json!({"node": node.name, "ended": matches!(done, Ok("ended")), "said": words}));
    }
    failed += silent.len();
    for node in silent {
        if !json {
            print(format_args!("{}: {SILENT}\n", line(&node)))?;
        }
        outcomes.push(json!({"node": node, "ended": false, "said": SILENT}));
    }
    if json {
        print_json(json!({"nodes": outcomes}))?;
    }
    ensure!(
        failed == 0,
        "{failed} of {} nodes can't be asked",
        outcomes.len()
    );
    ensure!(
        ended > 0,
        "no shadow runs: `presence plugins shadow NAME@DIGEST --for TIME` begins one"
    );
    Ok(())
}

/// Whether any node runs a shadow.
pub(super) async fn runs(operator: &Operator) -> bool {
    for node in operator.nodes().await.unwrap_or_default() {
        if node.follows_store && operator.runs_shadow(&node).await.unwrap_or_default() {
            return true;
        }
    }
    false
}

/// Waits until a node's shadow is over, and returns its report. It is over at `at`, or earlier if
/// somebody ends it.
async fn wait_until_over(
    operator: &Operator,
    node: &FoundNode,
    at: Instant,
) -> anyhow::Result<Value> {
    loop {
        sleep(
            at.saturating_duration_since(Instant::now())
                .clamp(POLL_MIN, POLL_MAX),
        )
        .await;
        let reports = operator.reports(node).await?;
        let shadow = reports.pointer("/shadow");
        let shadow = shadow.filter(|it| it.is_object());
        let shadow = shadow.context("it knows of no shadow: it has been restarted")?;
        if shadow.get("isOver") == Some(&Value::Bool(true)) {
            return Ok(shadow.clone());
        }
    }
}

/// A report as text.
fn page(shadow: &Value) -> String {
    // A pipeline that was never called has no times.
    let at = |pointer: &str| match &*word(shadow, &format!("/report{pointer}")) {
        "null" => "–".to_owned(),
        word => line(word),
    };
    let mut page = String::new();
    let _ = writeln!(
        page,
        "  {} decisions compared, {} of them different; {} skipped for want of time, {} for want \
         of an answer of the directory",
        at("/decisions/compared"),
        at("/decisions/different"),
        at("/decisions/skipped"),
        at("/decisions/unanswered")
    );
    let row = |what: &str, kind: &str| {
        let count = |of: &str| at(&format!("/{kind}/{of}"));
        [
            what.into(),
            count("pairs"),
            count("users"),
            count("viewers"),
        ]
    };
    let rows = [
        row("lose sight", "lost"),
        row("gain sight", "gained"),
        row("are told otherwise", "otherwise"),
    ];
    page += &text::table(["VIEWERS WHO", "PAIRS", "USERS", "VIEWERS"], &rows);
    let row = |which: &str, side: &str| {
        let of = |what: &str| at(&format!("/{side}/{what}"));
        [
            which.into(),
            of("calls"),
            of("failures"),
            of("fuelMean"),
            of("p50Micros"),
            of("p99Micros"),
        ]
    };
    let rows = [row("active", "active"), row("shadow", "candidate")];
    let titles = ["PIPELINE", "CALLS", "FAILURES", "FUEL", "P50 µs", "P99 µs"];
    page += &text::table(titles, &rows);
    let examples = shadow.pointer("/report/examples").and_then(Value::as_array);
    for example in examples.into_iter().flatten() {
        let user = line(word(example, "/userId"));
        let whys = example.get("why").and_then(Value::as_array);
        for why in whys.into_iter().flatten() {
            let viewer = line(word(why, "/viewerId"));
            let _ = writeln!(page, "{user} and {viewer}:");
            for (which, side) in [("active", "active"), ("shadow", "candidate")] {
                let stage = why.get(side).filter(|it| it.is_object());
                let Some(stage) = stage else { continue };
                let _ = writeln!(page, "  {which}: {}", what_it_does(stage, &viewer));
                for reason in reasons(stage, &user, &viewer) {
                    let _ = writeln!(page, "       {reason}");
                }
            }
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_called_has_no_times() {
        let count = json!({"pairs": 0, "users": 0, "viewers": 0});
        let side =
            json!({"calls": 0, "failures": 0, "fuelMean": 0, "p50Micros": null, "p99Micros": 1.5});
        let report = json!({
            "decisions": {"compared": 0, "different": 0, "skipped": 2, "unanswered": 0},
            "lost": count, "gained": count, "otherwise": count,
            "active": side, "candidate": side,
        });
        let page = page(&json!({"report": report}));
        assert!(page.contains("2 skipped for want of time"), "{page}");
        assert!(
            page.contains("active    0      0         0     –       1.5"),
            "{page}"
        );
    }
}
