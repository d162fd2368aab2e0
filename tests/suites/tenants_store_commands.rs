//! Commands about a tenant that is in the store, and not in the file that the commands read.

use std::fs;

use anyhow::Result;
use presence_tests::client::now_ms;
use presence_tests::host::{self, Host};
use presence_tests::nats::NatsServer;
use presence_tests::site::Site;
use presence_tests::wait;

use crate::inputs;
use crate::tenants_store::{apply, change, done, failed, until_states};

#[tokio::test]
async fn commands_find_a_tenant_of_the_store_by_its_name() -> Result<()> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?
        .with("state.dir", "state")?
        .with("plugins.source", "store")?
        .with("tenant", toml::Value::Array(Vec::new()))?;
    let host = Host::spawn(&site)?;
    let section = "[[tenant]]\nname = 'beta'\n";
    wait::until("the node to answer", async || {
        Ok(done(apply(&site, section)?).ok())
    })
    .await?;
    let pipeline = site.path().join("pipeline.toml");
    fs::write(
        &pipeline,
        "[[pipeline]]\nplugin = 'contacts'\n[[pipeline]]\nplugin = 'redact'\n",
    )?;
    let pipeline = pipeline.to_string_lossy().into_owned();
    let applied = ["pipeline", "apply", &pipeline, "--tenant", "beta", "--yes"];
    done(host::run(&site, &applied)?)?;
    until_states(&site, &[("beta", "serving")]).await?;
    let connected = inputs::connect("12345", "c1", now_ms()).to_string();
    let event = [
        "pub",
        "event",
        "--tenant",
        "beta",
        "presence.connect",
        &connected,
    ];
    done(host::run(&site, &event)?)?;
    let asked = ["query", "--tenant", "beta", "67890", "12345"];
    let answer = done(host::run(&site, &asked)?)?;
    anyhow::ensure!(answer.contains("12345"), "{answer}");
    let why = failed(&host::run(
        &site,
        &["query", "--tenant", "x", "67890", "12345"],
    )?)?;
    anyhow::ensure!(why.contains("nor in the store"), "{why}");
    let why = failed(&host::run(&site, &["query", "67890", "12345"])?)?;
    anyhow::ensure!(why.contains("`presence tenants list` shows"), "{why}");
    // About a paused tenant, each command says that it is paused.
    change(&site, "pause", "beta")?;
    fs::write(&pipeline, "[[pipeline]]\nplugin = 'contacts'\n")?;
    let is_paused =
        "the tenant `beta` is paused, and no node serves it: `presence tenants resume beta`";
    for args in [&applied[..], &asked] {
        let why = failed(&host::run(&site, args)?)?;
        anyhow::ensure!(why.contains(is_paused), "{args:?}: {why}");
    }
    change(&site, "resume", "beta")?;
    let output = host::run(&site, &applied)?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    anyhow::ensure!(!said.contains("paused"), "{said}");
    host.stop().await
}
