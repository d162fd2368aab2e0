//! Signed plugins: who signed them, and that nobody has changed them since.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use presence_tests::client::{ReceivedMessage, now_ms};
use presence_tests::host::{self, Host};
use presence_tests::kit::plugin_command;
use presence_tests::site::Site;
use presence_tests::{component, http, wait};
use serde_json::Value;

use crate::inputs;
use crate::world::World;

/// Runs `presence plugin` with these arguments.
fn plugin(folder: &Path, args: &[&str]) -> Result<Output> {
    let mut command = plugin_command(folder)?;
    Ok(command.args(args).output()?)
}

/// As [`plugin`], for a command that succeeds: its output.
fn succeeds(folder: &Path, args: &[&str]) -> Result<String> {
    let output = plugin(folder, args)?;
    ensure!(output.status.success(), "{args:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// As [`plugin`], for a command that fails: its error.
fn fails(folder: &Path, args: &[&str]) -> Result<String> {
    let output = plugin(folder, args)?;
    ensure!(output.status.code() == Some(1), "{args:?}: {output:?}");
    Ok(String::from_utf8(output.stderr)?)
}

/// Makes a key, and returns its public half.
fn keygen(folder: &Path, name: &str) -> Result<String> {
    let printed = succeeds(folder, &["keygen", name])?;
    let (_, rest) = printed.split_once("[\"").context(printed.clone())?;
    let (key, _) = rest.split_once("\"]").context(printed.clone())?;
    Ok(key.into())
}

/// The bytes of a plugin under a name, signed with a key.
fn signed(folder: &Path, plugin: &str, name: &str, key: &str) -> Result<Vec<u8>> {
    let file = format!("{name}.wasm");
    let path = folder.join(&file);
    fs::write(&path, component::named(&component::load(plugin)?, name)?)?;
    succeeds(folder, &["sign", &file, "--key", key])?;
    Ok(fs::read(path)?)
}

#[test]
fn a_plugin_is_signed_and_verified_with_keys_that_are_their_owner_s_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let (ours, theirs) = (keygen(folder, "our.key")?, keygen(folder, "their.key")?);
    let key = folder.join("our.key");
    ensure!(fs::metadata(&key)?.mode() & 0o777 == 0o600);
    let said = fails(folder, &["keygen", "our.key"])?;
    ensure!(said.contains("never overwritten"), "{said}");

    let file = folder.join("rule.wasm");
    fs::write(&file, component::load("public")?)?;
    let said = fails(folder, &["verify", "rule.wasm", "--key", &ours])?;
    ensure!(said.contains("it has no signature"), "{said}");
    succeeds(
        folder,
        &["sign", "rule.wasm", "--key", "our.key", "-o", "signed.wasm"],
    )?;
    let said = succeeds(
        folder,
        &["verify", "signed.wasm", "--key", &theirs, "--key", &ours],
    )?;
    ensure!(said.contains(&ours) && !said.contains(&theirs), "{said}");
    let said = fails(folder, &["verify", "signed.wasm", "--key", &theirs])?;
    ensure!(said.contains("not signed with a trusted key"), "{said}");
    // A link stays a link, and the file that it leads to is signed.
    let (real, link) = (folder.join("real.wasm"), folder.join("link.wasm"));
    fs::write(&real, component::load("public")?)?;
    std::os::unix::fs::symlink("real.wasm", &link)?;
    succeeds(folder, &["sign", "link.wasm", "--key", "our.key"])?;
    ensure!(fs::symlink_metadata(&link)?.is_symlink());
    succeeds(folder, &["verify", "real.wasm", "--key", &ours])?;
    let nowhere = folder.join("nowhere.wasm");
    std::os::unix::fs::symlink("not-there.wasm", &nowhere)?;
    let output = [
        "sign",
        "real.wasm",
        "--key",
        "our.key",
        "-o",
        "nowhere.wasm",
    ];
    let said = fails(folder, &output)?;
    ensure!(said.contains("nowhere.wasm leads nowhere"), "{said}");
    // A signed plugin is a plugin.
    succeeds(folder, &["test", "signed.wasm"])?;
    // A second signature stands beside the first.
    succeeds(folder, &["sign", "signed.wasm", "--key", "their.key"])?;
    for key in [&ours, &theirs] {
        succeeds(folder, &["verify", "signed.wasm", "--key", key])?;
    }
    let mut bytes = fs::read(folder.join("signed.wasm"))?;
    *bytes.last_mut().context("a byte")? ^= 1;
    fs::write(folder.join("signed.wasm"), bytes)?;
    let said = fails(folder, &["verify", "signed.wasm", "--key", &ours])?;
    ensure!(said.contains("changed after it was signed"), "{said}");

    // Whatever is wrong with a key, the error doesn't repeat the key.
    let secret = fs::read_to_string(&key)?;
    let secret = secret.lines().nth(1).context("a key")?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640))?;
    let said = fails(folder, &["sign", "rule.wasm", "--key", "our.key"])?;
    ensure!(
        said.contains("chmod 600") && !said.contains(secret),
        "{said}"
    );
    let said = fails(folder, &["verify", "rule.wasm", "--key", secret])?;
    ensure!(!said.contains(secret), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_node_takes_no_plugin_that_is_not_signed_with_a_trusted_key() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let folder = keys.path();
    let (ours, _) = (keygen(folder, "our.key")?, keygen(folder, "their.key")?);
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[("contacts", None), ("redact", None)])?;
        site.set("plugins.trusted_keys", vec![ours.clone()])?;
        Ok(site)
    })
    .await?;
    // A built-in plugin needs no signature.
    world.until_visible_to("12345", &["11111", "67890"]).await?;
    let unsigned = unsigned()?;
    let by_them = signed(folder, "groups", "contacts", "their.key")?;
    let by_us = signed(folder, "groups", "contacts", "our.key")?;
    let mut altered = by_us.clone();
    *altered.last_mut().context("a byte")? ^= 1;
    // No parser would accept these bytes: the file is refused before a parser sees it.
    let garbage = b"\0asm\x0d\0\x01\0\x01\xff\xff\xff\xff\xff\xff".to_vec();
    for (bytes, words) in [
        (unsigned.clone(), "it has no signature"),
        (by_them, "not signed with a trusted key"),
        (altered, "changed after it was signed"),
        (garbage, "it has no signature"),
        (
            b"no component".to_vec(),
            "it is not a WebAssembly component",
        ),
    ] {
        let from = world.host.log_len();
        world.site.write_plugin("contacts", bytes)?;
        let words = ["not swapped", "contacts.wasm can't be used", words];
        world.host.wait_for_log(from, &words).await?;
        let seen = world.probe("12345").await?;
        assert_eq!(seen.visible_to(), ["11111", "67890"]);
    }
    let output = host::run(&world.site, &["check"])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        said.contains("it is not a WebAssembly component"),
        "{output:?}"
    );
    world.site.write_plugin("contacts", by_us.clone())?;
    world.until_visible_to("12345", &["22222"]).await?;

    // Keys rotate: a new one, and both, and the new one alone.
    let new = keygen(folder, "new.key")?;
    world
        .site
        .set("plugins.trusted_keys", vec![ours, new.clone()])?;
    let by_new = signed(folder, "contacts", "contacts", "new.key")?;
    world.site.write_plugin("contacts", by_new)?;
    world.until_visible_to("12345", &["11111", "67890"]).await?;
    let from = world.host.log_len();
    world.site.set("plugins.trusted_keys", vec![new])?;
    world
        .host
        .wait_for_log(from, &["configuration reloaded"])
        .await?;
    let from = world.host.log_len();
    world.site.write_plugin("contacts", by_us)?;
    world
        .host
        .wait_for_log(from, &["not swapped", "trusted key"])
        .await?;

    // And without the requirement, anything is taken.
    world.site.set("plugins.require_signature", false)?;
    world.until_visible_to("12345", &["22222"]).await?;
    world.site.write_plugin("contacts", unsigned)?;
    world.end().await
}

