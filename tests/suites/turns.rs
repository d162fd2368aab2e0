//! Two nodes on the same subjects: one serves, the other waits for its turn. A rolling
//! update loses nobody, and a node that was paused while another took its turn finds out.

use std::time::Instant;

use anyhow::{Result, ensure};
use presence_tests::client::{Client, ReceivedMessage, Recording, now_ms};
use presence_tests::host::Host;
use presence_tests::http;
use presence_tests::nats::{NatsServer, Options};
use presence_tests::process::Signal;
use presence_tests::site::Site;

use crate::heartbeat_senders::HeartbeatSenders;
use crate::inputs::{self, CONNECT, FILTERED_ONLINE, OFFLINE};
use crate::world::on;

const SPEAKERS: usize = 20;

/// A broker, and users who send heartbeats all the time.
struct Scene {
    _speakers: HeartbeatSenders,
    client: Client,
    tape: Recording,
    server: NatsServer,
}

impl Scene {
    async fn start() -> Result<Self> {
        let server = NatsServer::start().await?;
        let client = Client::connect(&server.url()).await?;
        let speakers: Vec<_> = (0..SPEAKERS).map(|it| format!("speaker-{it}")).collect();
        Ok(Self {
            tape: client.record("presence.>").await?,
            _speakers: HeartbeatSenders::start(&Client::connect(&server.url()).await?, &speakers),
            client,
            server,
        })
    }

    fn site(&self, name: &str) -> Result<Site> {
        Site::new(&self.server.url())?.with("node.name", name)
    }

    /// Waits until all of them are online on a node.
    async fn are_online(&self, host: &Host) -> Result<()> {
        let all = |online: f64| online == SPEAKERS as f64;
        host.until_metric("presence_online_users", &[], all).await
    }

    /// Checks that nobody was reported gone, and that only these nodes have published.
    async fn ends_well(&mut self, nodes: &[&str]) -> Result<()> {
        self.tape.catch_up(&self.client).await?;
        let gone = on(self.tape.seen(), OFFLINE);
        ensure!(gone.is_empty(), "{gone:#?}");
        for seen in self.tape.seen().iter().filter(|seen| seen.is_from_host()) {
            let (source, ..) = seen.sequence();
            let node = source.split('/').next().unwrap_or_default();
            ensure!(nodes.contains(&node), "{source}: {nodes:?}");
        }
        Ok(())
    }
}

/// Waits until a node waits for its turn: it is alive, not ready, and says why.
async fn waits(host: &mut Host, site: &Site, words: &[&str]) -> Result<()> {
    host.wait_for_log(0, words).await?;
    let answer = http::get(site.http_port(), "/readyz").await?;
    ensure!(answer.status == 503, "{answer:?}");
    ensure!(
        words.iter().all(|word| answer.body.contains(word)),
        "{answer:?}"
    );
    let alive = http::get(site.http_port(), "/healthz").await?;
    ensure!(alive.status == 200, "{alive:?}");
    ensure!(host.metric("presence_waiting", &[]).await? == 1.0);
    Ok(())
}

fn count_lines(host: &Host, words: &str) -> usize {
    let lines = host.process.stderr();
    lines.iter().filter(|line| line.contains(words)).count()
}

#[tokio::test]
async fn in_a_rolling_update_the_second_node_waits_and_goes_on_where_the_first_ended() -> Result<()>
{
    let mut scene = Scene::start().await?;
    let site = scene.site("first")?;
    let first = Host::start(&site).await?;
    scene.are_online(&first).await?;
    // Nodes on one machine, with one state.
    let state = site.path().join("presence-state");
    let next = scene
        .site("second")?
        .with("state.dir", &*state.to_string_lossy())?;
    let mut second = Host::spawn(&next)?;
    waits(&mut second, &next, &["waiting while node `first` serves"]).await?;
    // A node that is stopped while it waits ends at once.
    let third_site = scene.site("third")?;
    let mut third = Host::spawn(&third_site)?;
    waits(
        &mut third,
        &third_site,
        &["waiting while node `first` serves"],
    )
    .await?;
    third.stop().await?;
    scene.ends_well(&["first"]).await?;
    first.stop().await?;
    let stopped = Instant::now();
    second.ready().await?;
    println!("ready {:?} after the other had stopped", stopped.elapsed());
    ensure!(count_lines(&second, "waiting while node `first`") == 1);
    second.wait_for_log(0, &["restored 20 users"]).await?;
    let connect = inputs::connect("speaker-0", "c1", now_ms());
    scene.client.input(CONNECT, connect).await?;
    scene.are_online(&second).await?;
    scene.ends_well(&["first", "second"]).await?;
    second.stop().await
}

