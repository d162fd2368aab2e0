//! `presence plugins logs`

use std::collections::HashMap;

use anyhow::ensure;
use presence_config as config;
use presence_config::escape::{eprint_line, line, print_json_while_read, print_while_read};
use presence_kit::explained::word;
use presence_kit::text;
use presence_node::store::logs::RENEW;
use presence_node::store::operator::Operator;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::arguments::Output;
use crate::tenant;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The plugin's name.
    #[arg(value_parser = name)]
    name: String,
    /// Goes on printing what is logged, until SIGTERM or SIGINT.
    #[arg(long)]
    follow: bool,
    /// How many of the last lines are printed at first.
    #[arg(long, value_name = "N", default_value_t = 50)]
    last: usize,
    /// Also prints what is only for debugging. Nodes keep such lines while somebody follows
    /// them so.
    #[arg(long)]
    debug: bool,
    #[command(flatten)]
    output: Output,
}

fn name(text: &str) -> Result<String, String> {
    config::name(text).map(|()| text.to_owned())
}

/// Prints a plugin's last log lines on all nodes; with `--follow`, also the next ones.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let config = tenant::load(&args.output.config).await?;
    let operator = Operator::connect(&config).await?;
    let mut printed = Printed::default();
    if !args.follow {
        let (lines, failed) = ask(&operator, args).await?;
        let earlier = lines.len().saturating_sub(args.last);
        for line in lines.iter().skip(earlier) {
            printed.print(line, args.output.json)?;
        }
        ensure!(failed == 0, "{failed} nodes have not said what they have");
        if lines.is_empty() {
            eprint_line(format_args!("no node has log lines of `{}`", args.name));
        }
        return Ok(());
    }
    // Subscribes before the nodes are asked, so that no line is lost in between.
    let mut heard = operator.subscribe(&args.name).await?;
    let (lines, _) = ask(&operator, args).await?;
    let earlier = lines.len().saturating_sub(args.last);
    for (place, line) in lines.iter().enumerate() {
        match place < earlier {
            true => drop(printed.insert(line)),
            false => printed.print(line, args.output.json)?,
        }
    }
    eprint_line(format_args!(
        "following {} at {}; Ctrl-C ends it",
        args.name,
        config.nats.servers()
    ));
    loop {
        let again = async {
            sleep(RENEW).await;
            ask(&operator, args).await
        };
        let mut again = std::pin::pin!(again);
        loop {
            tokio::select! {
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                said = operator.wait_forbidden() => anyhow::bail!("NATS says: {said}"),
                line = heard.next() => match line {
                    Some(line) => printed.print(&line, args.output.json)?,
                    None => anyhow::bail!("the connection to NATS is closed"),
                },
                asked = &mut again => {
                    // The answer also has what a new node logged before it was asked.
                    match asked {
                        Ok((lines, _)) => for line in lines {
                            printed.print(&line, args.output.json)?;
                        },
                        Err(error) => eprint_line(format_args!("warning: {error:#}")),
                    }
                    break;
                }
            }
        }
    }
}

/// The last lines of all nodes in the order of their times, and how many nodes have not answered.
/// With `--follow`, this also makes the nodes publish further lines.
async fn ask(operator: &Operator, args: &Args) -> anyhow::Result<(Vec<Value>, usize)> {
    let mut all = Vec::new();
    let mut failed = 0;
    let mut nodes = operator.nodes().await?;
    // A node that waits for its turn calls no plugin.
    nodes.retain(|node| !node.waits);
    for node in nodes {
        let asked = operator.log_lines(&node, &args.name, args.debug, args.follow);
        match asked.await {
            Ok(lines) => all.extend(lines),
            Err(error) => {
                failed += 1;
                eprint_line(format_args!("warning: {}: {error:#}", node.name));
            }
        }
    }
    // The sort is stable: lines of one node keep their order.
    all.sort_by_key(|line| number(line, "timestamp"));
    Ok((all, failed))
}

/// The epoch and number of the line that was printed last, for each node.
#[derive(Default)]
struct Printed(HashMap<String, (u64, u64)>);

impl Printed {
    /// Marks a line as printed. Returns whether it was not printed before.
    fn insert(&mut self, line: &Value) -> bool {
        let last = self.0.entry(word(line, "/node")).or_default();
        let this = (number(line, "epoch"), number(line, "seq"));
        let is_new = this.0 != last.0 || this.1 > last.1;
        if is_new {
            *last = this;
        }
        is_new
    }

    fn print(&mut self, line: &Value, json: bool) -> anyhow::Result<()> {
        if !self.insert(line) {
            return Ok(());
        }
        match json {
            true => print_json_while_read(line)?,
            false => print_while_read(format_args!("{}\n", sentence(line)))?,
        }
        Ok(())
    }
}

fn number(line: &Value, key: &str) -> u64 {
    line.get(key).and_then(Value::as_u64).unwrap_or_default()
}

/// A log line as text.
fn sentence(record: &Value) -> String {
    let word = |key: &str| line(word(record, key));
    let time = text::time(number(record, "timestamp"));
    let generation = match record.get("generation").and_then(Value::as_u64) {
        Some(generation) => format!("  generation {generation}"),
        None => String::new(),
    };
    let left_out = match number(record, "leftOut") {
        0 => String::new(),
        count => format!("  ({count} lines before this one were left out)"),
    };
    format!(
        "{time}  {}{generation}  {:5}  {}{left_out}",
        word("/node"),
        word("/level"),
        word("/text")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_line_is_printed_once_and_in_one_line() {
        let record = |epoch: u64, seq: u64| {
            json!({
                "node": "n", "epoch": epoch, "seq": seq, "timestamp": 1_698_000_000_000_u64,
                "generation": 3, "level": "info", "text": "a\nb", "leftOut": seq - 1,
            })
        };
        let mut printed = Printed::default();
        let new = [(1, 1), (1, 2), (1, 1), (1, 2), (1, 3), (2, 1), (2, 1)];
        let new = new.map(|(epoch, seq)| printed.insert(&record(epoch, seq)));
        assert_eq!(new, [true, true, false, false, true, true, false]);
        assert_eq!(
            sentence(&record(1, 1)),
            "2023-10-22 18:40:00 UTC  n  generation 3  info   a\\nb"
        );
        let left_out = sentence(&record(1, 3));
        assert!(left_out.ends_with("a\\nb  (2 lines before this one were left out)"));
    }
}