/// The rule of `groups` under the name `contacts`, without a signature.
fn unsigned() -> Result<Vec<u8>> {
    component::named(&component::load("groups")?, "contacts")
}

async fn quarantine_alert(world: &mut World) -> Result<ReceivedMessage> {
    let alert = world.tape.next("an alert of a plugin", |seen| {
        seen.subject == "presence.admin.alerts" && seen.text("type") == "quarantine"
    });
    alert.await
}

#[tokio::test]
async fn what_runs_and_is_trusted_no_more_is_out_of_service_wherever_its_file_is() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let ours = keygen(keys.path(), "our.key")?;
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[("contacts", None), ("redact", None)])?;
        site.write_plugin("contacts", unsigned()?)?;
        Ok(site)
    })
    .await?;
    world.until_visible_to("12345", &["22222"]).await?;
    // The disk has no file any more that could be verified.
    let from = world.host.log_len();
    fs::remove_file(world.site.plugin_path("contacts"))?;
    world
        .host
        .wait_for_log(from, &["contacts.wasm is gone"])
        .await?;
    let from = world.host.log_len();
    world.site.set("plugins.trusted_keys", vec![ours])?;
    let words = ["not swapped", "`contacts` from", "it has no signature"];
    world.host.wait_for_log(from, &words).await?;
    let words = ["contacts", "may not run any more", "it has no signature"];
    world.host.wait_for_log(from, &words).await?;
    let why = "the plugin `contacts` may not run any more";
    world.host.unready_because(why).await?;
    let alert = quarantine_alert(&mut world).await?;
    assert_eq!(alert.text("plugin"), "contacts");
    assert_eq!(*alert.field("withdrawn"), true);
    assert!(alert.text("error").contains("it has no signature"));
    for metric in ["presence_plugin_withdrawn", "presence_plugin_quarantined"] {
        let label = ["plugin=\"contacts\""];
        let is = world.host.metric(metric, &label).await?;
        assert_eq!(is, 1.0, "{metric}");
    }
    let seen = world.probe("12345").await?;
    assert!(seen.visible_to().is_empty(), "nobody is told by it");
    // A new pipeline doesn't keep the plugin, either.
    let from = world.host.log_len();
    world
        .site
        .set_pipeline(&[("contacts", None), ("blocklist", None), ("redact", None)])?;
    let words = ["not swapped", "`contacts` from", "it has no signature"];
    world.host.wait_for_log(from, &words).await?;
    assert!(world.probe("12345").await?.visible_to().is_empty());
    // The operator's next setting holds at once.
    world.site.set("plugins.require_signature", false)?;
    world.until_visible_to("12345", &["22222"]).await?;
    world.host.ready().await?;
    world.end().await
}

