//! Several tenants on one node: each works as if it were alone, and can't reach another.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use async_nats::ConnectOptions;
use presence_tests::client::{Client, ReceivedMessage, Recording, now_ms};
use presence_tests::host::{self, Host};
use presence_tests::http;
use presence_tests::nats::{NatsServer, Options};
use presence_tests::site::{DIRECTORY, Site};
use presence_tests::{tools, wait};
use serde_json::{Value, json};
use toml::{Table, toml};

use crate::inputs;
use crate::service::Service;

/// The subjects of the input of transports.
const INPUTS: [&str; 3] = [inputs::CONNECT, inputs::HEARTBEAT, inputs::DISCONNECT];

pub(crate) fn tenant(name: &str) -> Table {
    with(Table::new(), "name", name)
}

pub(crate) fn with(mut tenant: Table, key: &str, value: impl Into<toml::Value>) -> Table {
    tenant.insert(key.into(), value.into());
    tenant
}

/// A node with two tenants, `acme` and `beta`, which have the same users and the same directory.
async fn two(prepare: impl FnOnce(Site) -> Result<Site>) -> Result<(Host, Site, NatsServer)> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?.with("tenant", vec![tenant("acme"), tenant("beta")])?;
    let site = prepare(site)?;
    let host = Host::start(&site).await?;
    Ok((host, site, server))
}

async fn log_in(url: &str, user: &str, password: &str) -> Result<Client> {
    let options = ConnectOptions::new();
    let options = options.user_and_password(user.into(), password.into());
    let nats = options.connect(url).await?;
    Ok(Client { nats })
}

/// Records all that the server has got so far with this prefix.
async fn catch_up(tape: &mut Recording, client: &Client, prefix: &str) -> Result<()> {
    let mark = json!({"mark": tape.seen().len()});
    client
        .publish(&format!("{prefix}.presence.mark"), &mark)
        .await?;
    tape.next("the mark", |seen| seen.body == mark)
        .await
        .map(drop)
}

/// Takes a user online, and returns what is published for their viewers.
async fn come_online(client: &Client, prefix: &str, user: &str) -> Result<ReceivedMessage> {
    let mut tape = client.record(&format!("{prefix}.presence.>")).await?;
    let body = inputs::connect(user, "c1", now_ms());
    client
        .input(&format!("{prefix}.{}", inputs::CONNECT), body)
        .await?;
    let subject = format!("{prefix}.{}", inputs::FILTERED_ONLINE);
    tape.next("the filtered online", |seen| {
        seen.is_from_host() && seen.subject == subject && seen.text("userId") == user
    })
    .await
}

async fn online_of(client: &Client, prefix: &str, user: &str) -> Result<Value> {
    let question = json!({"viewerId": "67890", "userIds": [user]});
    let subject = format!("{prefix}.presence.query");
    let answer = client.request(&subject, question.to_string()).await?;
    Ok(answer["users"][0]["status"].clone())
}

fn states(status: &Value) -> Vec<(&str, &str)> {
    let tenants = status["tenants"].as_array().into_iter().flatten();
    tenants
        .map(|it| {
            (
                it["tenant"].as_str().unwrap_or_default(),
                it["state"].as_str().unwrap_or_default(),
            )
        })
        .collect()
}

pub(crate) async fn status(site: &Site) -> Result<Value> {
    let answer = http::get(site.http_port(), "/status").await?;
    Ok(serde_json::from_str(&answer.body)?)
}

/// Waits until a node's tenants are in these states.
pub(crate) async fn until_states(site: &Site, expected: &[(&str, &str)]) -> Result<()> {
    let mut last = String::new();
    let reached = wait::until("the tenants' states", async || {
        let status = status(site).await?;
        last = format!("{:?}", states(&status));
        Ok((states(&status) == expected).then_some(()))
    })
    .await;
    reached.with_context(|| last)
}

