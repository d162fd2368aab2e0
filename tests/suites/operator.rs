//! Messages for an operator: what was started, why it doesn't work, and how commands are used.

use std::process::Output;

use anyhow::{Result, ensure};
use presence_tests::host::{self, Host};
use presence_tests::site::Site;
use presence_tests::{component, http, tools, wait};

use crate::world::World;

/// What a command wrote to standard error, and its exit code.
fn exit_code_and_stderr(output: Output) -> (Option<i32>, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

#[tokio::test]
async fn the_first_line_of_the_log_says_what_was_started() -> Result<()> {
    let world = World::start_with(|mut site| {
        site.set_pipeline(&[("contacts", None), ("redact", None)])?;
        let plugin = component::named(&component::load("groups")?, "contacts")?;
        site.write_plugin("contacts", plugin)?;
        Ok(site)
    })
    .await?;
    let log = world.host.process.stderr();
    let first = log.first().map_or("", String::as_str);
    let config = world.site.config_path().display().to_string();
    let broker = world.server.url().replace("nats://", "");
    for word in [
        concat!("presence ", env!("CARGO_PKG_VERSION"), ":"),
        &*config,
        &*broker,
        "plugins.d/contacts.wasm, sha256:",
        "→ redact 0.1.0 (built-in, sha256:",
    ] {
        ensure!(first.contains(word), "{word} is not in: {first}");
    }
    world.end().await
}

#[tokio::test]
async fn why_nats_cannot_be_reached_is_said_once_and_not_hidden() -> Result<()> {
    let port = tools::free_port()?;
    let site = Site::new(&format!("nats://127.0.0.1:{port}"))?;
    for command in [&["query", "ada", "ben"][..], &["record", "-"]] {
        let (code, said) = exit_code_and_stderr(host::run(&site, command)?);
        assert_eq!(code, Some(1), "{said}");
        assert_eq!(said.matches("Connection refused").count(), 1, "{said}");
        ensure!(!said.contains("IO error"), "{said}");
    }
    let mut host = Host::spawn(&site)?;
    let words = ["can't reach NATS", "Connection refused"];
    let line = host.wait_for_log(0, &words).await?;
    assert_eq!(line.matches("refused").count(), 1, "{line}");
    wait::until("/readyz to say why", async || {
        let answer = http::get(site.http_port(), "/readyz").await?;
        let says = answer
            .body
            .contains("not connected to NATS: Connection refused");
        Ok((answer.status == 503 && says).then_some(()))
    })
    .await?;
    host.stop().await
}

#[test]
fn sizes_on_the_command_line_have_units() -> Result<()> {
    let site = Site::new("nats://127.0.0.1:1")?;
    let (code, said) = exit_code_and_stderr(host::run(&site, &["record", "-", "--bytes", "64Mx"])?);
    assert_eq!(code, Some(2), "{said}");
    ensure!(said.contains("64MiB (binary)"), "{said}");
    // The argument is understood. The command fails because there is no broker.
    let (code, said) =
        self::exit_code_and_stderr(host::run(&site, &["record", "-", "--bytes", "64MiB"])?);
    assert_eq!(code, Some(1), "{said}");
    Ok(())
}
