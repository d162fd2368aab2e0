//! Connects and disconnects from a JetStream stream: taken once each, in order, whatever happens
//! to the node, the broker or the stream.

mod cluster;
mod fleet;
mod fleet_consumer;
mod kills;

use anyhow::{Result, ensure};
use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use futures_util::TryStreamExt as _;
use presence_tests::client::{Client, ReceivedMessage, now_ms};
use presence_tests::host::{self, Host};
use presence_tests::http;
use presence_tests::nats::NatsServer;
use presence_tests::process::Signal;
use presence_tests::site::Site;
use presence_tests::wait;
use serde_json::{Value, json};

use crate::headers;
use crate::inputs::{self, CONNECT, DISCONNECT, DLQ, HEARTBEAT, OFFLINE, ONLINE};
use crate::permissions;
use crate::world::World;

const STREAM: &str = "presence-input";

/// A host that takes connects and disconnects from a stream.
struct StreamWorld {
    world: World,
    context: jetstream::Context,
}

/// Runs a command of the host, which must succeed.
fn command(site: &Site, args: &[&str]) -> Result<String> {
    let output = host::run(site, args)?;
    let error = String::from_utf8(output.stderr)?;
    ensure!(output.status.success(), "{args:?}: {error}");
    Ok(String::from_utf8(output.stdout)?)
}

impl StreamWorld {
    async fn start() -> Result<Self> {
        Self::start_with(Ok).await
    }

    async fn start_with(prepare: impl FnOnce(Site) -> Result<Site>) -> Result<Self> {
        let server = NatsServer::start().await?;
        let site = Site::new(&server.url())?;
        // One shard handles everything in the stream's order.
        let site = site.with("tenant.shards", 1)?;
        let site = prepare(site.with("input.stream", STREAM)?)?;
        let client = Client::connect(&server.url()).await?;
        let tape = client.record("presence.>").await?;
        let out = command(&site, &["input", "init"])?;
        ensure!(out.contains("`presence-input` was made"), "{out}");
        let host = Host::start(&site).await?;
        let world = World {
            host,
            client,
            tape,
            site,
            server,
        };
        Ok(Self {
            context: jetstream::new(world.client.nats.clone()),
            world,
        })
    }

    /// The stream's configuration.
    async fn config(&self) -> Result<stream::Config> {
        let found = self.context.get_stream(STREAM).await?;
        Ok(found.cached_info().config.clone())
    }

    /// Publishes a message until the stream has it, and returns its number there.
    async fn store(&self, subject: &str, body: &Value) -> Result<u64> {
        self.store_with(subject, body, HeaderMap::new()).await
    }

    async fn store_with(&self, subject: &str, body: &Value, headers: HeaderMap) -> Result<u64> {
        let stored =
            self.context
                .publish_with_headers(subject.to_owned(), headers, body.to_string().into());
        Ok(stored.await?.await?.sequence)
    }

    async fn connects(&self, user: &str, conn: &str) -> Result<u64> {
        self.store(CONNECT, &inputs::connect(user, conn, now_ms()))
            .await
    }

    async fn disconnects(&self, user: &str, conn: &str) -> Result<u64> {
        let body = inputs::disconnect(user, conn, now_ms(), "client_disconnect");
        self.store(DISCONNECT, &body).await
    }

    async fn until_taken(&self, sequence: u64) -> Result<()> {
        let name = "presence_input_stream_position";
        let is_taken = |it| it >= sequence as f64;
        self.world.host.until_metric(name, &[], is_taken).await
    }

    /// Stops the host in order: the state has all that was taken.
    async fn stop(&mut self) -> Result<()> {
        self.world.host.process.stop().await
    }

    async fn kill(&mut self) -> Result<()> {
        self.world.host.process.kill().await
    }

    async fn resume(&mut self) -> Result<()> {
        self.world.host = Host::start(&self.world.site).await?;
        Ok(())
    }

