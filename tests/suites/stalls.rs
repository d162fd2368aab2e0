//! What hangs, or takes long, delays nothing else: loading a plugin, a silent broker, and strangers
//! at the HTTP port. And the process ends when it is told to.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use presence_tests::component;
use presence_tests::host::{self, Host};
use presence_tests::nats::NatsServer;
use presence_tests::process::Signal;
use presence_tests::site::Site;
use presence_tests::wait;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, kill_process};
use serde_json::json;

use crate::world::World;

/// Who sees 12345 by the built-in `contacts` alone, and by a directory with another contact.
const BY_CONTACT: [&str; 2] = ["11111", "67890"];
const OTHER: [&str; 1] = ["33333"];
const OTHER_DIRECTORY: &str = r#"{"contacts": {"12345": ["33333"]}}"#;

/// A world where contacts alone decide.
async fn world(prepare: impl FnOnce(Site) -> Result<Site>) -> Result<World> {
    World::start_with(|mut site| {
        site.set_pipeline(&[("contacts", None), ("redact", None)])?;
        prepare(site)
    })
    .await
}

#[tokio::test]
async fn what_is_no_file_in_the_plugin_folder_is_refused_and_holds_up_nothing() -> Result<()> {
    let mut world = world(Ok).await?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    let place = world.site.plugin_path("contacts");
    let from = world.host.log_len();
    mknodat(CWD, &place, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    world
        .host
        .wait_for_log(from, &["not swapped", "contacts.wasm is a FIFO"])
        .await?;
    world.site.write_directory(OTHER_DIRECTORY)?;
    world.until_visible_to("12345", &OTHER).await?;
    // A node that can't load its pipeline at the start ends, and says why.
    world.host.process.stop().await?;
    let mut host = Host::spawn(&world.site)?;
    host.wait_for_log(0, &["contacts.wasm is a FIFO"])
        .await
        .ok();
    let status = host.process.wait().await?;
    ensure!(status.code() == Some(1), "{status}");
    Ok(())
}

/// A plugin named `contacts` that takes over an hour to load: each of its self-tests runs until its
/// deadline.
fn slow_plugin() -> Result<Vec<u8>> {
    let case = |number: usize| {
        json!({
            "name": number.to_string(),
            "event": {"type": "user_online", "userId": "1", "timestamp": 1_698_000_000_000_u64, "metadata": {}},
            "directory": {}, "audience": [], "expect": {"audience": []},
        })
    };
    let cases: Vec<_> = (0..1_000).map(case).collect();
    component::with(&component::load("fixtures/spin")?, |manifest| {
        manifest.insert("name".into(), "contacts".into());
        manifest.insert("tests".into(), cases.clone().into());
    })
}

#[tokio::test]
async fn a_plugin_that_takes_long_to_load_holds_up_neither_the_directory_nor_a_later_one()
-> Result<()> {
    let mut world = world(|site| {
        site.with("engine.fuel", 1_000_000_000_000_i64)?
            .with("plugins.load_timeout_ms", 3_600_000)
    })
    .await?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    world.site.write_plugin("contacts", slow_plugin()?)?;
    // The plugin's file is noticed before the directory that is written now.
    world.site.write_directory(OTHER_DIRECTORY)?;
    world.until_visible_to("12345", &OTHER).await?;
    let groups = component::named(&component::load("groups")?, "contacts")?;
    world.site.write_plugin("contacts", groups)?;
    world.host.wait_for_log(0, &["pipeline swapped"]).await?;
    world.end().await
}

#[tokio::test]
async fn a_file_that_is_longer_than_allowed_is_refused() -> Result<()> {
    let mut world = world(|site| site.with("plugins.load_timeout_ms", 60_000)).await?;
    let from = world.host.log_len();
    world.site.set("plugins.file_bytes_max", 2_048)?;
    world
        .host
        .wait_for_log(from, &["configuration reloaded"])
        .await?;
    let long = component::named(&component::load("groups")?, "contacts")?;
    world.site.write_plugin("contacts", long)?;
    let words = ["longer than 2048 bytes", "[plugins] file_bytes_max"];
    world.host.wait_for_log(from, &words).await?;
    world.end().await
}

/// A world with a silent broker, while messages wait for its acknowledgement. A stop waits for this
/// until its time is over.
async fn silent_world(stop_timeout_ms: i64) -> Result<World> {
    let mut world = world(|site| {
        site.with("node.stop_timeout_ms", stop_timeout_ms)?
            .with("nats.beacon_ms", 1_000)
    })
    .await?;
    world.server.signal(Signal::STOP)?;
    world.host.unready().await?;
    Ok(world)
}

#[tokio::test]
async fn a_broker_that_says_nothing_holds_up_the_stop_for_no_longer_than_allowed() -> Result<()> {
    let mut world = silent_world(3_000).await?;
    let begin = Instant::now();
    world.host.process.terminate()?;
    let status = world.host.process.wait().await?;
    let took = begin.elapsed();
    world.server.signal(Signal::CONT)?;
    ensure!(status.success(), "{status}");
    // The steps of a stop share the time, and the machine may be slow.
    ensure!(took < Duration::from_secs(25), "{took:?}");
    Ok(())
}

#[tokio::test]
async fn a_second_signal_ends_the_process_at_once() -> Result<()> {
    let mut world = silent_world(3_600_000).await?;
    world.host.process.signal(Signal::INT)?;
    world.host.wait_for_log(0, &["stopping"]).await?;
    let process = &mut world.host.process;
    let status = wait::until("the process to end", async || {
        process.signal(Signal::TERM)?;
        process.ended()
    });
    let status = status.await?;
    world.host.wait_for_log(0, &["SIGTERM again"]).await.ok();
    world.server.signal(Signal::CONT)?;
    ensure!(status.code() == Some(1), "{status}");
    Ok(())
}

#[tokio::test]
async fn a_node_that_waits_for_its_broker_stops_when_it_is_told_to() -> Result<()> {
    let site = Site::new("nats://127.0.0.1:9")?;
    let mut host = Host::spawn(&site)?;
    host.answers("/healthz", 200).await?;
    host.stop().await
}

#[tokio::test]
async fn a_node_that_loads_its_plugins_stops_when_it_is_told_to() -> Result<()> {
    let mut site = Site::new("nats://127.0.0.1:9")?.with("engine.fuel", 1_000_000_000_000_i64)?;
    site.set_pipeline(&[("contacts", None)])?;
    site.write_plugin("contacts", slow_plugin()?)?;
    let log = (OsStr::new("PRESENCE_LOG"), OsStr::new("debug"));
    let mut host = Host::spawn_with(&site, &[log])?;
    host.wait_for_log(0, &["plugin compiled"]).await?;
    host.stop().await
}

#[tokio::test]
async fn a_log_that_nobody_reads_keeps_no_process_from_ending() -> Result<()> {
    let site = Site::new("nats://127.0.0.1:9")?.with("node.stop_timeout_ms", 1_000)?;
    let (_log, full) = rustix::pipe::pipe()?;
    rustix::io::ioctl_fionbio(&full, true)?;
    while rustix::io::write(&full, &[0; 512]).is_ok() {}
    rustix::io::ioctl_fionbio(&full, false)?;
    let mut command = host::command(&site, &["run"])?;
    let mut child = command.stderr(Stdio::from(full)).spawn()?;
    // Until it handles signals, any signal would end it.
    let status = format!("/proc/{}/status", child.id());
    wait::until("the process to take signals", async || {
        let status = fs::read_to_string(&status)?;
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.unwrap_or_default().trim(), 16)?;
        let terminate = 1 << (Signal::TERM.as_raw() - 1);
        Ok((caught & terminate != 0).then_some(()))
    })
    .await?;
    kill_process(Pid::from_child(&child), Signal::TERM)?;
    let ended = wait::until("the process to end", async || Ok(child.try_wait()?)).await;
    if ended.is_err() {
        child.kill()?;
    }
    ensure!(ended?.code() == Some(1));
    Ok(())
}

