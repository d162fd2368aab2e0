//! Quotas of a tenant. What exceeds one is refused, and the quota is named to the sender, in a dead
//! letter, in a metric and in the log. Other tenants notice nothing.

use std::time::Duration;

use anyhow::{Context, Result};
use presence_tests::client::{Client, now_ms};
use presence_tests::host::{self, Host};
use presence_tests::nats::{NatsServer, Options};
use presence_tests::site::Site;
use presence_tests::{component, http, tools, wait};
use serde_json::{Value, json};
use toml::{Table, toml};

use crate::inputs::{self, CONNECT, DISCONNECT, DLQ, FILTERED_ONLINE, HEARTBEAT};
use crate::world::World;

/// The interval of a client's heartbeats. Several are due in each timeout.
const PACE: Duration = Duration::from_millis(200);

/// Sends a connect, and returns the answer.
async fn connect(client: &Client, prefix: &str, user: &str, conn: &str) -> Result<Value> {
    let body = inputs::connect(user, conn, now_ms()).to_string();
    client.request(&format!("{prefix}{CONNECT}"), body).await
}

/// Asserts that an answer is a refusal which names the key of a quota.
#[track_caller]
fn is_refused(answer: &Value, key: &str) {
    assert_eq!(answer["reason"], "quota-exceeded", "{answer}");
    let error = answer["error"].as_str().unwrap_or_default();
    assert!(error.contains(key), "`{key}` is not in: {error}");
}

async fn exceeded(host: &Host, quota: &str) -> Result<f64> {
    let label = format!("quota=\"{quota}\"");
    host.metric("presence_quota_exceeded_total", &[&label])
        .await
}

/// Waits until a quota has been exceeded this many times. Shards report their figures only now and
/// then.
async fn until_exceeded(host: &Host, quota: &str, times: f64) -> Result<()> {
    wait::until("the metric of the quota", async || {
        let over = exceeded(host, quota).await?;
        Ok((over >= times).then_some(()))
    })
    .await
}

fn tenant(name: &str, limits: Option<Table>) -> Table {
    let mut tenant = toml! { name = name };
    if let Some(limits) = limits {
        tenant.insert("limits".into(), limits.into());
    }
    tenant
}

#[tokio::test]
async fn a_flood_of_one_tenant_is_refused_and_takes_nothing_from_another() -> Result<()> {
    let server = NatsServer::start().await?;
    let limits = toml! { messages_per_s = 1
    messages_burst = 20 };
    let tenants = vec![tenant("acme", Some(limits)), tenant("beta", None)];
    let mut site = Site::new(&server.url())?.with("tenant", tenants)?;
    let mut host = Host::start(&site).await?;
    let client = Client::connect(&server.url()).await?;
    let mut letters = client.record("acme.presence.dlq").await?;
    let from = host.log_len();
    assert_eq!(connect(&client, "acme.", "12345", "c").await?["ok"], true);
    let mut refused = 0;
    for number in 0..200 {
        let user = format!("u{number}");
        let answer = connect(&client, "acme.", &user, "c").await?;
        if answer["ok"] != true {
            is_refused(&answer, "[limits] messages_per_s");
            refused += 1;
        }
        assert_eq!(connect(&client, "beta.", &user, "c").await?["ok"], true);
    }
    // The quota permits a burst, and one more for each second that this takes.
    assert!((1..=185).contains(&refused), "{refused}");
    let letter = letters.next("a dead letter", |_| true).await?;
    assert_eq!(letter.text("reason"), "quota-exceeded");
    until_exceeded(&host, "messages", f64::from(refused)).await?;
    let line = host
        .wait_for_log(from, &["a quota is exceeded", "messages_per_s"])
        .await?;
    assert!(line.contains("acme") && line.contains("messages"), "{line}");
    let lines = host.process.log_tail();
    let lines = lines.lines().filter(|it| it.contains("messages_per_s"));
    assert_eq!(lines.count(), 1, "one line a minute");
    // A connected user can disconnect, however many other messages come. And the limit changes
    // while the node runs.
    let gone = inputs::disconnect("12345", "c", now_ms(), "logout").to_string();
    let gone = client.request(&format!("acme.{DISCONNECT}"), gone).await?;
    assert_eq!(gone["ok"], true, "{gone}");
    site.set("tenant", vec![tenant("acme", None), tenant("beta", None)])?;
    wait::until("the limit to be lifted", async || {
        let mut all = true;
        for number in 0..50 {
            let answer = connect(&client, "acme.", &format!("n{number}"), "c").await?;
            all &= answer["ok"] == true;
        }
        Ok(all.then_some(()))
    })
    .await?;
    host.stop().await
}

