//! How a node logs in to the broker. A login that changes while the node runs counts at its next
//! connection. Nothing is sent in clear if encryption is required.

use std::fs;

use anyhow::{Context, Result, ensure};
use nkeys::KeyPair;
use presence_tests::host::{self, Host};
use presence_tests::identity::{Authority, OperatorServer};
use presence_tests::nats::{NatsServer, Options};
use presence_tests::site::Site;
use serde_json::Value;
use tempfile::TempDir;

const CA: &str = include_str!("login.ca.pem");

/// A server that lets in one user, with these lines of configuration.
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

/// A new key: the server's configuration for it, and its seed.
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

/// A server with TLS, and the folder of its files. `asks`: whether it asks clients for
/// certificates.
async fn encrypted(authority: &Authority, asks: bool) -> Result<(NatsServer, TempDir)> {
    let folder = tempfile::tempdir()?;
    authority.issue("127.0.0.1", folder.path(), "server")?;
    fs::write(folder.path().join("ca.pem"), authority.pem())?;
    let path = |file: &str| folder.path().join(file).display().to_string();
    let config = format!(
        "tls {{ cert_file: \"{}\", key_file: \"{}\", ca_file: \"{}\", verify: {asks} }}",
        path("server.pem"),
        path("server.key"),
        path("ca.pem"),
    );
    let server = NatsServer::start_with(Options {
        config,
        ..Options::default()
    })
    .await?;
    Ok((server, folder))
}

/// Waits until a node that can't log in says why, in these words, and isn't ready.
async fn stays_away(site: &Site, words: &str) -> Result<()> {
    let mut host = Host::spawn(site)?;
    host.wait_for_log(0, &["can't reach nats", words]).await?;
    let said = host.process.stderr().join("\n");
    ensure!(!said.contains("connected to NATS"), "{said}");
    // It is said once, and not at each attempt.
    ensure!(!said.contains("ERROR"), "{said}");
    host.stop().await
}

#[tokio::test]
async fn a_server_is_believed_whose_certificate_is_of_a_trusted_authority() -> Result<()> {
    let (ours, theirs) = (Authority::new()?, Authority::new()?);
    let (server, _folder) = encrypted(&ours, false).await?;
    let site = Site::new(&server.url())?.with("nats.tls.ca", "ca.pem")?;
    fs::write(site.path().join("ca.pem"), ours.pem())?;
    let host = Host::start(&site).await?;
    let answer = host::run(&site, &["query", "ada", "ben", "--json"])?;
    ensure!(answer.status.success(), "{answer:?}");
    host.stop().await?;
    fs::write(site.path().join("ca.pem"), theirs.pem())?;
    stays_away(&site, "certificate").await?;
    // Without any setting about TLS, too, nothing is sent in clear to a server that requires it.
    let site = Site::new(&server.url())?;
    stays_away(&site, "certificate").await
}

#[tokio::test]
async fn a_node_proves_itself_with_a_certificate_of_its_own() -> Result<()> {
    let (ours, theirs) = (Authority::new()?, Authority::new()?);
    let (server, _folder) = encrypted(&ours, true).await?;
    let bare = Site::new(&server.url())?.with("nats.tls.ca", "ca.pem")?;
    fs::write(bare.path().join("ca.pem"), ours.pem())?;
    stays_away(&bare, "certificate").await?;
    let site = bare
        .with("nats.tls.cert", "node.pem")?
        .with("nats.tls.key", "node.key")?;
    theirs.issue("node", site.path(), "node")?;
    stays_away(&site, "").await?;
    ours.issue("node", site.path(), "node")?;
    let host = Host::start(&site).await?;
    let answer = host::run(&site, &["query", "ada", "ben", "--json"])?;
    ensure!(answer.status.success(), "{answer:?}");
    host.stop().await
}

#[tokio::test]
async fn a_creds_file_is_a_login_to_a_server_with_an_operator() -> Result<()> {
    let (operated, others) = (OperatorServer::new()?, OperatorServer::new()?);
    let server = NatsServer::start_with(Options {
        config: operated.config.clone(),
        ..Options::default()
    })
    .await?;
    let site = Site::new(&server.url())?.with("nats.creds", "node.creds")?;
    fs::write(site.path().join("node.creds"), others.creds()?)?;
    stays_away(&site, "authorization violation").await?;
    fs::write(site.path().join("node.creds"), operated.creds()?)?;
    let host = Host::start(&site).await?;
    let answer = host::run(&site, &["query", "ada", "ben", "--json"])?;
    ensure!(answer.status.success(), "{answer:?}");
    host.stop().await
}

#[tokio::test]
async fn a_key_that_the_server_does_not_know_is_no_login() -> Result<()> {
    let (known, _) = key()?;
    let server = server(&known).await?;
    let site = Site::new(&server.url())?.with("nats.nkey", "node.nk")?;
    fs::write(site.path().join("node.nk"), key()?.1)?;
    stays_away(&site, "authorization violation").await
}