#[tokio::test]
async fn sighup_has_everything_read_again_and_refusals_said_again() -> Result<()> {
    let mut world = world(Ok).await?;
    world.site.write_plugin("contacts", "no component")?;
    let refused = ["not swapped", "contacts.wasm"];
    world.host.wait_for_log(0, &refused).await?;
    let from = world.host.log_len();
    world.host.process.signal(Signal::HUP)?;
    world.host.wait_for_log(from, &["SIGHUP"]).await?;
    world.host.wait_for_log(from, &refused).await?;
    world.end().await
}

#[tokio::test]
async fn variables_that_others_set_stop_nothing() -> Result<()> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?;
    let bytes = OsStr::from_bytes(b"\xff\xfe");
    let variables = [
        ("PRESENCE_SERVICE_HOST", OsStr::new("10.0.0.1")),
        ("PRESENCE_PORT", OsStr::new("tcp://10.0.0.1:4222")),
        ("PRESENCE_PORT_4222_TCP", OsStr::new("tcp://10.0.0.1:4222")),
        ("PRESENCE_WHATEVER", OsStr::new("1")),
        ("SOMETHING", bytes),
        ("PRESENCE_OF_MIND", bytes),
    ];
    let variables = variables.map(|(name, value)| (OsStr::new(name), value));
    let mut host = Host::spawn_with(&site, &variables)?;
    host.ready().await?;
    host.wait_for_log(0, &["PRESENCE_WHATEVER: unknown variable"])
        .await?;
    host.stop().await
}

#[tokio::test]
async fn half_sent_requests_take_neither_health_nor_the_broker() -> Result<()> {
    let mut server = NatsServer::start().await?;
    let site = Site::new(&server.url())?;
    let mut host = Host::spawn_within(&site, 128)?;
    host.ready().await?;
    let half_sent = (0..256).map(|_| {
        let mut stream = TcpStream::connect(("127.0.0.1", site.http_port()))?;
        // The node may have closed the connection to make room.
        let _ = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost:");
        anyhow::Ok(stream)
    });
    let half_sent: Vec<_> = half_sent.collect::<Result<_>>().context("connecting")?;
    server.restart().await?;
    host.wait_for_log(0, &["lost the connection"]).await?;
    host.ready().await?;
    drop(half_sent);
    host.stop().await
}
