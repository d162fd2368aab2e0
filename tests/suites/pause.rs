//! Pauses: the node or the broker is stopped by a signal, the link between them swallows
//! everything, or one of them starts again and again. Nobody who sends heartbeats is reported gone,
//! and nobody who doesn't stays for ever.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use presence_tests::client::{Client, Recording, now_ms};
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::process::Signal;
use presence_tests::proxy::Proxy;
use presence_tests::site::Site;
use presence_tests::wait;
use serde_json::{Value, json};

use crate::heartbeat_senders::HeartbeatSenders;
use crate::inputs::{self, CONNECT, DISCONNECT, OFFLINE, ONLINE};
use crate::world::on;

const TIMEOUT_MS: u64 = 2_000;

/// Longer than a timeout, than a grace, and than it takes to notice a silence.
const PAUSE: Duration = Duration::from_millis(5_000);

const SPEAKERS: usize = 30;

/// A node behind a link, with many users who send heartbeats and one who doesn't. The fields are
/// dropped in this order.
struct Scene {
    _speakers: HeartbeatSenders,
    host: Host,
    client: Client,
    tape: Recording,
    site: Site,
    link: Proxy,
    server: NatsServer,
}

impl Scene {
    async fn start(prepare: impl FnOnce(Site) -> Result<Site>) -> Result<Self> {
        let server = NatsServer::start().await?;
        let link = Proxy::start(server.port()).await?;
        let site = prepare(Site::new(&link.url())?)?;
        let client = Client::connect(&server.url()).await?;
        let tape = client.record("presence.>").await?;
        let host = Host::start(&site).await?;
        let speakers: Vec<_> = (0..SPEAKERS).map(|it| format!("speaker-{it}")).collect();
        for user in speakers.iter().map(String::as_str).chain(["silent"]) {
            let body = inputs::connect(user, "c1", now_ms());
            client.input(CONNECT, body).await?;
        }
        // A client of their own, since many transports are many clients.
        let transport = Client::connect(&server.url()).await?;
        Ok(Self {
            _speakers: HeartbeatSenders::start(&transport, &speakers),
            host,
            client,
            tape,
            site,
            link,
            server,
        })
    }

    /// Waits until the silent user is gone, and checks that nobody else is.
    async fn only_the_silent_one_goes(&mut self) -> Result<()> {
        let gone = self.tape.hosts(OFFLINE, 1).await?;
        let who: Vec<_> = gone.iter().map(|gone| gone.text("userId")).collect();
        ensure!(who == ["silent"], "who spoke is taken for gone: {who:?}");
        ensure!(gone[0].text("reason") == "timeout", "{}", gone[0].body);
        // Nobody else is reported gone, then or since.
        self.tape.catch_up(&self.client).await?;
        let gone = on(self.tape.seen(), OFFLINE);
        ensure!(gone.len() == 1, "{gone:#?}");
        // The metric follows the message.
        let all = |online: f64| online == SPEAKERS as f64;
        self.host
            .until_metric("presence_online_users", &[], all)
            .await?;
        let came = on(self.tape.seen(), ONLINE).len();
        ensure!(came == SPEAKERS + 1, "{came} have come online");
        Ok(())
    }

    async fn end(self) -> Result<()> {
        self.host.stop().await
    }
}

fn short(site: Site) -> Result<Site> {
    site.with("tracker.timeout_ms", TIMEOUT_MS as i64)
}

/// Waits until a pause is over: only the time shows it.
async fn pass(since: Instant, pause: Duration) -> Result<()> {
    let over = async || Ok((since.elapsed() >= pause).then_some(()));
    wait::until("the pause to be over", over).await
}

#[tokio::test]
async fn a_node_that_is_stopped_where_it_is_takes_nobody_for_gone_who_spoke() -> Result<()> {
    let mut scene = Scene::start(short).await?;
    let paused = Instant::now();
    scene.host.process.signal(Signal::STOP)?;
    pass(paused, PAUSE).await?;
    scene.host.process.signal(Signal::CONT)?;
    scene.only_the_silent_one_goes().await?;
    scene.end().await
}

#[tokio::test]
async fn a_broker_that_is_stopped_where_it_is_takes_nobody_offline_and_turns_readiness()
-> Result<()> {
    let mut scene = Scene::start(short).await?;
    let paused = Instant::now();
    scene.server.signal(Signal::STOP)?;
    scene.host.unready().await?;
    println!("unready after {:?}", paused.elapsed());
    pass(paused, PAUSE).await?;
    scene.server.signal(Signal::CONT)?;
    scene.host.ready().await?;
    scene.only_the_silent_one_goes().await?;
    scene.end().await
}