    /// All events of the tracker about a user so far. Waits until the user `mark`, who was unknown
    /// before, has come online by the stream.
    async fn events(&mut self, user: &str, mark: &str) -> Result<Vec<ReceivedMessage>> {
        self.connects(mark, "mark").await?;
        let came = |seen: &ReceivedMessage| {
            seen.is_from_host() && seen.subject == ONLINE && seen.text("userId") == mark
        };
        let what = "the mark's user to come online";
        self.world
            .tape
            .until(what, |seen| seen.last().is_some_and(came))
            .await?;
        let seen = self.world.tape.seen().iter();
        let events = seen.filter(|seen| {
            let is_event = [ONLINE, OFFLINE].contains(&&*seen.subject);
            seen.is_from_host() && is_event && seen.text("userId") == user
        });
        // An event that the broker had not acknowledged is published again under the same number.
        let mut events: Vec<_> = events.cloned().collect();
        events.dedup_by(|one, other| {
            one.subject == other.subject && one.sequence() == other.sequence()
        });
        Ok(events)
    }

    /// As [`Self::events`]: the types alone.
    async fn types(&mut self, user: &str, mark: &str) -> Result<Vec<String>> {
        let events = self.events(user, mark).await?;
        let types = events.iter().map(|seen| seen.text("type").to_owned());
        Ok(types.collect())
    }
}

/// The lines of `/metrics` that only a host with a stream has.
pub(crate) async fn metrics_of_stream() -> Result<String> {
    let it = StreamWorld::start().await?;
    let metrics = it.world.host.metrics().await?;
    it.world.end().await?;
    let lines = metrics.split_inclusive('\n');
    Ok(lines
        .filter(|it| it.contains("presence_input_stream_"))
        .collect())
}

#[tokio::test]
async fn what_was_sent_while_the_node_was_away_is_taken_once_when_it_is_back() -> Result<()> {
    let mut it = StreamWorld::start().await?;
    let taken = it.connects("12345", "c1").await?;
    it.world.tape.hosts(ONLINE, 1).await?;
    it.until_taken(taken).await?;
    it.kill().await?;
    let left_at = now_ms();
    let body = inputs::disconnect("12345", "c1", left_at, "client_disconnect");
    it.store(DISCONNECT, &body).await?;
    it.connects("22222", "c2").await?;
    it.resume().await?;
    let offline = it.world.tape.hosts(OFFLINE, 1).await?.remove(0);
    assert_eq!(offline.text("reason"), "disconnect");
    assert_eq!(*offline.field("lastSeen"), left_at);
    let came = it.events("22222", "mark-1").await?;
    let [came] = &*came else {
        panic!("{came:?}");
    };
    assert_eq!(came.field("metadata")["device"], "web");

    // Both users are known, and no message is taken again.
    it.stop().await?;
    it.resume().await?;
    assert_eq!(it.types("22222", "mark-2").await?, ["user_online"]);
    let gone = it.types("12345", "mark-3").await?;
    assert_eq!(gone.last().map(String::as_str), Some("user_offline"));
    assert_eq!(gone.iter().filter(|it| *it == "user_offline").count(), 1);
    it.world.end().await
}

#[tokio::test]
async fn a_message_that_is_there_twice_makes_one_event() -> Result<()> {
    let mut it = StreamWorld::start().await?;
    let body = inputs::connect("12345", "c1", now_ms());
    let named = || HeaderMap::from_iter([("Nats-Msg-Id".parse().unwrap(), "m1".parse().unwrap())]);
    let first = it.store_with(CONNECT, &body, named()).await?;
    assert_eq!(it.store_with(CONNECT, &body, named()).await?, first);
    let second = it.store(CONNECT, &body).await?;
    ensure!(second > first);
    // A client that doesn't know of the stream publishes as usual.
    it.world.client.publish(CONNECT, &body).await?;
    assert_eq!(it.types("12345", "mark-1").await?, ["user_online"]);
    let body = inputs::disconnect("12345", "c1", now_ms(), "logout");
    for _ in 0..2 {
        it.store(DISCONNECT, &body).await?;
    }
    let types = it.types("12345", "mark-2").await?;
    assert_eq!(types, ["user_online", "user_offline"]);
    // No message was taken twice: from the stream, and as it was published.
    let connects = it
        .world
        .host
        .metric("presence_inputs_total", &["kind=\"connect\""])
        .await?;
    assert_eq!(connects, 5.0, "three of the user's, and the marks");
    it.world.end().await
}

