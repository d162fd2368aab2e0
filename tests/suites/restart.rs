//! What outlives the host: it is killed or stopped, and started again.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use presence_tests::client::now_ms;
use presence_tests::host::Host;
use presence_tests::http;
use presence_tests::nats::NatsServer;
use presence_tests::site::Site;
use presence_tests::wait;
use serde_json::json;

use crate::heartbeat_senders::HeartbeatSenders;
use crate::inputs::{
    self, CONNECT, DISCONNECT, EVENTS, FILTERED_OFFLINE, FILTERED_ONLINE, HEARTBEAT, OFFLINE,
    ONLINE,
};
use crate::world::{World, on};

/// A browser's name, as it says of itself.
const LINUX: &str = "Mozilla/5.0 (X11; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/118.0";

/// Longer than a host takes to start again.
const TIMEOUT_MS: i64 = 2_000;

/// The records of a connect and of a disconnect: the connection, and who was told.
const RECORDS: f64 = 2.0;

async fn kill_and_start(world: &mut World) -> Result<()> {
    world.host.process.kill().await?;
    world.host = Host::start(&world.site).await?;
    Ok(())
}

fn state_file(site: &Site) -> PathBuf {
    site.path().join("presence-state").join("presence.redb")
}

/// The state files that were set aside as damaged.
fn damaged(site: &Site) -> Result<Vec<PathBuf>> {
    let files = fs::read_dir(site.path().join("presence-state"))?;
    let paths = files
        .map(|file| Ok(file?.path()))
        .collect::<Result<Vec<_>>>()?;
    let is_aside = |path: &PathBuf| path.to_string_lossy().contains(".redb.damaged-");
    Ok(paths.into_iter().filter(is_aside).collect())
}

#[tokio::test]
async fn after_a_kill_nobody_is_announced_again_and_the_told_are_told() -> Result<()> {
    const USERS: usize = 20;
    let user = |number: usize| format!("user-{number}");
    let mut world = World::start_with(|site| {
        let contacts = (0..USERS).map(|number| (user(number), json!(["viewer"])));
        let contacts: serde_json::Map<_, _> = contacts.collect();
        site.write_directory_value(&json!({"contacts": contacts}))?;
        site.with("engine.workers", 2)
    })
    .await?;
    for number in 0..USERS {
        let body = inputs::connect(&user(number), "c1", now_ms());
        world.client.input(CONNECT, body).await?;
    }
    world.host.until_saved(RECORDS * USERS as f64).await?;

    // The number of workers may be different now.
    world.host.process.kill().await?;
    world.site.set("engine.workers", 3)?;
    world.host = Host::start(&world.site).await?;
    world
        .host
        .wait_for_log(0, &["restored 20 users, 20 connections"])
        .await?;
    let metrics = world.host.metrics().await?;
    let restored = http::metric(&metrics, "presence_state_restored_users", &[]);
    ensure!(restored == USERS as f64, "{metrics}");

    for number in 0..USERS {
        let body = inputs::heartbeat(&user(number), "c1", now_ms());
        world.client.input(HEARTBEAT, body).await?;
        let body = inputs::disconnect(&user(number), "c1", now_ms(), "logout");
        world.client.input(DISCONNECT, body).await?;
    }
    let gone = world.tape.hosts(FILTERED_OFFLINE, USERS).await?;
    for (number, seen) in gone.iter().enumerate() {
        assert_eq!(seen.visible_to(), ["viewer"], "of the {number}th");
    }
    assert_eq!(on(world.tape.seen(), ONLINE).len(), USERS);
    assert_eq!(on(world.tape.seen(), FILTERED_ONLINE).len(), USERS);
    world.end().await
}

#[tokio::test]
async fn who_left_while_the_host_was_down_is_gone_after_one_timeout() -> Result<()> {
    let prepare = |site: Site| site.with("tracker.timeout_ms", TIMEOUT_MS);
    let mut world = World::start_with(prepare).await?;
    let connected_at = now_ms();
    let body = inputs::connect("12345", "c1", connected_at);
    world.client.input(CONNECT, body).await?;
    world.host.until_saved(RECORDS).await?;
    world.host.process.kill().await?;
    let started_at = now_ms();
    world.host = Host::start(&world.site).await?;

    let offline = world.tape.hosts(OFFLINE, 1).await?.remove(0);
    assert_eq!(offline.text("reason"), "timeout");
    assert_eq!(offline.field("lastSeen").as_u64(), Some(connected_at));
    let lease = offline.field("timestamp").as_u64().unwrap_or_default() - started_at;
    assert!(lease >= TIMEOUT_MS as u64, "its lease begins anew: {lease}");
    let offline = world.tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    assert_eq!(offline.visible_to(), ["22222", "67890"]);
    world.end().await
}