#[tokio::test]
async fn each_tenant_is_served_as_if_it_were_alone() -> Result<()> {
    let (host, _site, server) = two(Ok).await?;
    let client = Client::connect(&server.url()).await?;
    let mut of_beta = client.record("beta.>").await?;
    let mut of_none = client.record("presence.>").await?;
    let online = come_online(&client, "acme", "12345").await?;
    assert_eq!(online.visible_to(), ["22222", "67890"]);
    assert_eq!(online_of(&client, "acme", "12345").await?, "online");
    assert_eq!(online_of(&client, "beta", "12345").await?, "offline");
    let online = come_online(&client, "beta", "12345").await?;
    assert_eq!(online.visible_to(), ["22222", "67890"]);
    // All that was published on beta's subjects is beta's, and nothing was published on subjects
    // without a tenant.
    catch_up(&mut of_beta, &client, "beta").await?;
    of_none.catch_up(&client).await?;
    let events = of_beta
        .seen()
        .iter()
        .filter(|it| it.subject == "beta.presence.events");
    assert_eq!(events.count(), 1);
    let alien = of_none.seen().iter().filter(|it| it.is_from_host());
    assert_eq!(alien.count(), 0);
    for tenant in ["acme", "beta"] {
        let label = format!("tenant=\"{tenant}\"");
        let is_one = |users: f64| (users - 1.0).abs() < 0.1;
        host.until_metric("presence_online_users", &[&label], is_one)
            .await?;
    }
    host.stop().await
}

/// How many threads a host has.
fn threads(host: &Host) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", host.process.id()))?;
    let threads = status.lines().find_map(|it| it.strip_prefix("Threads:"));
    Ok(threads.context("a process has threads")?.trim().parse()?)
}

#[tokio::test]
async fn many_tenants_have_no_threads_and_few_subscriptions_of_their_own() -> Result<()> {
    const TENANTS: u64 = 60;
    let monitoring_port = tools::free_port()?;
    let server = NatsServer::start_with(Options {
        monitoring_port: Some(monitoring_port),
        ..Options::default()
    })
    .await?;
    let tenants: Vec<_> = (0..TENANTS).map(|it| tenant(&format!("t{it}"))).collect();
    let site = Site::new(&server.url())?
        .with("state.dir", "state")?
        .with("tenant", tenants)?;
    let host = Host::start(&site).await?;
    let serving = ["state=\"serving\""];
    host.until_metric("presence_tenants", &serving, |it| it as u64 == TENANTS)
        .await?;
    let connz = http::get(monitoring_port, "/connz").await?;
    let connz: Value = serde_json::from_str(&connz.body)?;
    let connections = connz["connections"].as_array().context("connections")?;
    let subscriptions = connections.iter().map(|it| it["subscriptions"].as_u64());
    let subscriptions: u64 = subscriptions.map(Option::unwrap_or_default).sum();
    assert!(subscriptions < 7 * TENANTS + 20, "{subscriptions}");
    // Threads that have nothing to do end after some seconds.
    wait::until("the threads to be few", async || {
        Ok((threads(&host)? < TENANTS / 2).then_some(()))
    })
    .await?;
    let client = Client::connect(&server.url()).await?;
    for tenant in ["t0", "t59"] {
        come_online(&client, tenant, "12345").await?;
    }
    assert!(threads(&host)? < TENANTS / 2);
    host.stop().await
}