#[tokio::test]
async fn a_bad_message_is_a_dead_letter_and_the_next_ones_are_taken() -> Result<()> {
    let mut it = StreamWorld::start().await?;
    it.store(CONNECT, &json!({"userId": "12345"})).await?;
    it.connects("22222", "c1").await?;
    let letter = it.world.tape.hosts(DLQ, 1).await?.remove(0);
    assert_eq!(letter.text("reason"), "missing-field");
    assert_eq!(letter.text("subject"), CONNECT);
    assert_eq!(it.types("22222", "mark").await?, ["user_online"]);
    it.stop().await?;
    it.resume().await?;
    it.types("22222", "mark-2").await?;
    let letters = it.world.tape.seen().iter();
    let letters = letters.filter(|seen| seen.is_from_host() && seen.subject == DLQ);
    assert_eq!(letters.count(), 1);
    it.world.end().await
}

#[tokio::test]
async fn messages_whose_headers_cant_be_read_are_taken_and_keep_none_behind_them_waiting()
-> Result<()> {
    let mut it = StreamWorld::start().await?;
    let connects = |user: &str| inputs::connect(user, "c1", now_ms());
    let sent = headers::publish_unreadable(&it.world.server, CONNECT, connects).await?;
    it.connects("22222", "c1").await?;
    it.world.tape.hosts(ONLINE, sent + 1).await?;
    let made = it.world.host.metric("presence_nats_connects_total", &[]);
    let made = made.await?;
    it.stop().await?;
    it.resume().await?;
    assert_eq!(it.types("22222", "mark").await?, ["user_online"]);
    let now = it.world.host.metric("presence_nats_connects_total", &[]);
    assert_eq!((made, now.await?), (1.0, 1.0));
    it.world.end().await
}

#[tokio::test]
async fn a_stream_that_is_missing_or_made_anew_is_said_and_taken_from_its_begin() -> Result<()> {
    let mut it = StreamWorld::start().await?;
    for number in 0..5 {
        it.connects(&format!("user-{number}"), "c1").await?;
    }
    it.until_taken(5).await?;
    it.context.delete_stream(STREAM).await?;
    it.world.host.unready_because("there is no stream").await?;
    let away = "presence_input_stream_away";
    it.world
        .host
        .until_metric(away, &[], |it| it == 1.0)
        .await?;
    // Heartbeats count meanwhile.
    let body = inputs::heartbeat("12345", "c9", now_ms());
    it.world.client.input(HEARTBEAT, body).await?;
    it.world.tape.hosts(ONLINE, 6).await?;
    let from = it.world.host.log_len();
    command(&it.world.site, &["input", "init"])?;
    it.connects("22222", "c1").await?;
    it.world.host.ready().await?;
    let words = ["is another one than before"];
    it.world.host.wait_for_log(from, &words).await?;
    assert_eq!(it.types("22222", "mark-1").await?, ["user_online"]);

    // The same if the node is away meanwhile.
    it.kill().await?;
    it.context.delete_stream(STREAM).await?;
    command(&it.world.site, &["input", "init"])?;
    it.connects("33333", "c1").await?;
    it.resume().await?;
    assert_eq!(it.types("33333", "mark-2").await?, ["user_online"]);
    assert_eq!(it.types("22222", "mark-3").await?, ["user_online"]);
    it.world.end().await
}

