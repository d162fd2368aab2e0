//! The first minutes: a folder made by `presence init`, `presence pub` and `presence watch` in
//! place of clients, and what a node and `presence check` say of a plugin that isn't used.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use presence_tests::process::Signal;
use presence_tests::site::Site;
use presence_tests::{component, host};
use serde_json::Value;

use crate::world::World;

/// Short, so that heartbeats are needed, and long enough for a busy machine to send them.
const TIMEOUT_MS: i64 = 3_000;

#[tokio::test]
async fn pub_keeps_a_user_online_until_it_is_interrupted_and_watch_tells_who_sees_it() -> Result<()>
{
    let world = World::start_with(|site| site.with("tracker.timeout_ms", TIMEOUT_MS)).await?;
    let mut watch = host::start(&world.site, &["watch"])?;
    let mut raw = host::start(&world.site, &["watch", "--viewer", "67890", "--json"])?;
    for watch in [&mut watch, &mut raw] {
        watch.wait_for_words("watching presence.filtered.>").await?;
    }
    let metadata = r#"{"device": "web"}"#;
    let args = ["pub", "connect", "12345", "--metadata", metadata];
    let mut client = host::start(&world.site, &args)?;
    client.wait_for_words("12345 is connected as pub-").await?;
    let online = "22222, 67890 see 12345 online  device=web";
    let told = watch.wait_for_words("see 12345 online").await?;
    ensure!(told.ends_with(online) || told.ends_with("67890, 22222 see 12345 online  device=web"));

    // More heartbeats than fit into one time-out.
    let heartbeats = ["kind=\"heartbeat\""];
    let taken = "presence_inputs_total";
    world
        .host
        .until_metric(taken, &heartbeats, |n| n >= 5.0)
        .await?;
    assert_eq!(world.host.metric("presence_online_users", &[]).await?, 1.0);
    assert_eq!(watch.stdout().len(), 1, "{:?}", watch.stdout());

    client.signal(Signal::INT)?;
    ensure!(client.wait().await?.success());
    watch.wait_for_words("see 12345 offline, last seen").await?;
    raw.wait_for_words("user_offline").await?;
    let lines = raw.stdout();
    let subjects = lines.iter().map(|line| {
        let line: Value = serde_json::from_str(line)?;
        let subject = line["subject"].as_str().context("subject")?;
        Ok(subject.to_owned())
    });
    let subjects = subjects.collect::<Result<Vec<_>>>()?;
    let filtered = ["user_online", "user_offline"].map(|kind| format!("presence.filtered.{kind}"));
    assert_eq!(subjects, filtered);
    watch.stop().await?;
    world.end().await
}

