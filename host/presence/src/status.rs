//! `presence status`: what a running node runs, and what is wrong with it. It asks over HTTP, where
//! the node serves its health: this works on the node's machine, without rights on the broker.

mod fetch;
mod store;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, ensure};
use presence_config::Problems;
use presence_config::escape::{eprint_line, print, print_json};
use presence_kit::ConfigArg;
use presence_kit::text::{columns, plain, time};
use presence_node::clock;
use serde_json::Value;

use crate::ask::RequestArgs;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The address of the node's HTTP endpoint, instead of the configuration's.
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    #[command(flatten)]
    common: RequestArgs,
}

/// Asks, and prints the answer.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut status = of_node(args.http, &args.common.config)?;
    if let Some(tenant) = &args.common.config.tenant {
        status = of_tenant(&status, tenant)?;
    } else if status.get("tenants").is_some() {
        if args.common.json {
            return Ok(print_json(status)?);
        }
        return Ok(print(crate::tenants::page(&status))?);
    }
    if args.common.json {
        return Ok(print_json(status)?);
    }
    Ok(print(page(&status))?)
}

/// The status of one tenant, from a node's status.
///
/// # Errors
/// If it has no such tenant, or the tenant isn't served.
pub(crate) fn of_tenant(status: &Value, name: &str) -> anyhow::Result<Value> {
    let tenant = crate::tenants::find(status, name)?;
    let status = tenant.get("status").filter(|status| status.is_object());
    let state = tenant.get("state").map(plain).unwrap_or_default();
    let status = status.with_context(|| {
        format!("the tenant `{name}` is {state}: `presence tenants show {name}` says why")
    })?;
    Ok(status.clone())
}

/// A node's status, from an address, or from where its configuration says that it listens.
///
/// # Errors
/// If no address is configured, or no node answers there.
pub(crate) fn of_node(http: Option<SocketAddr>, config: &ConfigArg) -> anyhow::Result<Value> {
    let address = reachable(match http {
        Some(address) => address,
        None => configured(config)?,
    });
    let answer = fetch::get(address, "/status").with_context(|| {
        format!(
            "no node answers on http://{address} (is `presence run` up, with this [http] listen?)"
        )
    })?;
    let status: Value = serde_json::from_str(&answer).ok().with_context(|| {
        format!("what answers on http://{address} is no node of presence, or of an earlier version")
    })?;
    ensure!(
        status.get("node").is_some_and(Value::is_string),
        "what answers on http://{address} is no node of presence"
    );
    Ok(status)
}

/// Where the node listens according to its configuration. Other problems in the configuration are
/// only warnings: they may be the reason for asking.
fn configured(config: &ConfigArg) -> anyhow::Result<SocketAddr> {
    // The process has one address for all of its tenants.
    let read = config
        .read_all()
        .context("give the address that the node listens on with --http")?;
    for problem in read.problems.iter().flat_map(Problems::iter) {
        eprint_line(format_args!("warning: {problem}"));
    }
    let listens = read.config.http.listen;
    listens.context("[http] listen is empty: such a node serves no status")
}

/// The address to ask: a node that listens on all addresses is asked on the loopback address.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

pub(crate) fn page(status: &Value) -> String {
    let word = |pointer: &str| status.pointer(pointer).map(plain).unwrap_or_default();
    let number = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64);
    let is = |pointer: &str| status.pointer(pointer) == Some(&Value::Bool(true));
    let configuration = match status.get("configuration") {
        Some(Value::String(_)) => word("/configuration"),
        _ => "the defaults".into(),
    };
    let connected = if is("/nats/connected") {
        "connected"
    } else {
        "not connected"
    };
    let mut rows = vec![
        row(
            "node",
            format!("{} (process {})", word("/node"), word("/process")),
        ),
        row("version", word("/version")),
        row("started", time(number("/startedAt").unwrap_or_default())),
        row("configuration", configuration),
        row("NATS", format!("{}, {connected}", word("/nats/servers"))),
    ];
    let serves = status.get("serving").is_some_and(Value::is_object);
    if serves {
        let count = |pointer: &str, of: &str| pluralised(number(pointer).unwrap_or_default(), of);
        let users = count("/serving/onlineUsers", "user");
        let connections = count("/serving/connections", "connection");
        rows.push(row("online", format!("{users}, {connections}")));
        rows.push(row("directory", word("/serving/directory")));
        rows.extend(fleet(status));
        let state = if is("/serving/state") {
            "kept"
        } else if status
            .pointer("/serving/fleet")
            .is_some_and(Value::is_object)
        {
            "kept by the nodes that stand by"
        } else {
            "not kept over a restart"
        };
        rows.push(row("state", state.into()));
        let generation = word("/serving/generation");
        let stages = status
            .pointer("/serving/pipeline")
            .and_then(Value::as_array);
        for (place, stage) in stages.into_iter().flatten().enumerate() {
            let title = match place {
                0 => format!("pipeline {generation}"),
                _ => String::new(),
            };
            rows.push([title, plugin(stage)]);
        }
        rows.extend(store::rows(status));
    }
    if let Some(pending) = number("/serving/pendingDecisions").filter(|pending| *pending > 0) {
        let oldest_s = number("/serving/oldestPendingMs").unwrap_or_default() / 1_000;
        rows.push(row(
            "PENDING",
            format!(
                "{}, the oldest for {oldest_s} s: the log, `presence dlq list` and `presence \
                 explain` say why",
                pluralised(pending, "decision")
            ),
        ));
    }
    for (place, reason) in lines(status, "/reasons").into_iter().enumerate() {
        let title = if place == 0 { "NOT READY" } else { "" };
        rows.push(row(title, reason));
    }
    if is("/ready") {
        rows.push(row("ready", "yes".into()));
    }
    let mut page = columns(&rows);
    page.push_str(&not_in_force(status));
    page
}