#[tokio::test]
async fn heartbeats_past_the_quota_time_nobody_out_and_keep_nobody() -> Result<()> {
    let mut world = World::start_with(|site| {
        site.with("tracker.timeout_ms", 2_000)?
            .with("limits.messages_per_s", 1)?
            .with("limits.messages_burst", 3)
    })
    .await?;
    let client = world.client.clone();
    // A user who sends heartbeats, and a user who falls silent, beside one who sends far more than
    // is permitted.
    for user in ["12345", "67890"] {
        assert_eq!(connect(&client, "", user, "c0").await?["ok"], true);
    }
    let beats = |user: &'static str, conns: usize, pace: Duration| {
        let client = client.clone();
        tokio::spawn(async move {
            loop {
                for number in 0..conns {
                    let body = inputs::heartbeat(user, &format!("c{number}"), now_ms());
                    if client.publish(HEARTBEAT, &body).await.is_err() {
                        return;
                    }
                }
                tokio::time::sleep(pace).await;
            }
        })
    };
    let flood = beats("eve", 20, PACE / 10);
    let alive = beats("12345", 1, PACE);
    let silent = world.tape.next("the silent one's time-out", |it| {
        it.is_from_host() && it.subject == inputs::OFFLINE && it.text("userId") == "67890"
    });
    assert_eq!(silent.await?.text("reason"), "timeout");
    until_exceeded(&world.host, "messages", 100.0).await?;
    world.tape.catch_up(&client).await?;
    let gone = world.tape.seen().iter();
    let gone = gone.filter(|it| it.subject == inputs::OFFLINE && it.text("userId") == "12345");
    assert_eq!(gone.count(), 0);
    flood.abort();
    alive.abort();
    world.end().await
}

#[tokio::test]
async fn connections_users_and_questions_are_limited() -> Result<()> {
    let world = World::start_with(|site| {
        site.with("tracker.timeout_ms", 600_000)?
            .with("limits.users_max", 2)?
            .with("limits.connections_max", 3)?
            .with("limits.queries_per_s", 1)
    })
    .await?;
    let client = &world.client;
    for (user, conn) in [("12345", "1"), ("67890", "1")] {
        assert_eq!(connect(client, "", user, conn).await?["ok"], true);
    }
    let refused = connect(client, "", "22222", "1").await?;
    is_refused(&refused, "[limits] users_max");
    assert_eq!(connect(client, "", "12345", "2").await?["ok"], true);
    let refused = connect(client, "", "67890", "2").await?;
    is_refused(&refused, "[limits] connections_max");
    let body = inputs::disconnect("67890", "1", now_ms(), "logout");
    client.input(DISCONNECT, body).await?;
    assert_eq!(connect(client, "", "22222", "1").await?["ok"], true);
    let question = json!({"viewerId": "67890", "userIds": ["12345"]}).to_string();
    let mut refusals = 0;
    for _ in 0..20 {
        let answer = client.request("presence.query", question.clone()).await?;
        if answer["ok"] == false {
            is_refused(&answer, "[limits] queries_per_s");
            refusals += 1;
        }
    }
    assert!(refusals > 0);
    for (quota, times) in [
        ("users", 1.0),
        ("connections", 1.0),
        ("queries", f64::from(refusals)),
    ] {
        until_exceeded(&world.host, quota, times).await?;
    }
    world.end().await
}

