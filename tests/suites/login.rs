//! How a node logs in to the broker: what is changed while it runs counts at its next
//! connection, and nothing is said in clear where encryption is asked for.

use std::fs;

use anyhow::{Context, Result};
use nkeys::KeyPair;
use presence_tests::host::{self, Host};
use presence_tests::nats::{NatsServer, Options};
use presence_tests::site::Site;
use serde_json::Value;

const CA: &str = include_str!("login.ca.pem");

/// A server that lets in one user, by these lines of its configuration.
fn lets_in(user: &str) -> String {
    format!("authorization {{ users = [ {{ {user} }} ] }}")
}

async fn server(user: &str) -> Result<NatsServer> {
    let config = lets_in(user);
    NatsServer::start_with(Options {
        config,
        ..Options::default()
    })
    .await
}

/// A new key: what the server is told of it, and its seed.
fn key() -> Result<(String, String)> {
    let key = KeyPair::new_user();
    Ok((format!("nkey: {}", key.public_key()), key.seed()?))
}

#[tokio::test]
async fn a_key_that_was_changed_on_disk_is_used_at_the_next_connection() -> Result<()> {
    let (first, seed) = key()?;
    let mut server = server(&first).await?;
    let site = Site::new(&server.url())?.with("nats.nkey", "node.nk")?;
    fs::write(site.path().join("node.nk"), seed)?;
    let mut host = Host::start(&site).await?;

    let (second, seed) = key()?;
    fs::write(site.path().join("node.nk"), seed)?;
    server.stop().await?;
    host.unready().await?;
    server.set_config(&lets_in(&second))?;
    server.resume().await?;
    host.ready().await?;
    host.stop().await
}

#[tokio::test]
async fn a_token_that_was_changed_in_the_configuration_is_used_at_the_next_connection() -> Result<()>
{
    let mut server = NatsServer::start_with(Options {
        config: "authorization { token: first }".into(),
        ..Options::default()
    })
    .await?;
    let mut site = Site::new(&server.url())?.with("nats.token", "first")?;
    let mut host = Host::start(&site).await?;

    let from = host.log_len();
    site.set("nats.token", "second")?;
    host.wait_for_log(from, &["configuration reloaded"]).await?;
    server.stop().await?;
    host.unready().await?;
    server.set_config("authorization { token: second }")?;
    server.resume().await?;
    host.ready().await?;
    let said = host.process.stderr().join("\n");
    assert!(!said.contains("next start"), "{said}");
    host.stop().await
}

#[tokio::test]
async fn an_address_may_carry_the_login_and_nothing_prints_it() -> Result<()> {
    let server = server(r#"user: presence, password: "p@ss/w:rd""#).await?;
    let at = server.url().replace("nats://", "");
    let url = format!("nats://presence:p%40ss%2Fw%3Ard@{at}");
    let site = Site::new(&url)?.with("log.level", "trace")?;
    let host = Host::start(&site).await?;
    let question = ["query", "ada", "ben", "--json"];
    let answer = host::run(&site, &question)?;
    let printed = String::from_utf8_lossy(&answer.stdout).into_owned();
    let answer: Value = serde_json::from_str(&printed).context(printed)?;
    assert_eq!(answer["users"][0]["status"], "offline");
    let said = host.process.stderr().join("\n");
    assert!(said.contains(&at), "{said}");
    for secret in ["p%40ss", "p@ss", "w:rd"] {
        assert!(!said.contains(secret), "the log has the password");
    }
    host.stop().await
}

#[tokio::test]
async fn a_server_without_tls_is_refused_where_a_certificate_is_set() -> Result<()> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?.with("nats.tls.ca", "ca.pem")?;
    fs::write(site.path().join("ca.pem"), CA)?;
    let mut host = Host::spawn(&site)?;
    let words = ["can't reach nats", "doesn't speak TLS"];
    host.wait_for_log(0, &words).await?;
    let said = host.process.stderr().join("\n");
    assert!(!said.contains("connected to NATS"), "{said}");
    host.stop().await
}