#[tokio::test]
async fn nothing_of_one_tenant_is_within_the_reach_of_another() -> Result<()> {
    let (host, _site, server) = two(|site| {
        site.with("explain.enabled", true)?
            .with("inbox.enabled", true)
    })
    .await?;
    let client = Client::connect(&server.url()).await?;
    come_online(&client, "beta", "12345").await?;
    let mut of_beta = client.record("beta.>").await?;
    // Beta's subjects: each is named as the reply subject of questions to acme.
    let of_others = [
        "beta.presence.connect",
        "beta.presence.disconnect",
        "beta.presence.heartbeat",
        "beta.presence.events",
        "beta.presence.filtered.user_offline",
        "beta.presence.inbox.67890",
        "beta.presence.query",
        "beta.presence.explain",
        "beta.presence.redrive",
        "beta.presence.dlq",
        "beta.presence.beacon",
        "beta.presence.admin.status",
        "beta.presence-directory.invalidate",
        "beta.presence-nodes.hello",
    ];
    let now = now_ms();
    let asked = [
        (inputs::CONNECT, inputs::connect("eve", "c", now)),
        (inputs::HEARTBEAT, inputs::heartbeat("eve", "c", now)),
        (
            inputs::DISCONNECT,
            inputs::disconnect("12345", "c1", now, "logout"),
        ),
        (
            "presence.query",
            json!({"viewerId": "67890", "userIds": ["12345"]}),
        ),
        ("presence.query.67890", json!({"userIds": ["12345"]})),
        (
            "presence.explain",
            json!({"viewerId": "67890", "userId": "12345"}),
        ),
        (
            "presence.redrive",
            json!({"subject": inputs::ONLINE, "userId": "12345"}),
        ),
        ("presence-nodes.hello", json!({})),
    ];
    for reply in of_others {
        for (subject, body) in &asked {
            let subject = format!("acme.{subject}");
            let body = body.to_string().into();
            client.nats.publish_with_reply(subject, reply, body).await?;
        }
    }
    // Ids that look like subjects of the other tenant are only ids.
    for user in [
        "beta.presence.connect",
        "../beta",
        "beta",
        "beta.presence.>",
    ] {
        let body = inputs::connect(user, "c", now_ms());
        client
            .input(&format!("acme.{}", inputs::CONNECT), body)
            .await?;
        assert_eq!(online_of(&client, "beta", user).await?, "offline", "{user}");
    }
    // A user who leaves one tenant doesn't leave the other.
    assert_eq!(online_of(&client, "beta", "12345").await?, "online");
    // An explanation about one tenant's user says nothing about the other tenant's.
    let question = json!({"viewerId": "67890", "userId": "12345"}).to_string();
    let acme = client
        .request("acme.presence.explain", question.clone())
        .await?;
    let beta = client.request("beta.presence.explain", question).await?;
    assert_ne!(acme["outcome"]["told"], json!(true), "{acme}");
    assert_eq!(beta["outcome"]["told"], json!(true), "{beta}");
    // Answers don't have the host's header. None of them was published on beta's subjects.
    catch_up(&mut of_beta, &client, "beta").await?;
    let answers = of_beta.seen().iter().filter(|seen| {
        let fields = ["ok", "users", "stages", "node"];
        let is_answer = fields.iter().any(|field| seen.body.get(field).is_some());
        // A node asks every so often whether another serves the tenant.
        let is_hello = seen.subject == "beta.presence-nodes.hello";
        is_answer && !is_hello && !seen.is_from_host()
    });
    let answers: Vec<_> = answers.map(|seen| (&seen.subject, &seen.body)).collect();
    assert!(answers.is_empty(), "{answers:?}");
    let about_eve = of_beta
        .seen()
        .iter()
        .any(|seen| seen.text("userId") == "eve");
    assert!(!about_eve);
    host.stop().await
}