#[tokio::test]
async fn an_audience_past_the_quota_is_told_once_it_may_be() -> Result<()> {
    let mut world = World::start_with(|site| {
        site.with("limits.audience_max", 1)?
            .with("engine.retry_ms", 100)?
            .with("engine.retry_ms_max", 200)
    })
    .await?;
    assert_eq!(connect(&world.client, "", "12345", "c").await?["ok"], true);
    let letter = world
        .tape
        .next("a dead letter", |it| it.subject == DLQ)
        .await?;
    assert_eq!(letter.text("reason"), "quota-exceeded");
    assert_eq!(letter.text("subject"), FILTERED_ONLINE);
    assert!(
        letter.text("error").contains("2 viewers"),
        "{}",
        letter.text("error")
    );
    until_exceeded(&world.host, "audience", 1.0).await?;
    let told = world
        .tape
        .seen()
        .iter()
        .filter(|it| it.subject == FILTERED_ONLINE);
    assert_eq!(told.count(), 0, "nobody is told");
    world.site.set("limits.audience_max", 2)?;
    let told = world
        .tape
        .next("the filtered online", |it| it.subject == FILTERED_ONLINE);
    assert_eq!(told.await?.visible_to(), ["22222", "67890"]);
    world.end().await
}

#[tokio::test]
async fn a_directory_past_its_entries_is_not_taken() -> Result<()> {
    let mut world = World::start_with(|site| site.with("limits.directory_entries_max", 6)).await?;
    world.until_visible_to("12345", &["22222", "67890"]).await?;
    let from = world.host.log_len();
    let all = ["1", "2", "3", "4", "5", "6", "7"];
    let large = json!({"contacts": {"12345": all}, "groups": {}, "blocks": {}});
    world.site.write_directory_value(&large)?;
    let words = ["directory not taken", "[limits] directory_entries_max"];
    world.host.wait_for_log(from, &words).await?;
    let seen = world.probe("12345").await?;
    assert_eq!(
        seen.visible_to(),
        ["22222", "67890"],
        "what was known holds"
    );
    until_exceeded(&world.host, "directory_entries", 1.0).await?;
    let refused = world
        .host
        .metric("presence_on_disk_refused", &["what=\"directory\""]);
    assert!((refused.await? - 1.0).abs() < 0.1);
    // The directory is taken as soon as the limit permits it.
    world.site.set("limits.directory_entries_max", 7)?;
    world.until_visible_to("12345", &all).await?;
    // The same for a directory that is not read to its end.
    let huge: Vec<_> = (100..200).map(|id| id.to_string()).collect();
    let directory = json!({"contacts": {"12345": huge}, "groups": {}, "blocks": {}});
    world.site.write_directory_value(&directory)?;
    until_exceeded(&world.host, "directory_entries", 2.0).await?;
    let seen = world.probe("12345").await?;
    assert_eq!(seen.visible_to(), all, "what was known holds");
    world.site.set("limits.directory_entries_max", 100)?;
    let huge: Vec<_> = huge.iter().map(String::as_str).collect();
    world.until_visible_to("12345", &huge).await?;
    world.end().await
}