/// A pipeline with these enrichers.
fn chain(enrichers: &[&'static str]) -> Vec<(&'static str, Option<toml::Table>)> {
    let redact = toml::toml! { keys = ["device", "os"] };
    let enrichers = enrichers.iter().map(|name| (*name, None));
    let others = [("contacts", None), ("redact", Some(redact))];
    enrichers.chain(others).collect()
}

#[tokio::test]
async fn an_enricher_that_came_or_went_meanwhile_changes_what_viewers_are_shown() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&chain(&[]))?;
        Ok(site)
    })
    .await?;
    let mut body = inputs::connect("12345", "c1", now_ms());
    body["metadata"] = json!({"device": "web", "userAgent": LINUX});
    world.client.input(CONNECT, body).await?;
    world.host.until_saved(RECORDS).await?;

    world.host.process.kill().await?;
    world.site.set_pipeline(&chain(&["device-class"]))?;
    world.host = Host::start(&world.site).await?;
    let shown = world.tape.hosts(FILTERED_ONLINE, 2).await?.remove(1);
    let with_os = json!({"device": "web", "os": "Linux"});
    assert_eq!(shown.field("metadata"), &with_os);
    // For an enricher that was there before, nothing is told again, however the host ended.
    world.host.until_saved(1.0).await?;
    kill_and_start(&mut world).await?;
    world.host.process.stop().await?;
    world.host = Host::start(&world.site).await?;
    let said = world.host.process.stderr().join("\n");
    ensure!(!said.contains("run again"), "{said}");

    world.host.process.kill().await?;
    world.site.set_pipeline(&chain(&[]))?;
    world.host = Host::start(&world.site).await?;
    let shown = world.tape.hosts(FILTERED_ONLINE, 3).await?.remove(2);
    assert_eq!(shown.field("metadata"), &json!({"device": "web"}));
    world.end().await
}

#[tokio::test]
async fn a_directory_that_changed_meanwhile_is_corrected_after_the_restart() -> Result<()> {
    let mut world = World::start().await?;
    let body = inputs::connect("12345", "c1", now_ms());
    world.client.input(CONNECT, body).await?;
    world.tape.hosts(FILTERED_ONLINE, 1).await?;
    world.host.until_saved(RECORDS).await?;
    world.host.process.kill().await?;
    let directory = json!({"contacts": {"12345": ["67890", "33333"]}});
    world.site.write_directory_value(&directory)?;
    world.host = Host::start(&world.site).await?;

    let lost = world.tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    assert_eq!(lost.visible_to(), ["22222"]);
    let gained = world.tape.hosts(FILTERED_ONLINE, 2).await?.remove(1);
    assert_eq!(gained.visible_to(), ["33333"]);
    assert_eq!(gained.field("metadata"), &json!({"device": "web"}));

    // The correction itself survives the next restart.
    world.host.until_saved(1.0).await?;
    kill_and_start(&mut world).await?;
    let body = inputs::disconnect("12345", "c1", now_ms(), "logout");
    world.client.input(DISCONNECT, body).await?;
    let gone = world.tape.hosts(FILTERED_OFFLINE, 2).await?.remove(1);
    assert_eq!(gone.visible_to(), ["33333", "67890"]);
    assert_eq!(on(world.tape.seen(), EVENTS).len(), 2);
    world.end().await
}

#[tokio::test]
async fn an_applications_own_word_holds_over_a_restart() -> Result<()> {
    let mut world = World::start().await?;
    world
        .client
        .input(ONLINE, inputs::online("12345", now_ms()))
        .await?;
    world.tape.hosts(FILTERED_ONLINE, 1).await?;
    world.host.until_saved(1.0).await?;
    kill_and_start(&mut world).await?;

    world
        .client
        .input(ONLINE, inputs::online("12345", now_ms()))
        .await?;
    world
        .client
        .input(OFFLINE, inputs::offline("12345", now_ms()))
        .await?;
    let gone = world.tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    assert_eq!(gone.visible_to(), ["22222", "67890"]);
    assert_eq!(
        on(world.tape.seen(), FILTERED_ONLINE).len(),
        1,
        "anyone who was told isn't told again"
    );
    world.end().await
}