#[tokio::test]
async fn each_tenants_directory_service_and_inboxes_are_its_own() -> Result<()> {
    let (host, _site, server) = two(|site| {
        site.with("directory.source", "request")?
            .with("inbox.enabled", true)
    })
    .await?;
    let contacts =
        |viewer: &str| json!({"contacts": {"12345": [viewer]}, "groups": {}, "blocks": {}});
    let url = server.url();
    let acme = Service::start_for(&url, "acme", contacts("67890")).await?;
    let beta = Service::start_for(&url, "beta", contacts("22222")).await?;
    let client = Client::connect(&url).await?;
    let mut all = client.record("*.presence.>").await?;
    let online = come_online(&client, "acme", "12345").await?;
    assert_eq!(online.visible_to(), ["67890"]);
    assert_eq!(beta.asked(), [], "the other's service is asked nothing");
    let online = come_online(&client, "beta", "12345").await?;
    assert_eq!(online.visible_to(), ["22222"]);
    let asked = beta.asked();
    // When one service says that answers have changed, only that service is asked again.
    acme.set_directory(contacts("11111"));
    acme.invalidate("").await?;
    let gained = |seen: &ReceivedMessage| seen.subject == "acme.presence.inbox.11111";
    all.next("the one who gains sight", gained).await?;
    // All questions that were sent to beta's service so far have come.
    let query = json!({"viewerId": "22222", "userIds": ["12345"]}).to_string();
    client.request("beta.presence.query", query).await?;
    assert_eq!(beta.asked(), asked);
    catch_up(&mut all, &client, "beta").await?;
    let subjects = all.seen().iter().map(|seen| &*seen.subject);
    let told: BTreeSet<_> = subjects.filter(|it| it.contains(".inbox.")).collect();
    let expected = [
        "acme.presence.inbox.11111",
        "acme.presence.inbox.67890",
        "beta.presence.inbox.22222",
    ];
    assert_eq!(told, BTreeSet::from(expected));
    host.stop().await
}