#[tokio::test]
async fn a_bucket_past_its_entries_is_taken_when_it_has_fewer() -> Result<()> {
    let mut world = World::start_with(|site| {
        site.with("directory.source", "kv")?
            .with("limits.directory_entries_max", 3)
    })
    .await?;
    let bucket = async_nats::jetstream::new(world.client.nats.clone());
    let bucket = bucket.get_key_value("presence-directory").await?;
    let put =
        async |key: &str, value: Value| bucket.put(key, value.to_string().into()).await.map(drop);
    put("contacts.12345", json!(["1", "2"])).await?;
    world.until_visible_to("12345", &["1", "2"]).await?;
    let from = world.host.log_len();
    put("contacts.67890", json!(["1", "2"])).await?;
    let words = ["directory not taken", "[limits] directory_entries_max"];
    world.host.wait_for_log(from, &words).await?;
    // Changes that come meanwhile aren't lost.
    put("contacts.12345", json!(["3"])).await?;
    world.until_visible_to("67890", &["1", "2"]).await?;
    world.until_visible_to("12345", &["3"]).await?;
    // A directory with far too many entries is not read to its end, and is taken when most of them
    // are gone.
    let from = world.host.log_len();
    for user in 100..120 {
        put(&format!("contacts.{user}"), json!(["1", "2"])).await?;
    }
    world.host.wait_for_log(from, &words).await?;
    put("contacts.12345", json!(["4"])).await?;
    for user in 100..120 {
        bucket.delete(format!("contacts.{user}")).await?;
    }
    world.until_visible_to("12345", &["4"]).await?;
    world.end().await
}

#[tokio::test]
async fn a_node_that_starts_with_a_bucket_past_its_entries_takes_it_once_the_limit_is_raised()
-> Result<()> {
    let server = NatsServer::start().await?;
    let client = Client::connect(&server.url()).await?;
    let jetstream = async_nats::jetstream::new(client.nats.clone());
    let bucket = jetstream.create_key_value(async_nats::jetstream::kv::Config {
        bucket: "presence-directory".into(),
        ..Default::default()
    });
    let bucket = bucket.await?;
    for user in 100..120 {
        bucket
            .put(format!("contacts.{user}"), r#"["1","2"]"#.into())
            .await?;
    }
    let mut site = Site::new(&server.url())?
        .with("directory.source", "kv")?
        .with("limits.directory_entries_max", 3)?;
    let mut host = Host::spawn(&site)?;
    host.unready_because("quota-exceeded: the directory would have more than 3 entries")
        .await?;
    site.set("limits.directory_entries_max", 40)?;
    host.ready().await?;
    let mut tape = client.record("presence.filtered.user_online").await?;
    assert_eq!(connect(&client, "", "100", "c").await?["ok"], true);
    let seen = tape.next("the filtered online", |_| true).await?;
    assert_eq!(seen.visible_to(), ["1", "2"]);
    host.stop().await
}

#[tokio::test]
async fn a_pipeline_past_its_quota_is_refused_when_it_is_loaded() -> Result<()> {
    let server = NatsServer::start().await?;
    let kept = [
        ("plugins_max", toml! { plugins_max = 3 }),
        ("plugin_bytes_max", toml! { plugin_bytes_max = 1000 }),
        (
            "plugin_memory_bytes_max",
            toml! { plugin_memory_bytes_max = 65536 },
        ),
    ];
    let mut tenants: Vec<_> = kept
        .iter()
        .map(|(key, limits)| tenant(&key.replace('_', "-"), Some(limits.clone())))
        .collect();
    tenants.push(tenant("quiet", None));
    let site = Site::new(&server.url())?.with("tenant", tenants)?;
    let host = Host::start(&site).await?;
    let status = wait::until("three tenants to be refused", async || {
        let answer = http::get(site.http_port(), "/status").await?;
        let status: Value = serde_json::from_str(&answer.body)?;
        let tenants = status["tenants"].as_array().context("tenants")?;
        let refused = tenants.iter().filter(|it| it["state"] == "refused");
        Ok((refused.count() == 3).then_some(status))
    })
    .await?;
    for (place, key) in [
        (0, "plugin_bytes_max"),
        (1, "plugin_memory_bytes_max"),
        (2, "plugins_max"),
    ] {
        let why = status["tenants"][place]["reasons"].to_string();
        assert!(why.contains(&format!("[limits] {key}")), "{why}");
        assert!(why.contains("quota-exceeded"), "{why}");
    }
    let checked = String::from_utf8(host::run(&site, &["check"])?.stderr)?;
    assert!(checked.contains("[limits] plugins_max"), "{checked}");
    let client = Client::connect(&server.url()).await?;
    assert_eq!(connect(&client, "quiet.", "12345", "c").await?["ok"], true);
    host.stop().await
}

#[tokio::test]
async fn a_swap_to_more_plugins_than_may_be_is_refused_and_counted() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        site.set("limits.plugins_max", 4)?;
        site.set_pipeline(&[("contacts", None)])?;
        Ok(site)
    })
    .await?;
    let from = world.host.log_len();
    let stages = ["contacts", "groups", "blocklist", "blocklist", "blocklist"];
    world.site.set_pipeline(&stages.map(|it| (it, None)))?;
    let words = ["not swapped", "[limits] plugins_max"];
    world.host.wait_for_log(from, &words).await?;
    until_exceeded(&world.host, "plugins", 1.0).await?;
    world.until_visible_to("12345", &["11111", "67890"]).await?;
    world.end().await
}