#[tokio::test]
async fn a_reconnect_after_the_restart_ends_a_grace() -> Result<()> {
    let prepare = |site: Site| site.with("tracker.grace_ms", 60_000);
    let mut world = World::start_with(prepare).await?;
    let body = inputs::connect("12345", "c1", now_ms());
    world.client.input(CONNECT, body).await?;
    let body = inputs::disconnect("12345", "c1", now_ms(), "client_disconnect");
    world.client.input(DISCONNECT, body).await?;
    // The records: the closed connection, and the grace.
    world.host.until_saved(RECORDS + 1.0).await?;
    kill_and_start(&mut world).await?;

    let body = inputs::connect("12345", "c2", now_ms());
    world.client.input(CONNECT, body).await?;
    let seen = world.all_about("12345").await?;
    let online = seen
        .iter()
        .filter(|seen| seen.text("type") == "user_online");
    let subjects: Vec<_> = online.map(|seen| seen.subject.as_str()).collect();
    assert_eq!(subjects, [ONLINE, EVENTS, FILTERED_ONLINE]);
    world.end().await
}

#[tokio::test]
async fn a_grace_ends_after_the_restart() -> Result<()> {
    let prepare = |site: Site| site.with("tracker.grace_ms", TIMEOUT_MS);
    let mut world = World::start_with(prepare).await?;
    let body = inputs::connect("12345", "c1", now_ms());
    world.client.input(CONNECT, body).await?;
    let left_at = now_ms();
    let body = inputs::disconnect("12345", "c1", left_at, "logout");
    world.client.input(DISCONNECT, body).await?;
    world.host.until_saved(RECORDS + 1.0).await?;
    kill_and_start(&mut world).await?;

    let offline = world.tape.hosts(OFFLINE, 1).await?.remove(0);
    assert_eq!(offline.text("reason"), "logout");
    assert_eq!(offline.field("lastSeen").as_u64(), Some(left_at));
    let gone = world.tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    assert_eq!(gone.visible_to(), ["22222", "67890"]);
    world.end().await
}

#[tokio::test]
async fn a_close_is_remembered_over_a_restart() -> Result<()> {
    let mut world = World::start().await?;
    let at = now_ms();
    let body = inputs::connect("12345", "c1", at);
    world.client.input(CONNECT, body).await?;
    let body = inputs::disconnect("12345", "c1", at + 1, "client_disconnect");
    world.client.input(DISCONNECT, body).await?;
    world.tape.hosts(FILTERED_OFFLINE, 1).await?;
    world.host.until_saved(1.0).await?;
    world.host.process.stop().await?;
    world.host = Host::start(&world.site).await?;

    let body = inputs::heartbeat("12345", "c1", at);
    world.client.publish(HEARTBEAT, &body).await?;
    let seen = world.all_about("12345").await?;
    let came = seen.iter().filter(|seen| seen.subject == ONLINE).count();
    assert_eq!(came, 1, "a late heartbeat resurrects nothing: {seen:#?}");
    world.end().await
}

#[tokio::test]
async fn a_stop_keeps_even_the_last_heartbeat() -> Result<()> {
    let prepare = |site: Site| site.with("tracker.timeout_ms", TIMEOUT_MS);
    let mut world = World::start_with(prepare).await?;
    let body = inputs::connect("12345", "c1", now_ms() - 500);
    world.client.input(CONNECT, body).await?;
    let heard_at = now_ms();
    let body = inputs::heartbeat("12345", "c1", heard_at);
    world.client.input(HEARTBEAT, body).await?;
    world.host.process.stop().await?;
    world.host = Host::start(&world.site).await?;

    let offline = world.tape.hosts(OFFLINE, 1).await?.remove(0);
    assert_eq!(offline.field("lastSeen").as_u64(), Some(heard_at));
    let metadata = json!({"timeoutDuration": TIMEOUT_MS, "lastHeartbeat": heard_at});
    assert_eq!(offline.field("metadata"), &metadata);
    assert_eq!(on(world.tape.seen(), ONLINE).len(), 1);
    world.end().await
}

#[tokio::test]
async fn a_damaged_state_is_set_aside_and_the_host_starts_empty() -> Result<()> {
    let mut world = World::start().await?;
    let body = inputs::connect("12345", "c1", now_ms());
    world.client.input(CONNECT, body).await?;
    world.host.until_saved(RECORDS).await?;
    world.host.process.kill().await?;
    let file = state_file(&world.site);
    let length = fs::metadata(&file)?.len() as usize;
    fs::write(&file, vec![0x5a; length])?;
    world.host = Host::start(&world.site).await?;

    let log = world.host.wait_for_log(0, &["set aside"]).await?;
    let aside = damaged(&world.site)?;
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert!(log.contains(&*aside[0].to_string_lossy()), "{log}");
    let body = inputs::heartbeat("12345", "c1", now_ms());
    world.client.input(HEARTBEAT, body).await?;
    world.tape.hosts(ONLINE, 2).await?;

    // An empty file has lost as much.
    world.host.process.kill().await?;
    fs::write(&file, "")?;
    world.host = Host::start(&world.site).await?;
    let words = ["presence.redb is empty", "starts with nothing"];
    world.host.wait_for_log(0, &words).await?;
    world.end().await
}

