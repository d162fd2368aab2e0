//! Tenants in the store that can't be served: commands say so as soon as nodes know it.

use anyhow::{Context as _, Result, ensure};
use async_nats::service::Info;
use presence_tests::host::{self, Host};
use presence_tests::nats::{NatsServer, Options};
use presence_tests::site::Site;
use presence_tests::wait;
use serde_json::{Value, json};
use toml::Table;

use crate::tenants_store::{apply, done, failed, node, section, until_states};

/// What a node answers about a tenant to a command.
async fn answer_about(server: &NatsServer, tenant: &str) -> Result<Value> {
    let client = async_nats::connect(server.url()).await?;
    let inbox = client.new_inbox();
    let mut replies = client.subscribe(inbox.clone()).await?;
    client
        .publish_with_reply("$SRV.INFO.presence", inbox, "".into())
        .await?;
    let id = loop {
        let next = futures_util::StreamExt::next(&mut replies);
        let reply = wait::guarded("a node's answer", next).await?;
        let info: Info = serde_json::from_slice(&reply.context("an answer")?.payload)?;
        if info.metadata.contains_key("tenants") {
            break info.id;
        }
    };
    let request = json!({"states": [tenant]}).to_string();
    let asked = client.request(format!("presence.admin.tenants.{id}"), request.into());
    let reply = wait::guarded("what it is at", asked).await??;
    let told: Value = serde_json::from_slice(&reply.payload)?;
    Ok(told["tenants"][0].clone())
}

#[tokio::test]
async fn one_without_a_pipeline_is_not_waited_for() -> Result<()> {
    let (host, site, server) = node().await?;
    let said = done(apply(&site, "[[tenant]]\nname = 'beta'\n")?)?;
    ensure!(
        said.contains("beta impaired: no pipeline revision is in force"),
        "{said}"
    );
    let beta = answer_about(&server, "beta").await?;
    ensure!(beta["lasts"] == true, "{beta}");
    let acme = answer_about(&server, "acme").await?;
    ensure!(acme["lasts"] == false, "{acme}");
    host.stop().await
}

const LOGINS: &str = "accounts {
  MAIN { jetstream: enabled, users: [{user: node, password: p1}] }
  OWN { users: [{user: own, password: p2}] }
}";

#[tokio::test]
async fn one_whose_login_is_refused_is_said_to_be_until_the_login_is_mended() -> Result<()> {
    let server = NatsServer::start_with(Options {
        config: LOGINS.into(),
        ..Options::default()
    })
    .await?;
    let site = Site::new(&server.url())?
        .with("nats.user", "node")?
        .with("nats.password", "p1")?
        .with("plugins.source", "store")?
        .with("plugins.load_timeout_ms", 30_000)?
        .with("tenant", Vec::<Table>::new())?;
    let mut host = Host::spawn(&site)?;
    host.wait_for_log(0, &["tenants come from the store"])
        .await?;
    let own = |password: &str| {
        let more = format!("[tenant.nats]\nuser = 'own'\npassword = '{password}'\n");
        section("own", &format!("prefix = ''\n{more}"))
    };
    let output = apply(&site, &own("wrong"))?;
    let why = failed(&output)?;
    ensure!(why.contains("1 of 1 nodes don't do it"), "{why}");
    let said = String::from_utf8(output.stdout)?;
    ensure!(
        said.contains("own starting: not connected to NATS: authorization violation"),
        "{said}"
    );
    let said = done(apply(&site, &own("p2"))?)?;
    ensure!(said.contains("own serving"), "{said}");
    until_states(&site, &[("own", "serving")]).await?;
    host.stop().await
}

const ONE_ACCOUNT: &str = "accounts {
  MAIN { jetstream: enabled, users: [{user: node, password: p1}] }
  OWN { users: [{user: one, password: p2}, {user: two, password: p3}] }
}";

/// A tenant with a login of its own.
fn with_login(name: &str, prefix: &str, user: &str, password: &str) -> String {
    let more = format!("[tenant.nats]\nuser = '{user}'\npassword = '{password}'\n");
    section(name, &format!("prefix = '{prefix}'\n{more}"))
}

#[tokio::test]
async fn one_with_another_login_of_the_account_of_another_tenant_does_not_get_its_subjects()
-> Result<()> {
    let server = NatsServer::start_with(Options {
        config: ONE_ACCOUNT.into(),
        ..Options::default()
    })
    .await?;
    let site = Site::new(&server.url())?
        .with("nats.user", "node")?
        .with("nats.password", "p1")?
        .with("plugins.source", "store")?
        .with("tenant", Vec::<Table>::new())?;
    let mut host = Host::spawn(&site)?;
    host.wait_for_log(0, &["tenants come from the store"])
        .await?;
    let said = done(apply(&site, &with_login("one", "", "one", "p2"))?)?;
    ensure!(said.contains("one serving"), "{said}");
    // This is refused before it is written.
    let why = failed(&apply(&site, &with_login("two", "", "two", "p3"))?)?;
    for words in [
        "the tenant `two` would have the subjects of `one`: both logins are of one NATS account",
        "nothing was written",
    ] {
        ensure!(why.contains(words), "{why}");
    }
    until_states(&site, &[("one", "serving")]).await?;
    let said = done(apply(&site, &with_login("two", "two", "two", "p3"))?)?;
    ensure!(said.contains("two serving"), "{said}");
    // What others write is taken, and waits.
    let nats = async_nats::ConnectOptions::with_user_and_password("node".into(), "p1".into());
    let nats = nats.connect(server.url()).await?;
    let bucket = async_nats::jetstream::new(nats);
    let bucket = bucket.get_key_value("presence-tenants").await?;
    let twin = json!({"section": with_login("two", "", "two", "p3")}).to_string();
    bucket.put("two", twin.into()).await?;
    let states = [("one", "serving"), ("two", "waiting")];
    until_states(&site, &states).await?;
    let listed = done(host::run(&site, &["tenants", "show", "two"])?)?;
    let why = "waiting while the tenant `one` has the same subjects";
    ensure!(listed.contains(why), "{listed}");
    host.stop().await
}