#[tokio::test]
async fn memory_that_all_plugins_together_may_not_have_fails_the_call_and_says_so() -> Result<()> {
    // The plugin takes memory until the host refuses more.
    let hoard = component::load("fixtures/hoard")?;
    let mut world = World::start_with(|mut site| {
        site.set("limits.plugin_memory_bytes_max", 12_000_000)?;
        site.set("engine.workers", 1)?;
        site.set_pipeline(&[("contacts", None), ("hoard", None)])?;
        site.write_plugin("hoard", hoard)?;
        site.set("engine.fuel", 1_000_000_000_000_i64)?;
        site.set("engine.deadline_ms", 60_000)?;
        Ok(site)
    })
    .await?;
    connect(&world.client, "", "12345", "c").await?;
    let letter = world
        .tape
        .next("a dead letter", |it| it.subject == DLQ)
        .await?;
    assert!(
        letter
            .text("error")
            .contains("[limits] plugin_memory_bytes_max"),
        "{}",
        letter.text("error")
    );
    until_exceeded(&world.host, "plugin_memory", 1.0).await?;
    world.end().await
}

#[tokio::test]
async fn a_tenant_that_has_used_up_its_time_waits_and_says_so_and_another_goes_on() -> Result<()> {
    let server = NatsServer::start().await?;
    let tenants = |cpu_ms_per_s: i64| {
        let mut busy = tenant("busy", Some(toml! { cpu_ms_per_s = cpu_ms_per_s }));
        busy.insert("engine".into(), toml! { worker_queue = 1 }.into());
        vec![busy, tenant("quiet", None)]
    };
    let mut site = Site::new(&server.url())?.with("tenant", tenants(2))?;
    let mut host = Host::start(&site).await?;
    let client = Client::connect(&server.url()).await?;
    let mut letters = client.record("busy.presence.dlq").await?;
    for number in 0..4_000 {
        let body = inputs::connect("12345", &format!("c{number}"), now_ms());
        client.publish(&format!("busy.{CONNECT}"), &body).await?;
    }
    // The node's start may have exceeded this already, and the log says it once per minute.
    let words = ["a quota is exceeded", "[limits] cpu_ms_per_s", "busy"];
    host.wait_for_log(0, &words).await?;
    assert_eq!(connect(&client, "quiet.", "12345", "c").await?["ok"], true);
    let letter = letters.next("a dead letter", |it| {
        it.text("error").contains("cpu_ms_per_s")
    });
    // The tenant goes on as soon as it may use more, without a restart.
    site.set("tenant", tenants(500))?;
    assert_eq!(letter.await?.text("reason"), "quota-exceeded");
    until_exceeded(&host, "cpu", 1.0).await?;
    host.stop().await
}

