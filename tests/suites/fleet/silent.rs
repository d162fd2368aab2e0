//! A node of a fleet that is frozen: each command that asks all nodes names it, and fails.

use anyhow::{Result, ensure};
use presence_tests::component;
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::process::Signal;
use presence_tests::site::Site;
use toml::Table;

use super::{Node, SHARDS, are_settled, hosts};
use crate::store::{self, CONTACTS, plugin, push, run_err};
use crate::tenants_store::section;

/// Longer than a command takes, so that the frozen node is one of the fleet all the while.
const LEASE_MS: i64 = 20_000;

/// A node whose pipeline is the store's.
fn site(server: &NatsServer, name: &str) -> Result<Site> {
    Site::new(&server.url())?
        .with("node.name", name)?
        .with("fleet.enabled", true)?
        .with("fleet.shards", i64::try_from(SHARDS)?)?
        .with("fleet.lease_ms", LEASE_MS)?
        .with("tracker.timeout_ms", 2 * LEASE_MS)?
        .with("plugins.source", "store")
}

fn start(site: Site) -> Result<Node> {
    let host = Host::spawn(&site)?;
    Ok(Node { host, site })
}

/// What a command says that fails while a node is frozen.
fn while_frozen(frozen: &Node, site: &Site, args: &[&str]) -> Result<String> {
    frozen.host.process.signal(Signal::STOP)?;
    let said = run_err(site, args);
    frozen.host.process.signal(Signal::CONT)?;
    said
}

#[tokio::test]
async fn a_change_of_tenants_names_the_node_that_does_not_answer() -> Result<()> {
    let server = NatsServer::start().await?;
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let mut of_file = Table::new();
        of_file.insert("name".into(), "beta".into());
        let mut plugins = Table::new();
        plugins.insert("source".into(), "folder".into());
        of_file.insert("plugins".into(), plugins.into());
        nodes.push(start(site(&server, name)?.with("tenant", vec![of_file])?)?);
    }
    for node in &mut nodes {
        node.host.ready().await?;
    }
    let [a, b] = &nodes[..] else {
        anyhow::bail!("two nodes");
    };
    let path = a.site.path().join("tenants.toml");
    // Its fleet is turned off, so that it is served at once.
    let alone = "[tenant.fleet]\nenabled = false\n";
    std::fs::write(&path, section("acme", alone))?;
    let path = path.to_string_lossy();
    for args in [
        &["apply", &path][..],
        &["pause", "acme"],
        &["resume", "acme"],
        &["remove", "acme"],
    ] {
        let args = [&["tenants"], args, &["--yes"]].concat();
        let said = while_frozen(b, &a.site, &args)?;
        for words in [
            "node b: unknown: it is one of the fleet and doesn't answer; it takes what the store says",
            "it is written, and 1 of 2 nodes don't do it",
        ] {
            ensure!(said.contains(words), "{args:?}: {said}");
        }
        ensure!(said.contains("node a: acme "), "{args:?}: {said}");
    }
    Ok(())
}

#[tokio::test]
async fn a_change_of_the_pipeline_names_the_node_that_does_not_answer() -> Result<()> {
    let server = NatsServer::start().await?;
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        nodes.push(start(site(&server, name)?)?);
    }
    for node in &mut nodes {
        node.host.wait_for_log(0, &["ready node="]).await?;
    }
    let [a, b] = &nodes[..] else {
        anyhow::bail!("two nodes");
    };
    store::apply(&a.site, CONTACTS)?;
    are_settled(&hosts(&nodes)).await?;
    let bytes = component::named(&component::load("groups")?, "contacts")?;
    let digest = push(&a.site, &plugin(&a.site, "other.wasm", &bytes)?)?;
    let other = format!("contacts@{digest}");
    let path = a.site.path().join("groups.toml");
    std::fs::write(&path, "[[pipeline]]\nplugin = \"groups\"\n")?;
    let path = path.to_string_lossy();
    let one_percent = ["plugins", "canary", &*other, "--percent", "1", "--yes"];
    for args in [
        &one_percent[..],
        &["plugins", "abort", "--yes"],
        &one_percent,
        &["plugins", "promote", "--yes"],
        &["plugins", "rollback", "--yes"],
        &["plugins", "activate", &other, "--yes"],
        &["pipeline", "apply", &path, "--yes"],
        &["pipeline", "rollback", "--yes"],
    ] {
        let said = while_frozen(b, &a.site, args)?;
        for words in [
            "b  unknown: it is one of the fleet and doesn't answer; it takes the newest revision",
            "not in force on 1 of 2 nodes",
            "a  in force",
        ] {
            ensure!(said.contains(words), "{args:?}: {said}");
        }
    }
    store::apply(&a.site, CONTACTS)?;
    let args = ["plugins", "shadow", &*other, "--for", "100ms"];
    let said = while_frozen(b, &a.site, &args)?;
    for words in [
        "b\n  unknown: it is one of the fleet and doesn't answer",
        "1 of 2 nodes have no report",
    ] {
        ensure!(said.contains(words), "{said}");
    }
    let said = while_frozen(b, &a.site, &["plugins", "shadow", "--end"])?;
    let words = "b: it is one of the fleet and doesn't answer";
    ensure!(said.contains(words), "{said}");
    Ok(())
}