#[tokio::test]
async fn what_the_streams_limits_removed_unread_is_counted() -> Result<()> {
    let mut it = StreamWorld::start().await?;
    let first = it.connects("12345", "c1").await?;
    it.until_taken(first).await?;
    it.world.tape.hosts(ONLINE, 1).await?;
    it.stop().await?;
    for number in 0..10 {
        it.connects(&format!("user-{number}"), "c1").await?;
    }
    let mut config = it.config().await?;
    config.max_messages = 3;
    it.context.update_stream(&config).await?;
    it.resume().await?;
    let lost = "presence_input_stream_lost_total";
    it.world
        .host
        .until_metric(lost, &[], |it| it == 7.0)
        .await?;
    let words = ["messages=7", "were removed from the stream"];
    it.world.host.wait_for_log(0, &words).await?;
    it.world.tape.hosts(ONLINE, 4).await?;
    assert_eq!(it.types("user-9", "mark").await?, ["user_online"]);
    assert!(it.types("user-6", "mark-2").await?.is_empty());
    it.world.end().await
}

#[tokio::test]
async fn a_broker_that_restarts_and_a_node_that_is_stopped_lose_nothing() -> Result<()> {
    let mut it = StreamWorld::start().await?;
    let first = it.connects("12345", "c1").await?;
    it.until_taken(first).await?;
    it.world.server.kill().await?;
    it.world.server.resume().await?;
    let stored = wait::until("the stream to be back", async || {
        Ok(it.disconnects("12345", "c1").await.ok())
    });
    stored.await?;
    let types = it.types("12345", "mark-1").await?;
    assert_eq!(types, ["user_online", "user_offline"]);

    it.world.host.process.signal(Signal::STOP)?;
    it.connects("22222", "c1").await?;
    it.disconnects("22222", "c1").await?;
    it.connects("33333", "c1").await?;
    it.world.host.process.signal(Signal::CONT)?;
    let types = it.types("33333", "mark-2").await?;
    assert_eq!(types, ["user_online"]);
    let types = it.types("22222", "mark-3").await?;
    assert_eq!(types, ["user_online", "user_offline"]);
    let lost = it
        .world
        .host
        .metric("presence_input_stream_lost_total", &[])
        .await?;
    assert_eq!(lost, 0.0);
    it.world.end().await
}

#[tokio::test]
async fn a_stream_that_input_cant_be_taken_from_is_refused_until_it_is_mended() -> Result<()> {
    let mut it = StreamWorld::start().await?;
    let config = it.config().await?;
    let wider = stream::Config {
        subjects: vec!["presence.*".into()],
        ..config.clone()
    };
    it.context.update_stream(&wider).await?;
    let why = "and not just `presence.connect` and `presence.disconnect`";
    it.world.host.unready_because(why).await?;
    it.context.update_stream(&config).await?;
    it.world.host.ready().await?;
    it.connects("12345", "c1").await?;
    assert_eq!(it.types("12345", "mark").await?, ["user_online"]);
    let refused = host::run(&it.world.site, &["input", "init", "--max-age", "0s"])?;
    ensure!(refused.status.code() == Some(2));
    let out = command(&it.world.site, &["input", "init", "--max-age", "36h"])?;
    ensure!(
        out.contains("was there, and keeps") && out.contains("for 36 h"),
        "{out}"
    );
    it.world.end().await
}

#[tokio::test]
async fn a_node_whose_consumer_is_removed_goes_on_with_the_next_message() -> Result<()> {
    let mut it = StreamWorld::start().await?;
    let first = it.connects("12345", "c1").await?;
    it.until_taken(first).await?;
    let stream = it.context.get_stream(STREAM).await?;
    let consumers: Vec<String> = stream.consumer_names().try_collect().await?;
    ensure!(!consumers.is_empty());
    for consumer in consumers {
        stream.delete_consumer(&consumer).await?;
    }
    it.disconnects("12345", "c1").await?;
    let types = it.types("12345", "mark").await?;
    assert_eq!(types, ["user_online", "user_offline"]);
    let lost = "presence_input_stream_lost_total";
    assert_eq!(it.world.host.metric(lost, &[]).await?, 0.0);
    it.world.end().await
}