/// The rows about the fleet. Empty for a node that is in none.
fn fleet(status: &Value) -> Vec<[String; 2]> {
    let Some(fleet) = status.pointer("/serving/fleet").filter(|it| it.is_object()) else {
        return Vec::new();
    };
    let number = |key: &str| fleet.get(key).and_then(Value::as_u64).unwrap_or_default();
    let nodes = fleet.get("nodes").and_then(Value::as_object);
    let nodes = nodes.into_iter().flatten().map(|(node, about)| {
        let owned = about.get("owned").and_then(Value::as_u64);
        format!("{node} ({})", owned.unwrap_or_default())
    });
    let nodes: Vec<_> = nodes.collect();
    let mut rows = vec![
        row(
            "fleet",
            format!(
                "owns {} of {} shards, and stands by for {}",
                number("owned"),
                number("shards"),
                number("inStep")
            ),
        ),
        row(
            "",
            format!("nodes, with the shards of each: {}", nodes.join(", ")),
        ),
    ];
    if number("ownerless") > 0 {
        let ownerless = format!("{} shards have no owner", number("ownerless"));
        rows.push(row("", ownerless));
    }
    if fleet.get("inTouch") == Some(&Value::Bool(false)) {
        rows.push(row("", "the fleet's bucket can't be reached".into()));
    }
    rows
}

/// The text about files on disk that are not in force. Empty if all are.
fn not_in_force(status: &Value) -> String {
    let mut text = String::new();
    let refused = status
        .pointer("/serving/notInForce")
        .and_then(Value::as_array);
    for refused in refused.into_iter().flatten() {
        let word = |key: &str| refused.get(key).map(plain).unwrap_or_default();
        let since_ms = refused
            .get("since")
            .and_then(Value::as_u64)
            .unwrap_or_default();
        let seconds = clock::now_ms().saturating_sub(since_ms) / 1_000;
        let _ = writeln!(
            text,
            "\nNOT IN FORCE: the {} on disk, since {} ({seconds} s):",
            word("what"),
            time(since_ms)
        );
        let why = refused
            .get("why")
            .and_then(Value::as_str)
            .unwrap_or_default();
        for line in why.lines() {
            let _ = writeln!(text, "  {}", presence_config::escape::line(line));
        }
    }
    let sections = lines(status, "/serving/restartNeeded");
    if !sections.is_empty() {
        let sections: Vec<_> = sections
            .iter()
            .map(|section| format!("[{section}]"))
            .collect();
        let _ = writeln!(
            text,
            "\nNOT IN FORCE until the node is started again: {}",
            sections.join(", ")
        );
    }
    text
}

fn plugin(stage: &Value) -> String {
    let word = |key: &str| stage.get(key).map(plain).unwrap_or_default();
    let sha256 = word("sha256");
    let digest = sha256.get(..12).unwrap_or(&sha256);
    let quarantined = match stage.get("quarantined") {
        Some(Value::Bool(true)) => ", IN QUARANTINE",
        _ => "",
    };
    let (name, version, source) = (word("plugin"), word("version"), word("source"));
    let failed = failures(stage).unwrap_or_default();
    format!("{name} {version} ({source}, sha256:{digest}{quarantined}){failed}")
}

/// How often a plugin has failed, and when it last did.
fn failures(stage: &Value) -> Option<String> {
    let number = |key: &str| stage.get(key).and_then(Value::as_u64);
    let failures = number("failures").filter(|failures| *failures > 0)?;
    let last_ms = number("lastFailure")?;
    let ago_s = clock::now_ms().saturating_sub(last_ms) / 1_000;
    let times = pluralised(failures, "time");
    Some(format!(": FAILED {times}, last {ago_s} s ago"))
}

/// A number of things, in words.
fn pluralised(number: u64, of: &str) -> String {
    let end = if number == 1 { "" } else { "s" };
    format!("{number} {of}{end}")
}

fn lines(status: &Value, pointer: &str) -> Vec<String> {
    let lines = status.pointer(pointer).and_then(Value::as_array);
    lines.into_iter().flatten().map(plain).collect()
}

fn row(title: &str, what: String) -> [String; 2] {
    [title.into(), what]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_node_says_commands_no_terminal_and_may_lack_anything() {
        let hostile = json!({
            "node": "a\u{1b}[2J\nready  yes",
            "reasons": ["b\u{9b}\n"],
            "serving": {"notInForce": [{"what": "pipeline", "since": 1, "why": "c\u{1b}\nd"}]},
        });
        let page = page(&hostile);
        assert!(!page.contains(['\u{1b}', '\u{9b}']), "{page}");
        assert!(page.contains("a\\u{1b}[2J\\nready"), "{page}");
        assert!(page.contains("  c\\u{1b}\n  d\n"), "{page}");
        assert!(super::page(&json!({})).contains("node"));
    }

    #[test]
    fn what_listens_everywhere_is_asked_on_this_machine() {
        for (listens, asked) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:1", "[::1]:1"),
            ("10.0.0.1:1", "10.0.0.1:1"),
        ] {
            let address = reachable(listens.parse().unwrap());
            assert_eq!(address, asked.parse().unwrap());
        }
    }
}