#[tokio::test]
async fn a_key_that_is_lost_stops_what_runs_and_what_would_take_over() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let folder = keys.path();
    let (lost, ours) = (keygen(folder, "lost.key")?, keygen(folder, "our.key")?);
    let by_lost = signed(folder, "groups", "contacts", "lost.key")?;
    let failing = signed(folder, "fixtures/trap", "contacts", "our.key")?;
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[("contacts", None), ("redact", None)])?;
        site.set_stage("contacts", "on_failure", "last-good")?;
        site.set("engine.workers", 1)?;
        site.set("engine.quarantine_failures", 3)?;
        site.set("plugins.trusted_keys", vec![lost.clone(), ours.clone()])?;
        site.write_plugin("contacts", by_lost.clone())?;
        Ok(site)
    })
    .await?;
    world.until_visible_to("12345", &["22222"]).await?;
    // A running plugin is in quarantine for as long as its key isn't trusted, and no longer.
    let both = vec![lost.clone(), ours.clone()];
    world.site.set("plugins.trusted_keys", vec![ours.clone()])?;
    let why = "it is not signed with a trusted key";
    world.host.unready_because(why).await?;
    assert!(world.probe("12345").await?.visible_to().is_empty());
    world.site.set("plugins.trusted_keys", both)?;
    world.host.ready().await?;
    world.until_visible_to("12345", &["22222"]).await?;
    // It doesn't take over as the last good plugin, either.
    let from = world.host.log_len();
    world.site.write_plugin("contacts", failing)?;
    world.host.wait_for_log(from, &["pipeline swapped"]).await?;
    let from = world.host.log_len();
    world.site.set("plugins.trusted_keys", vec![ours])?;
    world
        .host
        .wait_for_log(from, &["configuration reloaded"])
        .await?;
    for number in 0..3 {
        let body = inputs::connect(&format!("user-{number}"), "c1", now_ms());
        world.client.input(inputs::CONNECT, body).await?;
    }
    let words = ["contacts", "put into quarantine"];
    world.host.wait_for_log(from, &words).await?;
    assert!(world.probe("12345").await?.visible_to().is_empty());
    world.end().await
}

