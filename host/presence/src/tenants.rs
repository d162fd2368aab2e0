//! `presence tenants`: the state of each tenant of a running node, and the reason, requested over
//! HTTP as in `presence status`; and changes of the tenants in the store.

mod change;

use std::net::SocketAddr;

use anyhow::Context as _;
use presence_config::escape::{line, print, print_json};
use presence_kit::text::{plain, table};
use serde_json::Value;

use crate::ask::RequestArgs;
use crate::status;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Lists the tenants.
    #[command(after_help = "Example:\n  presence tenants list --json")]
    List(ListArgs),
    /// Prints all that there is to say of a tenant.
    #[command(after_help = "Example:\n  presence tenants show acme")]
    Show(ShowArgs),
    /// Writes a file's tenants into the store, and waits until every node is done with them.
    #[command(
        after_help = "Example:\n  presence tenants apply gamma.toml --why 'a new customer'\n\nThe file has [[tenant]] sections, as presence.toml has them, and nothing else. Every node\nvalidates them before they are written; if one refuses them, nothing is written. A tenant that\nis paused stays so. The exit code is 1 if a node doesn't serve one."
    )]
    Apply(change::ApplyArgs),
    /// Has a tenant of the store rest: its state is kept, and nothing of it is served.
    #[command(after_help = "Example:\n  presence tenants pause gamma --yes")]
    Pause(change::NameArgs),
    /// Has a tenant of the store be served again.
    #[command(after_help = "Example:\n  presence tenants resume gamma --yes")]
    Resume(change::NameArgs),
    /// Takes a tenant out of the store: its state stays on the disks of nodes.
    #[command(after_help = "Example:\n  presence tenants remove gamma --why 'it has left' --yes")]
    Remove(change::NameArgs),
}

#[derive(clap::Args)]
pub(crate) struct ListArgs {
    /// The address of the node's HTTP endpoint, instead of the configuration's.
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    #[command(flatten)]
    common: RequestArgs,
}

#[derive(clap::Args)]
pub(crate) struct ShowArgs {
    /// The tenant's name.
    name: String,
    #[command(flatten)]
    node: ListArgs,
}

/// Asks, and prints the answer.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    let node = match command {
        Command::List(node) => node,
        Command::Show(show) => &show.node,
        _ => return crate::runtime::wait_for(change::run(command)),
    };
    let answer = status::of_node(node.http, &node.common.config)?;
    anyhow::ensure!(
        answer.get("tenants").is_some(),
        "this node has one tenant, and its configuration no [[tenant]] sections: \
         `presence status` says what it runs"
    );
    match (command, node.common.json) {
        (Command::List(_), true) => print_json(answer.get("tenants").cloned().unwrap_or_default())?,
        (Command::List(_), false) => print(page(&answer))?,
        (Command::Show(show), true) => print_json(find(&answer, &show.name)?.clone())?,
        (Command::Show(show), false) => print(tenant_page(find(&answer, &show.name)?))?,
        _ => {}
    }
    Ok(())
}

/// Finds a tenant in a node's status.
///
/// # Errors
/// If it has no such tenant.
pub(crate) fn find<'a>(status: &'a Value, name: &str) -> anyhow::Result<&'a Value> {
    let tenants = status.get("tenants").and_then(Value::as_array);
    let mut tenants = tenants.into_iter().flatten();
    let found = tenants.find(|it| it.get("tenant").and_then(Value::as_str) == Some(name));
    found.with_context(|| {
        format!("this node has no tenant `{name}`: `presence tenants list` has all of them")
    })
}

/// All tenants of a node, a line each.
pub(crate) fn page(status: &Value) -> String {
    let tenants = status.get("tenants").and_then(Value::as_array);
    let rows: Vec<_> = tenants.into_iter().flatten().map(row).collect();
    let mut page = table(
        ["TENANT", "PREFIX", "STATE", "ONLINE", "PIPELINE", "WHY"],
        &rows,
    );
    if let Some(why) = status.get("notTaken").filter(|why| why.is_string()) {
        page.push_str(&format!(
            "\nthe configuration on disk is not in force: {}\n",
            line(plain(why))
        ));
    }
    page
}

fn row(tenant: &Value) -> [String; 6] {
    let word = |pointer: &str| tenant.pointer(pointer).map(plain).unwrap_or_default();
    let prefix = match tenant.get("prefix").and_then(Value::as_str) {
        Some(prefix) => prefix.to_owned(),
        None => "-".into(),
    };
    let account = tenant.get("ownAccount") == Some(&Value::Bool(true));
    [
        line(word("/tenant")),
        if account {
            format!("{prefix} (own connection)")
        } else {
            prefix
        },
        word("/state"),
        word("/status/serving/onlineUsers"),
        line(plugins(tenant).join(" → ")),
        line(why(tenant).first().cloned().unwrap_or_default()),
    ]
}

fn plugins(tenant: &Value) -> Vec<String> {
    let stages = tenant.pointer("/status/serving/pipeline");
    let stages = stages.and_then(Value::as_array).into_iter().flatten();
    stages
        .filter_map(|stage| Some(plain(stage.get("plugin")?)))
        .collect()
}

/// Why a tenant is not as it should be.
fn why(tenant: &Value) -> Vec<String> {
    let reasons = tenant.get("reasons").and_then(Value::as_array);
    let reasons = reasons.into_iter().flatten().map(plain);
    let not_taken = tenant.get("notTaken").filter(|why| why.is_string());
    let not_taken = not_taken.map(|why| format!("its section is not in force: {}", plain(why)));
    let not_in_force = tenant.pointer("/status/serving/notInForce");
    let not_in_force = not_in_force.and_then(Value::as_array).into_iter().flatten();
    let not_in_force = not_in_force.map(|it| {
        let word = |key: &str| it.get(key).map(plain).unwrap_or_default();
        format!("its {} is not in force: {}", word("what"), word("why"))
    });
    reasons.chain(not_taken).chain(not_in_force).collect()
}

fn tenant_page(tenant: &Value) -> String {
    let word = |pointer: &str| tenant.pointer(pointer).map(plain).unwrap_or_default();
    let mut page = format!("tenant {}: {}\n", line(word("/tenant")), word("/state"));
    for why in why(tenant) {
        page.push_str(&format!("  {}\n", line(why)));
    }
    if let Some(status) = tenant.get("status").filter(|status| status.is_object()) {
        page.push_str(&status::page(status));
    }
    page
}
