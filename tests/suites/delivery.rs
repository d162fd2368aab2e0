//! What viewers are told reaches the broker, whatever happens to the link, the node or the broker.
//! The state never says that a viewer was told who wasn't.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;

use presence_tests::client::{Client, ReceivedMessage, Recording, now_ms};
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::process::Signal;
use presence_tests::proxy::Proxy;
use presence_tests::site::Site;
use serde_json::{Value, json};

use crate::inputs::{self, CONNECT, DISCONNECT, FILTERED_OFFLINE, FILTERED_ONLINE};

const USERS: usize = 1_500;

fn user(number: usize) -> String {
    format!("user-{number}")
}

/// A directory in which one viewer sees all users, or none.
fn directory(visible: bool) -> Value {
    let viewers: &[&str] = if visible { &["viewer"] } else { &[] };
    let contacts: BTreeMap<_, _> = (0..USERS).map(|number| (user(number), viewers)).collect();
    json!({"contacts": contacts})
}

/// All users connect, and the viewer is told of each.
async fn all_come(client: &Client, tape: &mut Recording) -> Result<()> {
    for number in 0..USERS {
        let connect = inputs::connect(&user(number), "c", now_ms());
        client.publish(CONNECT, &connect).await?;
    }
    tape.hosts(FILTERED_ONLINE, USERS).await.map(drop)
}

/// The users about whom the host has published on a subject.
fn users_on<'a>(seen: &'a [ReceivedMessage], subject: &str) -> BTreeSet<&'a str> {
    let on = seen.iter().filter(|seen| seen.subject == subject);
    on.map(|seen| seen.text("userId")).collect()
}

/// A host behind a link that can fail, whose viewer has been told of all users.
struct Scene {
    host: Host,
    client: Client,
    tape: Recording,
    site: Site,
    proxy: Proxy,
    // It is dropped last.
    _server: NatsServer,
}

impl Scene {
    async fn start(prepare: impl FnOnce(Site) -> Result<Site>) -> Result<Self> {
        let server = NatsServer::start().await?;
        let proxy = Proxy::start(server.port()).await?;
        let site = Site::new(&proxy.url())?.with("correction.messages_per_s", 0)?;
        let site = prepare(site)?;
        site.write_directory_value(&directory(true))?;
        let client = Client::connect(&server.url()).await?;
        let mut tape = client.record("presence.>").await?;
        let host = Host::start(&site).await?;
        all_come(&client, &mut tape).await?;
        Ok(Self {
            host,
            client,
            tape,
            site,
            proxy,
            _server: server,
        })
    }

    /// Has all users hidden from the viewer, and waits until the host has decided so.
    async fn hide_all(&self) -> Result<()> {
        hide_all(&self.site, &self.host).await
    }
}

async fn hide_all(site: &Site, host: &Host) -> Result<()> {
    site.write_directory_value(&directory(false))?;
    let decided = |count| count >= USERS as f64;
    host.until_metric("presence_correction_messages_total", &[], decided)
        .await
}

/// Records until the viewer has been told that all users are gone.
async fn all_are_gone(tape: &mut Recording) -> Result<()> {
    tape.until("every user's offline to be told", |seen| {
        // The whole search is worth it only when there are enough messages.
        let is_it = |seen: &&ReceivedMessage| seen.subject == FILTERED_OFFLINE;
        seen.iter().filter(is_it).count() >= USERS
            && users_on(seen, FILTERED_OFFLINE).len() == USERS
    })
    .await
}

/// Every number of every subject came, in every epoch of every source.
fn assert_gapless(seen: &[ReceivedMessage]) {
    let mut numbers: BTreeMap<_, BTreeSet<u64>> = BTreeMap::new();
    for seen in seen.iter().filter(|seen| seen.is_from_host()) {
        let (source, epoch, seq) = seen.sequence();
        let of = (source, epoch, &seen.subject);
        numbers.entry(of).or_default().insert(seq);
    }
    for (of, numbers) in numbers {
        let last = numbers.last().copied().unwrap_or_default();
        assert_eq!(numbers.len() as u64, last, "numbers are missing of {of:?}");
    }
}

#[tokio::test]
async fn a_link_that_hangs_and_is_then_cut_loses_nothing() -> Result<()> {
    let mut scene = Scene::start(Ok).await?;

    // The offlines go into a link that takes them and passes nothing on.
    scene.proxy.pause();
    scene.hide_all().await?;
    scene.proxy.drop_connections();
    scene.proxy.resume();

    all_are_gone(&mut scene.tape).await?;
    scene.host.ready().await?;
    assert_gapless(scene.tape.seen());
    let again = "presence_published_again_total";
    scene
        .host
        .until_metric(again, &[], |count| count > 0.0)
        .await?;
    scene
        .host
        .until_metric("presence_journal_bytes", &[], |bytes| bytes == 0.0)
        .await?;
    scene.host.stop().await
}