#[tokio::test]
async fn the_first_time_what_was_stored_since_the_node_last_ran_is_taken() -> Result<()> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?.with("tenant.shards", 1)?;
    let client = Client::connect(&server.url()).await?;
    let tape = client.record("presence.>").await?;
    command(&site, &["input", "init"])?;
    // Without [input], the stream only stores messages. To a request, both the node and the stream
    // would answer, so messages are published without a reply subject.
    let host = Host::start(&site).await?;
    let context = jetstream::new(client.nats.clone());
    let world = World {
        host,
        client,
        tape,
        site,
        server,
    };
    let mut it = StreamWorld { world, context };
    for (subject, body) in [
        (CONNECT, inputs::connect("12345", "c1", now_ms())),
        (
            DISCONNECT,
            inputs::disconnect("12345", "c1", now_ms(), "logout"),
        ),
        (CONNECT, inputs::connect("22222", "c1", now_ms())),
    ] {
        it.world.client.publish(subject, &body).await?;
    }
    it.world.tape.hosts(ONLINE, 2).await?;
    it.stop().await?;
    it.disconnects("22222", "c1").await?;
    it.world.site.set("input.stream", STREAM)?;
    it.resume().await?;
    let types = it.types("22222", "mark").await?;
    assert_eq!(types, ["user_online", "user_offline"]);
    let types = it.types("12345", "mark-2").await?;
    assert_eq!(types, ["user_online", "user_offline"]);
    it.world.end().await
}

#[tokio::test]
async fn no_more_are_taken_than_the_tenant_may_send_and_none_is_refused() -> Result<()> {
    let prepare = |site: Site| {
        site.with("limits.messages_per_s", 100)?
            .with("limits.messages_burst", 10)
    };
    let mut it = StreamWorld::start_with(prepare).await?;
    for number in 0..150 {
        it.connects(&format!("user-{number}"), "c1").await?;
    }
    it.world.tape.hosts(ONLINE, 150).await?;
    let metrics = it.world.host.metrics().await?;
    let refused = http::metric(
        &metrics,
        "presence_quota_exceeded_total",
        &["quota=\"messages\""],
    );
    assert_eq!(refused, 0.0);
    it.world.end().await
}

#[tokio::test]
async fn what_waits_for_its_turn_keeps_nobody_waiting_who_came_before() -> Result<()> {
    let prepare = |site: Site| {
        site.with("limits.messages_per_s", 10)?
            .with("limits.messages_burst", 10)
    };
    let mut it = StreamWorld::start_with(prepare).await?;
    it.world.host.process.signal(Signal::STOP)?;
    for number in 0..40 {
        it.connects(&format!("user-{number}"), "c1").await?;
    }
    it.world.host.process.signal(Signal::CONT)?;
    let came = it.world.tape.hosts(ONLINE, 40).await?;
    let at = |number: usize| came[number].field("timestamp").as_u64().unwrap();
    let spread_ms = at(39) - at(0);
    ensure!(spread_ms >= 2_000, "all came within {spread_ms} ms");
    it.world.end().await
}