#[tokio::test]
async fn a_node_with_two_tenants_publishes_what_two_nodes_with_one_do() -> Result<()> {
    // Bodies by subject, without times, which differ between any two runs.
    async fn run(tenants: &[&str]) -> Result<Vec<Vec<(String, Value)>>> {
        let server = NatsServer::start().await?;
        let sections: Vec<_> = tenants.iter().map(|name| tenant(name)).collect();
        let site = Site::new(&server.url())?.with("tenant", sections)?;
        let host = Host::start(&site).await?;
        let client = Client::connect(&server.url()).await?;
        let mut tapes = Vec::new();
        for name in tenants {
            tapes.push(client.record(&format!("{name}.presence.>")).await?);
        }
        // A fixed pseudo-random walk for each tenant. With two tenants, the walks are interleaved.
        let mut walks: Vec<_> = tenants
            .iter()
            .map(|name| {
                name.bytes()
                    .fold(7_u64, |seed, byte| seed * 31 + u64::from(byte))
            })
            .collect();
        let users = ["12345", "67890", "11111", "22222"];
        for _ in 0..60 {
            for (name, walk) in tenants.iter().zip(&mut walks) {
                *walk = walk
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let user = users[usize::try_from(*walk >> 33)? % users.len()];
                let conn = format!("c{}", (*walk >> 40) % 2);
                let kind = INPUTS[usize::try_from(*walk >> 50)? % INPUTS.len()];
                let body = match kind {
                    inputs::CONNECT => inputs::connect(user, &conn, now_ms()),
                    inputs::HEARTBEAT => inputs::heartbeat(user, &conn, now_ms()),
                    _ => inputs::disconnect(user, &conn, now_ms(), "logout"),
                };
                client.input(&format!("{name}.{kind}"), body).await?;
            }
        }
        let mut all = Vec::new();
        for (name, tape) in tenants.iter().zip(&mut tapes) {
            catch_up(tape, &client, name).await?;
            let published = tape
                .seen()
                .iter()
                .filter(|seen| seen.is_from_host() && !seen.subject.ends_with("beacon"));
            let bodies = published.map(|seen| {
                let mut body = seen.body.clone();
                if let Some(body) = body.as_object_mut() {
                    body.remove("timestamp");
                    body.remove("lastSeen");
                }
                (seen.subject.clone(), body)
            });
            all.push(bodies.collect());
        }
        host.stop().await?;
        Ok(all)
    }
    let together = run(&["acme", "beta"]).await?;
    let apart = [run(&["acme"]).await?, run(&["beta"]).await?].concat();
    assert_eq!(together, apart);
    assert!(
        together.iter().all(|it: &Vec<_>| it.len() > 20),
        "{together:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_tenant_that_cannot_start_says_why_and_disturbs_nobody() -> Result<()> {
    let server = NatsServer::start().await?;
    let broken = with(tenant("broken"), "tracker", toml! { timeout_ms = "soon" });
    let missing = with(
        tenant("missing"),
        "pipeline",
        vec![toml! { plugin = "nowhere" }],
    );
    let overlap = with(tenant("overlap"), "prefix", "acme");
    let resting = with(tenant("resting"), "paused", true);
    let tenants = vec![tenant("acme"), broken, missing, overlap, resting];
    let site = Site::new(&server.url())?.with("tenant", tenants)?;
    let host = Host::start(&site).await?;
    until_states(
        &site,
        &[
            ("acme", "serving"),
            ("broken", "refused"),
            ("missing", "refused"),
            ("overlap", "refused"),
            ("resting", "paused"),
        ],
    )
    .await?;
    let client = Client::connect(&server.url()).await?;
    come_online(&client, "acme", "12345").await?;
    let ready = http::get(site.http_port(), "/readyz").await?;
    assert_eq!(ready.status, 200);
    assert!(
        ready.body.contains("tenant `broken` is refused: "),
        "{}",
        ready.body
    );
    let refused = host
        .metric("presence_tenants", &["state=\"refused\""])
        .await?;
    assert!((refused - 3.0).abs() < 0.1, "{refused}");
    let log = host.process.log_tail();
    assert!(log.contains("broken"), "{log}");
    let listed = host::run(&site, &["tenants", "list"])?;
    let listed = String::from_utf8(listed.stdout)?;
    for (name, why) in [
        ("broken", "`timeout_ms`"),
        ("missing", "nowhere"),
        ("overlap", "the subjects of `acme`"),
    ] {
        let line = listed.lines().find(|line| line.starts_with(name));
        assert!(line.is_some_and(|line| line.contains(why)), "{listed}");
    }
    let shown = host::run(&site, &["tenants", "show", "acme"])?;
    assert!(String::from_utf8(shown.stdout)?.starts_with("tenant acme: serving\n"));
    let checked = host::run(&site, &["check"])?;
    let checked = String::from_utf8(checked.stderr)?;
    assert!(checked.contains("3 problems found"), "{checked}");
    host.stop().await
}

#[tokio::test]
async fn tenants_come_change_pause_and_go_while_others_are_served() -> Result<()> {
    let (host, mut site, server) = two(|site| site.with("tracker.timeout_ms", 600_000)).await?;
    let client = Client::connect(&server.url()).await?;
    come_online(&client, "acme", "12345").await?;
    come_online(&client, "beta", "12345").await?;
    let mut of_acme = client.record("acme.presence.>").await?;
    let slow = with(tenant("gamma"), "tracker", toml! { timeout_ms = 500000 });
    site.set("tenant", vec![tenant("acme"), tenant("beta"), slow])?;
    until_states(
        &site,
        &[
            ("acme", "serving"),
            ("beta", "serving"),
            ("gamma", "serving"),
        ],
    )
    .await?;
    come_online(&client, "gamma", "12345").await?;
    // A change that takes effect only at a start restarts this tenant alone.
    let other = with(tenant("beta"), "prefix", "b");
    site.set("tenant", vec![tenant("acme"), other.clone()])?;
    until_states(&site, &[("acme", "serving"), ("beta", "serving")]).await?;
    wait::until("beta to have its new prefix", async || {
        // Nobody is known there yet.
        let known = online_of(&client, "b", "12345").await;
        Ok(known.is_ok_and(|status| status == "offline").then_some(()))
    })
    .await?;
    come_online(&client, "b", "12345").await?;
    // A tenant whose section is broken meanwhile goes on as before.
    let broken = with(tenant("acme"), "tracker", toml! { timeout_ms = "soon" });
    site.set("tenant", vec![broken, with(other.clone(), "paused", true)])?;
    until_states(&site, &[("acme", "serving"), ("beta", "paused")]).await?;
    let shown = status(&site).await?;
    let not_taken = shown["tenants"][0]["notTaken"].as_str().unwrap_or_default();
    assert!(not_taken.contains("`timeout_ms`"), "{not_taken}");
    site.set("tenant", vec![tenant("acme"), other])?;
    until_states(&site, &[("acme", "serving"), ("beta", "serving")]).await?;
    assert_eq!(
        online_of(&client, "b", "12345").await?,
        "online",
        "its state was kept"
    );
    assert_eq!(online_of(&client, "acme", "12345").await?, "online");
    // Acme's viewers noticed nothing of all this.
    catch_up(&mut of_acme, &client, "acme").await?;
    let told = of_acme
        .seen()
        .iter()
        .filter(|it| it.is_from_host() && !it.subject.ends_with("beacon"));
    let told: Vec<_> = told.map(|it| (&it.subject, &it.body)).collect();
    assert!(told.is_empty(), "{told:?}");
    host.stop().await
}

#[tokio::test]
async fn tenants_with_accounts_of_their_own_are_kept_apart_by_the_broker() -> Result<()> {
    let accounts = "accounts {
      ONE { jetstream: enabled, users: [{user: one, password: p1}] }
      TWO { jetstream: enabled, users: [{user: two, password: p2}] }
    }";
    let options = Options {
        config: accounts.into(),
        ..Options::default()
    };
    let server = NatsServer::start_with(options).await?;
    let url = server.url();
    let of =
        |user: &str, password: &str| with(with(Table::new(), "user", user), "password", password);
    let bare = |name: &str, user: &str, password: &str| {
        let tenant = with(tenant(name), "nats", of(user, password));
        with(tenant, "prefix", "")
    };
    let tenants = vec![bare("first", "one", "p1"), bare("second", "two", "p2")];
    let site = Site::new(&url)?.with("tenant", tenants)?;
    site.write_directory(DIRECTORY)?;
    let host = Host::start(&site).await?;
    let one = log_in(&url, "one", "p1").await?;
    let two = log_in(&url, "two", "p2").await?;
    let mut of_one = one.record("presence.>").await?;
    let mut of_two = two.record("presence.>").await?;
    let body = inputs::connect("12345", "c1", now_ms());
    one.input(inputs::CONNECT, body).await?;
    let online = of_one
        .next("the filtered online", |seen| {
            seen.subject == inputs::FILTERED_ONLINE
        })
        .await?;
    assert_eq!(online.visible_to(), ["22222", "67890"]);
    let ask = |client: Client| async move {
        let question = json!({"viewerId": "67890", "userIds": ["12345"]});
        let answer = client
            .request("presence.query", question.to_string())
            .await?;
        anyhow::Ok(answer["users"][0]["status"].clone())
    };
    of_two.catch_up(&two).await?;
    let alien = of_two
        .seen()
        .iter()
        .filter(|it| it.is_from_host() && !it.subject.ends_with("beacon"));
    assert_eq!(alien.count(), 0);
    assert_eq!(ask(one).await?, "online");
    assert_eq!(ask(two).await?, "offline");
    host.stop().await
}

#[tokio::test]
async fn what_tenants_knew_is_known_after_a_restart() -> Result<()> {
    let (host, site, server) = two(|site| site.with("tracker.timeout_ms", 600_000)).await?;
    let client = Client::connect(&server.url()).await?;
    come_online(&client, "acme", "12345").await?;
    come_online(&client, "beta", "22222").await?;
    host.stop().await?;
    let host = Host::start(&site).await?;
    for (prefix, user, status) in [
        ("acme", "12345", "online"),
        ("beta", "12345", "offline"),
        ("beta", "22222", "online"),
    ] {
        let question = json!({"viewerId": "12345", "userIds": [user]});
        let question = match user {
            "12345" => json!({"viewerId": "67890", "userIds": [user]}),
            _ => question,
        };
        let subject = format!("{prefix}.presence.query");
        let answer = client.request(&subject, question.to_string()).await?;
        assert_eq!(answer["users"][0]["status"], status, "{prefix} {user}");
    }
    host.stop().await
}