#[tokio::test]
async fn a_kill_in_the_middle_of_a_burst_leaves_nobody_believing_in_who_left() -> Result<()> {
    let mut scene = Scene::start(|site| site.with("state.flush_ms", 10)).await?;
    scene.host.until_saved(USERS as f64).await?;

    // What the host publishes and stores from here on, the broker never gets.
    scene.proxy.pause();
    scene.hide_all().await?;
    scene.host.kill().await?;
    scene.proxy.drop_connections();
    scene.proxy.resume();

    // Its state says that the viewer was told of the users, and nothing of the offlines since.
    scene.host = Host::start(&scene.site).await?;
    all_are_gone(&mut scene.tape).await?;
    assert_gapless(scene.tape.seen());
    scene.host.stop().await
}

#[tokio::test]
async fn a_stop_without_a_broker_keeps_what_the_broker_had() -> Result<()> {
    let mut scene = Scene::start(Ok).await?;
    scene.host.until_saved(USERS as f64).await?;

    scene.proxy.cut();
    scene.host.unready().await?;
    scene.hide_all().await?;
    scene.host.wait_for_log(0, &["directory changed"]).await?;
    scene.host.stop().await?;
    scene.proxy.resume();

    scene.host = Host::start(&scene.site).await?;
    all_are_gone(&mut scene.tape).await?;
    scene.host.stop().await
}

#[tokio::test]
async fn a_stop_without_a_broker_and_without_room_does_not_use_up_its_time() -> Result<()> {
    let scene = Scene::start(|site| {
        site.with("nats.journal_bytes", 65_536)?
            .with("node.stop_timeout_ms", 3_600_000)
    });
    let mut scene = scene.await?;
    scene.proxy.cut();
    scene.host.unready().await?;
    // More offlines than there is room for.
    scene.site.write_directory_value(&directory(false))?;
    let full = &["the journal of this thread is full"];
    scene.host.wait_for_log(0, full).await?;
    scene.host.stop().await
}

#[tokio::test]
async fn a_broker_killed_in_the_middle_of_traffic_gets_what_it_missed() -> Result<()> {
    let mut server = NatsServer::start().await?;
    let site = Site::new(&server.url())?;
    site.write_directory_value(&directory(true))?;
    let client = Client::connect(&server.url()).await?;
    let mut tape = client.record("presence.>").await?;
    let mut host = Host::start(&site).await?;
    all_come(&client, &mut tape).await?;

    server.stop().await?;
    host.unready().await?;
    hide_all(&site, &host).await?;
    // The listener has to be connected before the host is, or it would miss messages. Here, the
    // host publishes again what it published while the broker was stopped.
    host.process.signal(Signal::STOP)?;
    server.resume().await?;
    client.round_trip().await?;
    host.process.signal(Signal::CONT)?;
    host.ready().await?;
    all_are_gone(&mut tape).await?;
    assert_eq!(
        users_on(tape.seen(), FILTERED_ONLINE).len(),
        USERS,
        "and nobody came back"
    );
    host.stop().await
}

#[tokio::test]
async fn what_is_said_while_the_broker_is_away_comes_in_order_and_once() -> Result<()> {
    let mut scene = Scene::start(Ok).await?;
    scene
        .host
        .until_metric("presence_journal_bytes", &[], |bytes| bytes == 0.0)
        .await?;

    scene.proxy.cut();
    scene.host.unready().await?;
    let from = scene.tape.seen().len();
    scene.hide_all().await?;
    scene.proxy.resume();
    scene.host.ready().await?;
    all_are_gone(&mut scene.tape).await?;
    let mut last: BTreeMap<_, u64> = BTreeMap::new();
    for seen in scene.tape.seen()[from..]
        .iter()
        .filter(|seen| seen.is_from_host())
    {
        let (source, _, seq) = seen.sequence();
        let last = last.entry((source, &seen.subject)).or_insert(seq - 1);
        assert_eq!(seq, *last + 1, "{}", seen.subject);
        *last = seq;
    }
    let bye = inputs::disconnect(&user(0), "c", now_ms(), "client_disconnect");
    scene.client.input(DISCONNECT, bye).await?;
    scene.host.stop().await
}