#[tokio::test]
async fn a_folder_in_use_on_another_broker_is_refused() -> Result<()> {
    let world = World::start().await?;
    let folder = world.site.path().join("presence-state");
    let elsewhere = NatsServer::start().await?;
    let site = Site::new(&elsewhere.url())?.with("state.dir", &*folder.to_string_lossy())?;
    let mut second = Host::spawn(&site)?;
    let status = second.process.wait().await?;
    assert_eq!(status.code(), Some(1), "{}", second.process.log_tail());
    let says = second.process.stderr().join("\n");
    let pid = world.host.process.id();
    let holder = format!(
        "in use by node `node-{}`, process {pid}",
        world.site.http_port()
    );
    assert!(says.contains(&holder), "{says}");
    world.end().await
}

#[tokio::test]
async fn tenants_share_a_folder() -> Result<()> {
    let world = World::start().await?;
    let folder = world.site.path().join("presence-state");
    let site = Site::new(&world.server.url())?
        .with("tenant.prefix", "acme")?
        .with("state.dir", &*folder.to_string_lossy())?;
    let second = Host::start(&site).await?;
    assert!(folder.join("acme.redb").exists());
    second.stop().await?;
    world.end().await
}

#[tokio::test]
async fn a_folder_that_was_named_must_be_usable_and_the_default_need_not() -> Result<()> {
    let mut world = World::start_with(|site| {
        fs::write(site.path().join("presence-state"), "no folder")?;
        Ok(site)
    })
    .await?;
    world
        .host
        .wait_for_log(0, &["will not survive a restart"])
        .await?;
    world.host.process.stop().await?;

    world.site.set("state.dir", "presence-state")?;
    let mut host = Host::spawn(&world.site)?;
    let status = host.process.wait().await?;
    assert_eq!(status.code(), Some(1));
    let says = host.process.stderr().join("\n");
    assert!(says.contains("[state] dir"), "{says}");
    Ok(())
}

#[tokio::test]
async fn a_host_killed_again_and_again_keeps_no_ghost_and_nobody_who_speaks_goes() -> Result<()> {
    let prepare = |site: Site| {
        site.with("tracker.timeout_ms", 6_000)?
            .with("state.flush_ms", 10)
    };
    let mut world = World::start_with(prepare).await?;
    for user in ["12345", "22222"] {
        let body = inputs::connect(user, "c1", now_ms());
        world.client.input(CONNECT, body).await?;
    }
    world.host.until_saved(4.0).await?;
    // Each run is far shorter than the timeout, and one of the two users sends heartbeats all the
    // time.
    let _speaker = HeartbeatSenders::start(&world.client, &["22222".to_owned()]);
    let begin = std::time::Instant::now();
    while on(world.tape.seen(), OFFLINE).is_empty() {
        assert!(begin.elapsed() < wait::GUARD, "the ghost stays");
        world.host.process.kill().await?;
        world.host = Host::start(&world.site).await?;
        let body = inputs::heartbeat("22222", "c1", now_ms());
        world.client.input(HEARTBEAT, body).await?;
        world.host.until_saved(3.0).await?;
        // A run of a second, in which the broker answers a few times.
        let run = std::time::Instant::now();
        let over = async || Ok((run.elapsed().as_secs() >= 1).then_some(()));
        wait::until("the run to be over", over).await?;
        world.tape.catch_up(&world.client).await?;
    }
    let gone = on(world.tape.seen(), OFFLINE);
    assert_eq!(gone[0]["userId"], "12345", "{gone:?}");
    assert_eq!(gone[0]["reason"], "timeout");
    world.end().await
}

#[tokio::test]
async fn what_is_kept_is_its_user_s_alone_though_others_can_use_the_folder() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::start_with(|site| {
        let dir = site.path().join("presence-state");
        fs::create_dir(&dir)?;
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777))?;
        Ok(site)
    })
    .await?;
    let mut files = Vec::new();
    for entry in fs::read_dir(world.site.path().join("presence-state"))? {
        let entry = entry?;
        files.push((
            entry.file_name(),
            entry.metadata()?.permissions().mode() & 0o777,
        ));
    }
    ensure!(files.len() >= 3, "{files:?}");
    ensure!(files.iter().all(|(_, mode)| *mode == 0o600), "{files:?}");
    world.end().await
}