#[tokio::test]
async fn a_node_that_was_paused_meets_the_one_that_took_its_turn_and_one_steps_back() -> Result<()>
{
    let mut scene = Scene::start().await?;
    // Nodes find each other even if answers go to other prefixes.
    let site = scene
        .site("first")?
        .with("nats.reply_prefixes", vec!["_R_."])?;
    let next = scene.site("second")?;
    let mut first = Host::start(&site).await?;
    scene.are_online(&first).await?;
    let mut second = Host::spawn(&next)?;
    waits(&mut second, &next, &["waiting while node `first` serves"]).await?;
    let paused = Instant::now();
    first.process.signal(Signal::STOP)?;
    second.ready().await?;
    println!("ready {:?} after the other was paused", paused.elapsed());
    scene.are_online(&second).await?;
    let from = second.log_len();
    let both = Instant::now();
    first.process.signal(Signal::CONT)?;
    second
        .wait_for_log(from, &["node `first` serves as well"])
        .await?;
    println!("met after {:?}", both.elapsed());
    second
        .wait_for_log(from, &["waiting while node `first` serves"])
        .await?;
    second.unready().await?;
    println!("one waits after {:?}", both.elapsed());
    first.ready().await?;
    scene.are_online(&first).await?;
    scene.ends_well(&["first", "second"]).await?;
    // The other node still waits for its turn.
    first.stop().await?;
    second.ready().await?;
    scene.are_online(&second).await?;
    scene.ends_well(&["first", "second"]).await?;
    second.stop().await
}

#[tokio::test]
async fn a_node_that_may_not_ask_for_others_does_not_serve() -> Result<()> {
    for deny in ["publish", "subscribe"] {
        let user = |permissions: &str| {
            let user = format!("user: node, password: secret, permissions: {{ {permissions} }}");
            format!("authorization {{ users = [ {{ {user} }} ] }}")
        };
        let denied = format!("{deny}: {{ deny: \"presence-nodes.hello\" }}");
        let mut server = NatsServer::start_with(Options {
            config: user(&denied),
            ..Options::default()
        })
        .await?;
        let url = format!("nats://node:secret@127.0.0.1:{}", server.port());
        let site = Site::new(&url)?;
        let mut host = Host::spawn(&site)?;
        waits(&mut host, &site, &["NATS forbids `presence-nodes.hello`"]).await?;
        server.set_config(&user(""))?;
        server.restart().await?;
        host.ready().await?;
        host.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_node_that_has_waited_serves_by_the_rules_of_now() -> Result<()> {
    let mut scene = Scene::start().await?;
    let first = Host::start(&scene.site("first")?).await?;
    let mut site = scene.site("second")?;
    let mut second = Host::spawn(&site)?;
    waits(&mut second, &site, &["waiting while node `first` serves"]).await?;
    // When the second node started, the rules admitted contacts and groups.
    site.set_pipeline(&[("groups", None), ("redact", None)])?;
    first.stop().await?;
    second.ready().await?;
    let connect = inputs::connect("12345", "c1", now_ms());
    scene.client.input(CONNECT, connect).await?;
    let is_of_user = |seen: &ReceivedMessage| {
        seen.is_from_host() && seen.subject == FILTERED_ONLINE && seen.text("userId") == "12345"
    };
    let seen = scene.tape.next("the user to be shown", is_of_user).await?;
    assert_eq!(seen.visible_to(), ["22222"]);
    let log = second.process.stderr().join("\n");
    assert!(!log.contains("pipeline swapped"), "{log}");
    second.stop().await
}