#[tokio::test]
async fn pub_prints_what_the_processor_answers_and_fails_where_it_refuses() -> Result<()> {
    let world = World::start().await?;
    let publish = |args: &[&str]| -> Result<(Option<i32>, String)> {
        let output = host::run(&world.site, &[&["pub"], args].concat())?;
        let [out, error] = [output.stdout, output.stderr].map(String::from_utf8);
        Ok((output.status.code(), out? + &error?))
    };
    let connect = r#"{"userId": "ada", "connId": "c1"}"#;
    let (code, said) = publish(&["event", "presence.connect", connect])?;
    assert_eq!((code, &*said), (Some(0), "{\"ok\":true}\n"));
    let (code, said) = publish(&["event", "presence.connect", r#"{"userId": ""}"#])?;
    ensure!(code == Some(1) && said.contains("userId"), "{said}");
    let (code, said) = publish(&["event", "presence.connect", "[1]"])?;
    ensure!(
        code == Some(1) && said.contains("not a JSON object"),
        "{said}"
    );
    let (code, _) = publish(&["event", "presence.query", "{}"])?;
    assert_eq!(code, Some(2), "no input");
    let (code, said) = publish(&["disconnect", "ada", "--conn", "c1"])?;
    assert_eq!((code, &*said), (Some(0), "ada has disconnected c1\n"));
    let online = "presence_online_users";
    world.host.until_metric(online, &[], |n| n == 0.0).await?;
    world.end().await
}

#[tokio::test]
async fn a_plugin_that_no_pipeline_names_is_said_to_be_unused_with_what_to_add() -> Result<()> {
    let mut world = World::start().await?;
    let from = world.host.log_len();
    world
        .site
        .write_plugin("quiet", component::load("privacy")?)?;
    let words = [
        "WARN",
        "quiet.wasm is not used",
        "`plugin = \"quiet\"`",
        "one for each of contacts, groups, blocklist, redact as well",
    ];
    world.host.wait_for_log(from, &words).await?;
    let from = world.host.log_len();
    world
        .site
        .set_pipeline(&[("contacts", None), ("quiet", None)])?;
    let words = ["WARN", "no redactor", "viewers get no metadata"];
    world.host.wait_for_log(from, &words).await?;
    let log = world.host.process.stderr().split_off(from);
    ensure!(
        !log.iter().any(|line| line.contains("not used")),
        "{log:#?}"
    );
    world.end().await
}

#[test]
fn check_lists_used_and_unused_plugins_and_names_the_place_of_what_is_wrong() -> Result<()> {
    let mut site = Site::new("nats://127.0.0.1:1")?;
    site.write_plugin("quiet", component::load("privacy")?)?;
    site.set_pipeline(&[
        ("contacts", None),
        ("public", Some(toml::toml! { two = ["x"] })),
    ])?;
    let output = host::run(&site, &["check"])?;
    let [out, said] = [output.stdout, output.stderr].map(String::from_utf8);
    let (out, said) = (out?, said?);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let rows: Vec<Vec<_>> = out
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    for row in [
        &["PLUGIN", "VERSION", "ROLE", "FROM"][..],
        &["contacts", "0.1.0", "filter", "built-in"],
        &["quiet", "not", "used"],
    ] {
        ensure!(rows.iter().any(|it| it == row), "{row:?} is not in:\n{out}");
    }
    for words in [
        "warning: the pipeline has no redactor",
        "quiet.wasm is not used",
        "`public` refuses its configuration: unknown key `two`",
    ] {
        ensure!(said.contains(words), "{words} is not in:\n{said}");
    }
    assert_eq!(said.matches("configuration: ").count(), 1, "{said}");
    // The second entry of the pipeline.
    let text = fs::read_to_string(site.config_path())?;
    let lines = text.lines().enumerate();
    let entries: Vec<_> = lines
        .filter(|(_, line)| *line == "[[pipeline]]")
        .map(|(number, _)| number + 1)
        .collect();
    let place = format!("{}:{}:", site.config_path().display(), entries[1]);
    ensure!(said.contains(&place), "{place} is not in:\n{said}");

    fs::remove_file(site.plugin_path("quiet"))?;
    fs::remove_dir(site.path().join("plugins.d"))?;
    let output = host::run(&site, &["check", "--json"])?;
    let found: Value = serde_json::from_slice(&output.stdout)?;
    let warnings = found["warnings"].to_string();
    ensure!(warnings.contains("plugins.d does not exist"), "{warnings}");
    let told = found["problems"][0]["place"].as_str().unwrap_or_default();
    ensure!(told.starts_with(&place), "{found}");
    Ok(())
}

#[test]
fn init_makes_a_folder_that_check_finds_nothing_wrong_with_and_overwrites_none() -> Result<()> {
    let around = tempfile::tempdir()?;
    let presence = |args: &[&str]| -> Result<_> {
        let mut command = Command::new(host::binary()?);
        command.args(args).current_dir(around.path());
        command.env_remove("PRESENCE_CONFIG");
        command.env("PRESENCE_PLUGINS_CACHE", presence_tests::tools::compiled());
        Ok(command.output()?)
    };
    let made = presence(&["init", "site"])?;
    ensure!(made.status.success(), "{made:?}");
    let check = presence(&["check", "--config", "site/presence.toml"])?;
    let said = String::from_utf8(check.stderr)?;
    ensure!(check.status.success() && said.is_empty(), "{said}");
    let again = presence(&["init", "site"])?;
    let said = String::from_utf8(again.stderr)?;
    assert_eq!(again.status.code(), Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    ensure!(said.contains("presence.toml is there already"), "{said}");
    Ok(())
}