#[tokio::test]
async fn a_link_that_swallows_all_takes_nobody_offline_and_turns_readiness() -> Result<()> {
    let mut scene = Scene::start(short).await?;
    let paused = Instant::now();
    scene.link.pause();
    scene.host.unready().await?;
    println!("unready after {:?}", paused.elapsed());
    pass(paused, PAUSE).await?;
    // What is in the link is lost, as when a router forgets a connection.
    scene.link.drop_connections();
    scene.link.resume();
    scene.host.ready().await?;
    scene.only_the_silent_one_goes().await?;
    scene.end().await
}

#[tokio::test]
async fn a_broker_that_starts_again_and_again_keeps_no_ghost() -> Result<()> {
    let mut scene = Scene::start(short).await?;
    let online = async |scene: &Scene| scene.host.metric("presence_online_users", &[]).await;
    let begin = Instant::now();
    while online(&scene).await? > SPEAKERS as f64 {
        ensure!(begin.elapsed() < wait::GUARD, "the ghost stays");
        let up = Instant::now();
        scene.server.kill().await?;
        scene.server.resume().await?;
        pass(up, Duration::from_secs(1)).await?;
    }
    println!("gone after {:?}", begin.elapsed());
    scene.host.ready().await?;
    // The users who send heartbeats are still there, and were all the time.
    let count = online(&scene).await?;
    ensure!(count == SPEAKERS as f64, "{count} are online");
    let events = scene.host.metrics().await?;
    for number in 0..SPEAKERS {
        let user = format!("speaker-{number}");
        let answer = ask(&scene.client, &user).await?;
        ensure!(answer == json!(null), "{answer}\n{events}");
    }
    scene.end().await
}

/// The time of a user's last departure, as it is remembered.
async fn ask(client: &Client, user: &str) -> Result<Value> {
    let question = json!({"viewerId": "viewer", "userIds": [user]}).to_string();
    let answer = client.request("presence.query", question).await?;
    Ok(answer["users"][0]["lastSeen"].clone())
}

/// How a node is made to hear nothing for a while.
#[derive(Clone, Copy, Debug)]
enum Way {
    NodeFrozen,
    BrokerFrozen,
    LinkHangs,
    NodeDown,
}

#[tokio::test]
async fn a_grace_stops_in_a_pause_of_any_kind() -> Result<()> {
    tokio::try_join!(
        grace(Way::NodeFrozen),
        grace(Way::NodeDown),
        grace(Way::BrokerFrozen),
        grace(Way::LinkHangs),
    )
    .map(drop)
}

async fn grace(way: Way) -> Result<()> {
    const GRACE_MS: i64 = 4_000;
    let prepare = |site: Site| {
        site.with("tracker.timeout_ms", 60_000)?
            .with("tracker.grace_ms", GRACE_MS)?
            .with("state.flush_ms", 10)
    };
    let mut scene = Scene::start(prepare).await?;
    let records = "presence_state_records_total";
    let before = scene.host.metric(records, &[]).await?;
    let bye = inputs::disconnect("silent", "c1", now_ms(), "client_disconnect");
    scene.client.input(DISCONNECT, bye).await?;
    let saved = |it: f64| it >= before + 60.0;
    scene.host.until_metric(records, &[], saved).await?;

    let paused = Instant::now();
    match way {
        Way::NodeFrozen => scene.host.process.signal(Signal::STOP)?,
        Way::BrokerFrozen => scene.server.signal(Signal::STOP)?,
        Way::LinkHangs => scene.link.pause(),
        Way::NodeDown => scene.host.process.kill().await?,
    }
    pass(paused, PAUSE).await?;
    // The user connects again while the node can't hear it.
    let back = inputs::connect("silent", "c2", now_ms());
    if !matches!(way, Way::NodeDown) {
        scene.client.publish(CONNECT, &back).await?;
    }
    match way {
        Way::NodeFrozen => scene.host.process.signal(Signal::CONT)?,
        Way::BrokerFrozen => scene.server.signal(Signal::CONT)?,
        Way::LinkHangs => scene.link.resume(),
        Way::NodeDown => scene.host = Host::start(&scene.site).await?,
    }
    scene.host.ready().await?;
    // When this is answered, the first connect has been handled. A second one does no harm.
    scene.client.input(CONNECT, back).await?;
    scene.tape.catch_up(&scene.client).await?;
    let online = scene.host.metric("presence_online_users", &[]).await?;
    ensure!(online == (SPEAKERS + 1) as f64, "{way:?}: {online}");
    let gone = on(scene.tape.seen(), OFFLINE);
    ensure!(gone.is_empty(), "{way:?}: {gone:#?}");
    let came = on(scene.tape.seen(), ONLINE).len();
    ensure!(came == SPEAKERS + 1, "{way:?}: {came} have come online");
    scene.end().await
}