#[tokio::test]
async fn the_store_s_plugins_are_held_to_it_too() -> Result<()> {
    let keys = tempfile::tempdir()?;
    let folder = keys.path();
    let (ours, theirs) = (keygen(folder, "our.key")?, keygen(folder, "their.key")?);
    let server = presence_tests::nats::NatsServer::start().await?;
    let mut site = Site::new(&server.url())?
        .with("plugins.source", "store")?
        .with("plugins.trusted_keys", vec![ours.clone()])?;
    let mut host = Host::spawn(&site)?;
    host.wait_for_log(0, &["no pipeline revision"]).await?;
    // Before this line, nobody answers.
    host.wait_for_log(0, &["ready node="]).await?;
    let pipeline = site.path().join("pipeline.toml");
    fs::write(
        &pipeline,
        "[[pipeline]]\nplugin = \"public\"\ngrants = [\"widen\"]\n",
    )?;
    let apply = ["pipeline", "apply", "pipeline.toml", "--yes"];
    let run = |site: &Site, args: &[&str]| -> Result<Output> {
        let mut command = host::command(site, args)?;
        Ok(command.current_dir(site.path()).output()?)
    };
    // A plugin with the name of a built-in one, and other bytes.
    let unsigned = component::named(&component::load("groups")?, "public")?;
    fs::write(site.path().join("public.wasm"), unsigned)?;
    let pushed = run(&site, &["plugins", "push", "public.wasm"])?;
    ensure!(pushed.status.success(), "{pushed:?}");
    let refused = run(&site, &apply)?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned()
        + &String::from_utf8_lossy(&refused.stdout);
    ensure!(!refused.status.success(), "{refused:?}");
    ensure!(said.contains("it has no signature"), "{said}");

    fs::write(
        site.path().join("public.wasm"),
        signed(folder, "groups", "public", "our.key")?,
    )?;
    let pushed = run(&site, &["plugins", "push", "public.wasm"])?;
    ensure!(pushed.status.success(), "{pushed:?}");
    let taken = run(&site, &apply)?;
    ensure!(taken.status.success(), "{taken:?}");

    // A canary or shadow has to be signed as well, although the pipeline is the same.
    let from = host.log_len();
    site.set("plugins.trusted_keys", vec![ours.clone(), theirs])?;
    host.wait_for_log(from, &["reloaded"]).await?;
    fs::write(
        site.path().join("public.wasm"),
        signed(folder, "public", "public", "their.key")?,
    )?;
    let pushed = run(&site, &["plugins", "push", "public.wasm"])?;
    let printed = String::from_utf8_lossy(&pushed.stdout).into_owned();
    let digest = printed
        .split_whitespace()
        .find_map(|word| word.rsplit_once("sha256:"))
        .with_context(|| printed.clone())?;
    let named = format!("public@sha256:{}", digest.1);
    let args = ["plugins", "shadow", &named, "--for", "24h"];
    let mut shadow = host::start(&site, &args)?;
    let port = site.http_port();
    let beside = async || -> Result<Value> {
        let status = http::get(port, "/status").await?.body;
        let status: Value = serde_json::from_str(&status)?;
        Ok(status["serving"]["beside"].clone())
    };
    wait::until("the shadow to begin", async || {
        Ok((beside().await?["kind"] == "shadow").then_some(()))
    })
    .await
    .with_context(|| shadow.log_tail())?;
    let from = host.log_len();
    site.set("plugins.trusted_keys", vec![ours])?;
    let words = ["public", "may not run any more"];
    host.wait_for_log(from, &words).await?;
    let beside = beside().await?;
    let withdrawn = &beside["pipeline"][0]["withdrawn"];
    ensure!(withdrawn.is_string(), "{beside}");
    shadow.kill().await?;
    host.stop().await
}