#[tokio::test]
async fn commands_take_the_streams_word_for_an_answer() -> Result<()> {
    let mut it = StreamWorld::start().await?;
    command(&it.world.site, &["dlq", "init"])?;
    let connect = json!({"userId": "12345", "connId": "c1"}).to_string();
    let out = command(&it.world.site, &["pub", "event", CONNECT, &connect])?;
    let answer: Value = serde_json::from_str(&out)?;
    assert_eq!(answer["stream"], STREAM);
    command(
        &it.world.site,
        &["pub", "disconnect", "12345", "--conn", "c1"],
    )?;
    let types = it.types("12345", "mark").await?;
    assert_eq!(types, ["user_online", "user_offline"]);
    // A message that can't be read fails again when it is redriven.
    it.store(CONNECT, &json!({"userId": "12345"})).await?;
    it.world.tape.hosts(DLQ, 1).await?;
    let out = wait::until("the dead letter to be redriven", async || {
        let args = [
            "dlq",
            "redrive",
            "--yes",
            "--json",
            "--reason",
            "missing-field",
        ];
        let output = host::run(&it.world.site, &args)?;
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let done = said["redriven"].as_array().is_some_and(|it| !it.is_empty());
        Ok(done.then_some(said))
    })
    .await?;
    assert_eq!(out["redriven"][0]["outcome"], "accepted", "{out}");
    it.world.tape.hosts(DLQ, 2).await?;
    it.world.end().await
}

#[tokio::test]
async fn it_works_with_the_permissions_of_the_file() -> Result<()> {
    let server = permissions::server().await?;
    let site = Site::new(&server.url())?.with("input.stream", STREAM)?;
    let site = permissions::as_user(site, "operator")?;
    command(&site, &["input", "init"])?;
    command(&site, &["input", "init", "--max-age", "2d"])?;
    let site = permissions::as_user(site, "processor")?;
    command(&site, &["check", "--connect"])?;
    let host = Host::start(&site).await?;
    // A transport needs no further rights to have its messages acknowledged.
    let transport = permissions::connect(&server, "transport").await?;
    let body = inputs::connect("12345", "c1", now_ms()).to_string();
    let context = jetstream::new(transport);
    let stored = context.publish(CONNECT, body.into());
    assert_eq!(stored.await?.await?.stream, STREAM);
    host.until_metric("presence_online_users", &[], |it| it == 1.0)
        .await?;
    let errors = host.metric("presence_nats_errors_total", &[]).await?;
    assert_eq!(errors, 0.0);
    host.stop().await
}

/// Two tenants, each with a stream of its own.
fn tenants_with_streams() -> Vec<toml::Value> {
    let tenant = |name: &str| {
        let mut tenant = toml::Table::new();
        tenant.insert("name".into(), name.into());
        let mut input = toml::Table::new();
        input.insert("stream".into(), format!("{name}-input").into());
        tenant.insert("input".into(), input.into());
        toml::Value::Table(tenant)
    };
    ["acme", "beta"].map(tenant).to_vec()
}

#[tokio::test]
async fn each_tenant_has_its_own_stream() -> Result<()> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?;
    let site = site.with("tenant", tenants_with_streams())?;
    let client = Client::connect(&server.url()).await?;
    let mut tape = client.record(">").await?;
    for name in ["acme", "beta"] {
        command(&site, &["input", "init", "--tenant", name])?;
    }
    let mut host = Host::start(&site).await?;
    let context = jetstream::new(client.nats.clone());
    let store = async |tenant: &str, user: &str| -> Result<()> {
        let body = inputs::connect(user, "c1", now_ms()).to_string();
        let subject = format!("{tenant}.{CONNECT}");
        let stored = context.publish(subject, body.into()).await?.await?;
        assert_eq!(stored.stream, format!("{tenant}-input"));
        Ok(())
    };
    store("acme", "12345").await?;
    store("beta", "12345").await?;
    for tenant in ["acme", "beta"] {
        tape.hosts(&format!("{tenant}.{ONLINE}"), 1).await?;
    }
    host.process.kill().await?;
    store("beta", "22222").await?;
    host = Host::start(&site).await?;
    let came = tape.next("the user who connected meanwhile", |seen| {
        seen.is_from_host()
            && seen.subject == format!("beta.{ONLINE}")
            && seen.text("userId") == "22222"
    });
    came.await?;
    host.stop().await
}
