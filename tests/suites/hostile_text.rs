//! Text by others (plugins, their manifests, ids) that reaches the log or a terminal: it begins no
//! line of its own, and controls no terminal.

use std::process::Output;

use anyhow::{Context, Result};
use presence_tests::client::now_ms;
use presence_tests::kit::plugin_command;
use presence_tests::nats::NatsServer;
use presence_tests::process::Process;
use presence_tests::site::Site;
use presence_tests::{component, host};
use serde_json::Value;

use crate::inputs::{self, CONNECT, DLQ};
use crate::world::World;

/// A line break, the beginning of a log line, and the start of an escape sequence. It is as long as
/// the text of the fixture `chatty`, which it replaces in the component.
const FORGED: &str = "a\n2026-11 ERROR\u{1b}[";
const CHATTY: &str = "and another thing";

/// The component of `chatty`, with the forged text.
fn chatty() -> Result<Vec<u8>> {
    assert_eq!(FORGED.len(), CHATTY.len());
    let mut bytes = component::load("fixtures/chatty")?;
    let said = CHATTY.as_bytes();
    let at = bytes.windows(said.len()).position(|part| part == said);
    let at = at.context("what it says isn't in the component")?;
    bytes[at..at + said.len()].copy_from_slice(FORGED.as_bytes());
    Ok(bytes)
}

/// Asserts that nothing in a text controls a terminal, or begins a forged line.
fn is_harmless(text: &str) {
    let is_harmful = |character: char| {
        (character.is_control() && character != '\n')
            || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2028}')
    };
    assert!(!text.contains(is_harmful), "{text:?}");
    for line in text.lines() {
        assert!(!line.starts_with("2026-11 "), "{text}");
        assert!(!line.starts_with("error: all is well"), "{text}");
    }
}

fn printed(output: &Output) -> Result<String> {
    let text = [&*output.stdout, &*output.stderr].concat();
    let text = String::from_utf8(text)?;
    is_harmless(&text);
    Ok(text)
}

#[tokio::test]
async fn what_a_plugin_logs_and_who_is_asked_after_forge_no_line() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[("chatty", None), ("redact", None)])?;
        site.write_plugin("chatty", chatty()?)?;
        Ok(site)
    })
    .await?;
    let from = world.host.log_len();
    let connect = inputs::connect("12345", "c1", now_ms());
    world.client.input(CONNECT, connect).await?;
    world.tape.hosts(DLQ, 1).await?;
    let said = world.host.wait_for_log(from, &["a\\n2026-11"]).await?;
    assert!(said.contains("a\\n2026-11 ERROR\\u{1b}["), "{said}");
    is_harmless(&world.host.process.stderr().join("\n"));

    let user = "ben\u{1b}[2J\u{202e}\n2026-11 ";
    let asked = printed(&host::run(&world.site, &["query", "ada", user])?)?;
    assert!(
        asked.contains("ben\\u{1b}[2J\\u{202e}\\n2026-11"),
        "{asked}"
    );
    printed(&host::run(&world.site, &["explain", "ada", user])?)?;
    is_harmless(&world.host.process.stderr().join("\n"));
    world.end().await
}

#[tokio::test]
async fn a_manifest_reaches_the_terminal_escaped() -> Result<()> {
    const NAME: &str = "f\u{1b}[2J\u{9b}1m\u{202e}\nerror: all is well\u{2028}";
    let plugin = component::load("fixtures/failing-self-test")?;
    let plugin = component::with(&plugin, |manifest| {
        manifest.insert("name".into(), NAME.into());
        if let Some(case) = manifest.get_mut("tests").and_then(|tests| tests.get_mut(0)) {
            case["name"] = NAME.into();
            case["expect"]["audience"] = Value::from(vec![NAME]);
        }
    })?;
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("f.wasm"), &plugin)?;
    for args in [
        &["inspect", "f.wasm"][..],
        &["inspect", "f.wasm", "--wit"],
        &["test", "f.wasm"],
    ] {
        printed(&plugin_command(folder.path())?.args(args).output()?)?;
    }
    let unread = component::with(&plugin, |manifest| {
        manifest.insert(NAME.into(), 1.into());
    })?;
    std::fs::write(folder.path().join("g.wasm"), unread)?;
    let output = plugin_command(folder.path())?
        .args(["inspect", "g.wasm"])
        .output()?;
    assert!(printed(&output)?.starts_with("error: "));

    let server = NatsServer::start().await?;
    let mut site = Site::new(&server.url())?;
    site.write_plugin("f", plugin)?;
    printed(&host::run(&site, &["check"])?)?;
    site.set_pipeline(&[("f", None)])?;
    printed(&host::run(&site, &["check"])?)?;
    let mut refused = Process::spawn("presence", &mut host::command(&site, &["run"])?)?;
    let status = refused.wait().await?;
    let said = refused.stderr().join("\n");
    assert!(!status.success() && said.contains("error: "), "{said}");
    is_harmless(&said);
    Ok(())
}

#[tokio::test]
async fn a_log_level_that_is_misspelt_is_an_error() -> Result<()> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?;
    for command in ["run", "check"] {
        let mut command = host::command(&site, &[command])?;
        command.env("PRESENCE_LOG", "debgu");
        let mut process = Process::spawn("presence", &mut command)?;
        let status = process.wait().await?;
        let said = process.stderr().join("\n");
        assert!(!status.success(), "{said}");
        assert!(
            said.contains("PRESENCE_LOG") && said.contains("debgu"),
            "{said}"
        );
    }
    Ok(())
}