#[tokio::test]
async fn a_replay_keeps_to_the_quotas_of_the_configuration() -> Result<()> {
    let mut site = Site::new("nats://127.0.0.1:1")?;
    site.set("limits.messages_per_s", 2)?;
    let at = inputs::SEED_MS;
    let lines = (0..5).map(|number| {
        let data = inputs::connect(&format!("u{number}"), "c", at);
        json!({"at": at, "subject": CONNECT, "data": data}).to_string()
    });
    let capture = site.path().join("capture.ndjson");
    std::fs::write(&capture, lines.collect::<Vec<_>>().join("\n"))?;
    let printed = host::run(&site, &["replay", &capture.to_string_lossy()])?;
    let printed = String::from_utf8(printed.stdout)?;
    let on = |subject: &str| {
        let subject = format!("\"subject\":\"{subject}\"");
        printed
            .lines()
            .filter(|line| line.contains(&subject))
            .count()
    };
    assert_eq!([on(inputs::ONLINE), on(DLQ)], [2, 3], "{printed}");
    Ok(())
}

/// The number of connections at a server with subscriptions to both of these subjects.
async fn shared_connections(monitoring_port: u16, subjects: [&str; 2]) -> Result<usize> {
    let connz = http::get(monitoring_port, "/connz?subs=1").await?;
    let connz: Value = serde_json::from_str(&connz.body)?;
    let connections = connz["connections"].as_array().context("connections")?;
    let has = |connection: &Value, subject: &str| {
        let list = connection["subscriptions_list"].as_array();
        list.is_some_and(|list| list.iter().any(|it| it == subject))
    };
    let shared = connections.iter();
    let shared = shared.filter(|it| subjects.iter().all(|subject| has(it, subject)));
    Ok(shared.count())
}

#[tokio::test]
async fn an_isolated_tenant_has_other_threads_and_connections_and_is_served_like_any_other()
-> Result<()> {
    let monitoring_port = tools::free_port()?;
    let server = NatsServer::start_with(Options {
        monitoring_port: Some(monitoring_port),
        ..Options::default()
    })
    .await?;
    let isolated = |name| {
        let mut tenant = tenant(name, None);
        tenant.insert("isolated".into(), true.into());
        tenant
    };
    let tenants = vec![isolated("apart"), tenant("quiet", None)];
    let mut site = Site::new(&server.url())?.with("tenant", tenants)?;
    let host = Host::start(&site).await?;
    let client = Client::connect(&server.url()).await?;
    let is_served = async |name: &str| {
        let mut tape = client.record(&format!("{name}.presence.>")).await?;
        let answer = connect(&client, &format!("{name}."), "12345", "c").await?;
        assert_eq!(answer["ok"], true);
        let told = tape.next("the filtered online", |it| {
            it.subject.ends_with(FILTERED_ONLINE)
        });
        assert_eq!(told.await?.visible_to(), ["22222", "67890"]);
        anyhow::Ok(())
    };
    is_served("apart").await?;
    is_served("quiet").await?;
    let both = ["apart.presence.>", "quiet.presence.>"];
    assert_eq!(shared_connections(monitoring_port, both).await?, 0);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", host.process.id()))?;
    let names = tasks.filter_map(|task| {
        let name = std::fs::read_to_string(task.ok()?.path().join("comm")).ok()?;
        Some(name.trim().to_owned())
    });
    let names: Vec<_> = names.collect();
    for thread in ["pool-0", "isolated-0", "isolated-io"] {
        assert!(names.iter().any(|name| name == thread), "{names:?}");
    }
    // The metrics of connections count both connections.
    let connects = ["presence_nats_connects_total", "presence_nats_connected"];
    for (name, expected) in connects.into_iter().zip([2.0, 1.0]) {
        host.until_metric(name, &[], |it| (it - expected).abs() < 0.1)
            .await?;
    }
    // A tenant that becomes isolated moves to the connection of the other isolated tenants.
    site.set("tenant", vec![isolated("apart"), isolated("quiet")])?;
    wait::until("both to share a connection", async || {
        let shared = shared_connections(monitoring_port, both).await?;
        Ok((shared == 1).then_some(()))
    })
    .await?;
    // It still knows who is online.
    let body = json!({"viewerId": "67890", "userIds": ["12345"]}).to_string();
    let answer = client.request("quiet.presence.query", body).await?;
    assert_eq!(answer["users"][0]["status"], "online", "{answer}");
    host.stop().await
}
