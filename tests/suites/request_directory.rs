//! A directory that is a service of the team's own, which the host asks.

use anyhow::{Context as _, Result};
use futures_util::StreamExt;
use presence_tests::client::now_ms;
use presence_tests::host::{self, Host};
use presence_tests::site::{DIRECTORY, Site};
use presence_tests::{component, wait};
use serde_json::{Value, json};
use toml::toml;

use crate::inputs::{self, CONNECT, DISCONNECT, DLQ, EVENTS, FILTERED_OFFLINE, FILTERED_ONLINE};
use crate::service::{SUBJECT, Service};
use crate::world::{World, on};

/// A host that asks a service, and the service.
async fn start(prepare: impl FnOnce(Site) -> Result<Site>) -> Result<(World, Service)> {
    let world = alone(prepare).await?;
    let service = service(&world).await?;
    Ok((world, service))
}

/// A host that asks, without a service.
async fn alone(prepare: impl FnOnce(Site) -> Result<Site>) -> Result<World> {
    World::start_with(|site| prepare(site.with("directory.source", "request")?)).await
}

/// A service with the contract's directory.
async fn service(world: &World) -> Result<Service> {
    let directory = serde_json::from_str(DIRECTORY)?;
    Service::start(&world.server.url(), directory).await
}

async fn connect(world: &World, user: &str) -> Result<()> {
    let body = inputs::connect(user, "c1", now_ms());
    world.client.input(CONNECT, body).await
}

async fn disconnect(world: &World, user: &str) -> Result<()> {
    let body = inputs::disconnect(user, "c1", now_ms(), "client_disconnect");
    world.client.input(DISCONNECT, body).await
}

async fn until_metric(world: &World, name: &str, labels: &[&str], value: f64) -> Result<()> {
    world
        .host
        .until_metric(name, labels, |it| it == value)
        .await
}

async fn until_away(world: &World) -> Result<()> {
    until_metric(world, "presence_directory_away", &[], 1.0).await
}

/// Who is told on a subject, message by message.
fn notifications(world: &World, subject: &str) -> Vec<(String, Vec<String>)> {
    let seen = world.tape.seen().iter();
    let told = seen.filter(|seen| seen.is_from_host() && seen.subject == subject);
    told.map(|seen| {
        let viewers = seen.visible_to().into_iter().map(str::to_owned);
        (seen.text("userId").to_owned(), viewers.collect())
    })
    .collect()
}

fn of(user: &str, viewers: &[&str]) -> (String, Vec<String>) {
    let viewers = viewers.iter().map(|viewer| (*viewer).to_owned());
    (user.to_owned(), viewers.collect())
}

#[tokio::test]
async fn a_users_coming_and_going_is_told_by_what_the_service_says() -> Result<()> {
    let (mut world, service) = start(Ok).await?;
    for count in 1..=2 {
        // A connection of its own: the clock may still show the time of the last disconnect.
        let conn = format!("c{count}");
        let hello = inputs::connect("12345", &conn, now_ms());
        world.client.input(CONNECT, hello).await?;
        world.tape.hosts(FILTERED_ONLINE, count).await?;
        let bye = inputs::disconnect("12345", &conn, now_ms(), "client_disconnect");
        world.client.input(DISCONNECT, bye).await?;
        world.tape.hosts(FILTERED_OFFLINE, count).await?;
    }
    let expected = [
        of("12345", &["22222", "67890"]),
        of("12345", &["22222", "67890"]),
    ];
    assert_eq!(notifications(&world, FILTERED_ONLINE), expected);
    assert_eq!(notifications(&world, FILTERED_OFFLINE), expected);
    let mut asked = service.asked();
    asked.sort_by(|one, other| one.subject.cmp(&other.subject));
    let asked: Vec<_> = asked.iter().map(|it| (&*it.subject, &it.body)).collect();
    assert_eq!(
        asked,
        [
            (
                ".blocked-by.12345",
                &json!({"question": "blocked-by", "id": "12345"})
            ),
            (
                ".co-members.12345",
                &json!({"question": "co-members", "id": "12345"})
            ),
            (
                ".contacts.12345",
                &json!({"question": "contacts", "id": "12345"})
            ),
        ],
        "each once"
    );
    world.end().await
}

#[tokio::test]
async fn every_question_is_asked_and_its_answer_used() -> Result<()> {
    let config = toml! {
        steps = [
            "contacts", "with_contact", "co_members", { members = "team b" }, "everyone", "groups",
            { only_if_setting = { key = "open", value = true } },
            { with_setting = { key = "theme", value = "dark" } }, "blocked_by"
        ]
    };
    let (mut world, service) = start(|mut site| {
        site.set_pipeline(&[("reader", Some(config)), ("redact", None)])?;
        site.write_plugin("reader", component::load("fixtures/reader")?)?;
        site.set_stage("reader", "grants", vec!["widen"])?;
        site.with("tenant.prefix", "acme")
    })
    .await?;
    // With a prefix, all subjects are different.
    service.stop().await?;
    world.tape = world.client.record("acme.presence.>").await?;
    let mut questions = world
        .client
        .nats
        .subscribe(format!("acme.{SUBJECT}.>"))
        .await?;
    let body = inputs::connect("ann@example.com", "c1", now_ms());
    world.client.input("acme.presence.connect", body).await?;
    let expected = [
        ".blocked-by.=YW5uQGV4YW1wbGUuY29t",
        ".co-members.=YW5uQGV4YW1wbGUuY29t",
        ".contacts.=YW5uQGV4YW1wbGUuY29t",
        ".everyone",
        ".groups.=YW5uQGV4YW1wbGUuY29t",
        ".members.=dGVhbSBi",
        ".settings.=YW5uQGV4YW1wbGUuY29t",
        ".with-contact.=YW5uQGV4YW1wbGUuY29t",
        ".with-setting.theme",
    ];
    let answers = |subject: &str| match subject {
        ".settings.=YW5uQGV4YW1wbGUuY29t" => json!({"open": true}),
        ".groups.=YW5uQGV4YW1wbGUuY29t" => json!(["team b"]),
        ".blocked-by.=YW5uQGV4YW1wbGUuY29t" => json!(["blocked"]),
        subject => {
            let place = expected.iter().position(|it| *it == subject);
            json!([format!("user-{}", place.unwrap_or_default()), "blocked"])
        }
    };
    let mut asked = Vec::new();
    while asked.len() < expected.len() {
        let question = wait::guarded("a question", questions.next()).await?;
        let question = question.context("a question")?;
        let subject = question.subject.strip_prefix("acme.presence-directory");
        let subject = subject.unwrap_or_default().to_owned();
        let answer = answers(&subject).to_string();
        let reply = question.reply.context("a reply subject")?;
        world.client.nats.publish(reply, answer.into()).await?;
        if !asked.contains(&subject) {
            asked.push(subject);
        }
    }
    asked.sort();
    assert_eq!(asked, expected);
    let subject = "acme.presence.filtered.user_online";
    let online = world.tape.hosts(subject, 1).await?.remove(0);
    let viewers = ["user-1", "user-2", "user-3", "user-5", "user-7", "user-8"];
    assert_eq!(online.visible_to(), viewers);
    world.end().await
}

#[tokio::test]
async fn without_a_service_nobody_is_told_until_there_is_one() -> Result<()> {
    let mut world = alone(Ok).await?;
    connect(&world, "12345").await?;
    world.host.wait_for_log(0, &["doesn't answer"]).await?;
    connect(&world, "22222").await?;
    world.tape.hosts(EVENTS, 2).await?;
    let from = world.host.log_len();
    let service = service(&world).await?;
    world.tape.hosts(FILTERED_ONLINE, 2).await?;
    world.host.wait_for_log(from, &["answers again"]).await?;
    let mut online = notifications(&world, FILTERED_ONLINE);
    online.sort();
    let expected = [of("12345", &["22222", "67890"]), of("22222", &["12345"])];
    assert_eq!(online, expected);
    drop(service);
    world.end().await
}

#[tokio::test]
async fn while_the_service_is_away_the_told_stay_told_and_nobody_new_is() -> Result<()> {
    let (mut world, service) = start(|site| site.with("directory.request.ttl_ms", 200)).await?;
    connect(&world, "12345").await?;
    connect(&world, "22222").await?;
    world.tape.hosts(FILTERED_ONLINE, 2).await?;
    service.stop().await?;
    until_metric(&world, "presence_directory_answers", &[], 0.0).await?;
    until_away(&world).await?;
    connect(&world, "67890").await?;
    disconnect(&world, "12345").await?;
    let offline = world.tape.hosts(FILTERED_OFFLINE, 1).await?;
    assert_eq!(offline[0].visible_to(), ["22222", "67890"]);

    // The service is back with another directory: only the differences are told.
    let directory = json!({"contacts": {"22222": ["33333"], "67890": ["11111"]}});
    let service = Service::start(&world.server.url(), directory).await?;
    world.tape.hosts(FILTERED_ONLINE, 4).await?;
    world.tape.hosts(FILTERED_OFFLINE, 2).await?;
    let (online, offline) = (
        notifications(&world, FILTERED_ONLINE),
        notifications(&world, FILTERED_OFFLINE),
    );
    let mut since = online[2..].to_vec();
    since.sort();
    assert_eq!(since, [of("22222", &["33333"]), of("67890", &["11111"])]);
    assert_eq!(offline[1..], [of("22222", &["12345"])]);
    drop(service);
    world.end().await
}

#[tokio::test]
async fn an_invalidation_corrects_exactly_the_difference() -> Result<()> {
    let (mut world, service) = start(Ok).await?;
    connect(&world, "12345").await?;
    world.tape.hosts(FILTERED_ONLINE, 1).await?;
    let contacts = r#"{"question":"contacts","id":"12345"}"#;
    // An answer that hasn't changed tells nobody anything.
    service.invalidate(contacts).await?;
    service.until_asked(4).await?;
    service.set_directory(json!({
        "contacts": {"12345": ["33333", "11111"]},
        "groups": {"team-a": ["12345", "22222"]},
        "blocks": {"12345": []},
    }));
    service.invalidate(contacts).await?;
    world.tape.hosts(FILTERED_ONLINE, 2).await?;
    world.tape.hosts(FILTERED_OFFLINE, 1).await?;
    service.invalidate("").await?;
    world.tape.hosts(FILTERED_ONLINE, 3).await?;
    let expected = [
        of("12345", &["22222", "67890"]),
        of("12345", &["33333"]),
        of("12345", &["11111"]),
    ];
    assert_eq!(notifications(&world, FILTERED_ONLINE), expected);
    assert_eq!(
        notifications(&world, FILTERED_OFFLINE),
        [of("12345", &["67890"])]
    );

    let from = world.host.log_len();
    service.invalidate(r#"{"question":"friends"}"#).await?;
    let words = ["invalidation passed over", "no question `friends`"];
    world.host.wait_for_log(from, &words).await?;
    let name = "presence_directory_invalidations_total";
    until_metric(&world, name, &["outcome=\"refused\""], 1.0).await?;
    until_metric(&world, name, &["outcome=\"taken\""], 3.0).await?;
    world.end().await
}

#[tokio::test]
async fn an_answer_is_asked_again_when_its_time_is_up_while_it_is_in_use() -> Result<()> {
    let (mut world, service) = start(|site| site.with("directory.request.ttl_ms", 100)).await?;
    connect(&world, "12345").await?;
    world.tape.hosts(FILTERED_ONLINE, 1).await?;
    service.set_directory(json!({"contacts": {"12345": ["67890"]}}));
    let offline = world.tape.hosts(FILTERED_OFFLINE, 1).await?;
    assert_eq!(offline[0].visible_to(), ["22222"]);
    disconnect(&world, "12345").await?;
    world.tape.hosts(FILTERED_OFFLINE, 2).await?;
    // Nobody needs the answer any more.
    until_metric(&world, "presence_directory_answers", &[], 0.0).await?;
    world.end().await
}

#[tokio::test]
async fn no_more_requests_are_under_way_than_the_configuration_allows() -> Result<()> {
    const USERS: usize = 20;
    const LIMIT: i64 = 3;
    let (mut world, service) = start(|site| {
        site.with("directory.request.concurrency", LIMIT)?
            .with("directory.request.timeout_ms", 60_000)
    })
    .await?;
    let user = |number: usize| format!("user-{number}");
    let contacts = (0..USERS).map(|number| (user(number), json!(["viewer"])));
    let contacts: serde_json::Map<_, _> = contacts.collect();
    service.set_directory(json!({"contacts": contacts}));
    service.set_answering(false);
    for number in 0..USERS {
        connect(&world, &user(number)).await?;
    }
    world.tape.hosts(EVENTS, USERS).await?;
    service.until_asked(LIMIT as usize).await?;
    // The host knows which answers it wants, and asks no more at a time.
    let wanted = (3 * USERS) as f64;
    until_metric(&world, "presence_directory_answers_wanted", &[], wanted).await?;
    assert_eq!(service.asked().len(), LIMIT as usize);
    service.set_answering(true);
    world.tape.hosts(FILTERED_ONLINE, USERS).await?;
    assert_eq!(service.asked().len(), 3 * USERS, "each once");
    world.end().await
}

#[tokio::test]
async fn what_is_no_answer_tells_nobody_and_is_asked_again() -> Result<()> {
    let (mut world, service) = start(Ok).await?;
    service.set_answer("contacts", Some(json!({"12345": []})));
    connect(&world, "12345").await?;
    let words = ["can't be read", r#""id":"12345""#, "not a list of users"];
    world.host.wait_for_log(0, &words).await?;
    service.set_answer("contacts", Some(json!({"error": "no database"})));
    let name = "presence_directory_requests_total";
    let refused = ["outcome=\"refused\""];
    world
        .host
        .until_metric(name, &refused, |it| it >= 2.0)
        .await?;
    world.tape.hosts(EVENTS, 1).await?;
    assert_eq!(notifications(&world, FILTERED_ONLINE), []);
    service.set_answer("contacts", None);
    let online = world.tape.hosts(FILTERED_ONLINE, 1).await?;
    assert_eq!(online[0].visible_to(), ["22222", "67890"]);
    world.end().await
}

#[tokio::test]
async fn a_query_is_answered_as_soon_as_the_answers_are_there() -> Result<()> {
    let (mut world, service) = start(|site| site.with("explain.enabled", true)).await?;
    connect(&world, "12345").await?;
    world.tape.hosts(FILTERED_ONLINE, 1).await?;
    disconnect(&world, "12345").await?;
    world.tape.hosts(FILTERED_OFFLINE, 1).await?;
    service.set_directory(json!({"contacts": {"12345": ["67890"], "67890": ["12345", "44444"]}}));
    service.invalidate("").await?;
    let query = r#"{"viewerId": "67890", "userIds": "contacts"}"#;
    let answer = world.client.request("presence.query", query).await?;
    let users = answer["users"].as_array().cloned().unwrap_or_default();
    let users: Vec<_> = users.iter().map(|user| user["userId"].clone()).collect();
    assert_eq!(users, ["12345", "44444"], "{answer}");
    let explain = json!({"viewerId": "44444", "userId": "33333"}).to_string();
    let answer = world.client.request("presence.explain", explain).await?;
    assert_eq!(answer["outcome"]["why"], Value::Null, "{answer}");
    assert_eq!(answer["outcome"]["maySee"], false);

    service.stop().await?;
    let query = r#"{"viewerId": "55555", "userIds": "contacts"}"#;
    let answer = world.client.request("presence.query", query).await?;
    assert_eq!(answer["reason"], "unavailable", "{answer}");
    world.end().await
}

#[tokio::test]
async fn after_a_restart_the_told_stay_told_until_the_service_answers() -> Result<()> {
    let (mut world, service) = start(Ok).await?;
    connect(&world, "12345").await?;
    world.tape.hosts(FILTERED_ONLINE, 1).await?;
    service.stop().await?;
    world.host.process.stop().await?;
    world.host = Host::start(&world.site).await?;
    until_away(&world).await?;
    let query = r#"{"viewerId": "67890", "userIds": ["12345"]}"#;
    let hidden = json!({"userId": "12345", "status": "offline"});
    let answer = world.client.request("presence.query", query).await?;
    assert_eq!(answer["users"][0], hidden);
    let directory = json!({"contacts": {"12345": ["67890", "33333"]}});
    let service = Service::start(&world.server.url(), directory).await?;
    world.tape.hosts(FILTERED_ONLINE, 2).await?;
    assert_eq!(
        notifications(&world, FILTERED_ONLINE)[1],
        of("12345", &["33333"])
    );
    assert_eq!(
        notifications(&world, FILTERED_OFFLINE),
        [of("12345", &["22222"])]
    );
    let answer = world.client.request("presence.query", query).await?;
    assert_eq!(answer["users"][0]["status"], "online", "{answer}");
    drop(service);
    world.end().await
}

/// A pipeline with an enricher that asks, and that shows what the enricher adds.
fn with_enricher(mut site: Site) -> Result<Site> {
    let redact = toml! { keys = ["contacts"] };
    site.set_pipeline(&[
        ("contact-count", None),
        ("contacts", None),
        ("redact", Some(redact)),
    ])?;
    site.write_plugin("contact-count", component::load("fixtures/contact-count")?)?;
    Ok(site)
}

#[tokio::test]
async fn an_event_waits_for_what_an_enricher_asks_and_the_users_next_waits_behind() -> Result<()> {
    let (mut world, service) = start(|site| {
        with_enricher(site)?
            .with("directory.request.wait_ms", 60_000)?
            .with("directory.request.timeout_ms", 60_000)
    })
    .await?;
    service.set_answering(false);
    connect(&world, "12345").await?;
    disconnect(&world, "12345").await?;
    service.until_asked(1).await?;
    // Another user, whose answers come, doesn't wait for this one.
    service.set_answering(true);
    connect(&world, "22222").await?;
    world.tape.hosts(EVENTS, 3).await?;
    let events = on(world.tape.seen(), EVENTS);
    let of_user = events.iter().filter(|event| event["userId"] == "12345");
    let of_user: Vec<_> = of_user
        .map(|event| (event["type"].clone(), event["metadata"]["contacts"].clone()))
        .collect();
    assert_eq!(
        of_user,
        [
            (json!("user_online"), json!(2)),
            (json!("user_offline"), json!(2))
        ]
    );
    assert_eq!(on(world.tape.seen(), DLQ), [Value::Null; 0]);
    world.end().await
}

#[tokio::test]
async fn an_event_that_has_waited_for_long_enough_goes_on_without_the_enricher() -> Result<()> {
    let mut world =
        alone(|site| with_enricher(site)?.with("directory.request.wait_ms", 100)).await?;
    connect(&world, "12345").await?;
    let event = world.tape.hosts(EVENTS, 1).await?.remove(0);
    assert_eq!(event.body["metadata"]["device"], "web");
    assert_eq!(event.body["metadata"]["contacts"], Value::Null);
    let letter = world.tape.hosts(DLQ, 1).await?.remove(0);
    assert_eq!(letter.text("reason"), "plugin-failed");
    assert!(
        letter.text("error").contains("contact-count"),
        "{}",
        letter.text("error")
    );
    world.end().await
}

/// Stops the service, and takes back what it has answered, also in the worker of a user who is
/// online.
async fn lose_answers(world: &World, service: Service) -> Result<()> {
    service.stop().await?;
    // Both the host and the service listen to this subject.
    let all = format!("{SUBJECT}.invalidate");
    world.client.publish_bytes(&all, "").await?;
    until_metric(world, "presence_directory_answers", &[], 0.0).await?;
    let question = json!({"viewerId": "67890", "userIds": ["12345"]}).to_string();
    wait::until("the user to be hidden from who asks", async || {
        let answer = world.client.request("presence.query", question.clone());
        Ok((answer.await?["users"][0]["status"] == "offline").then_some(()))
    })
    .await
}

/// A pipeline with a redactor that asks for the user's settings.
fn with_settings(mut site: Site) -> Result<Site> {
    let redact = toml! {
        keys = ["device"]
        user_settings = true
    };
    site.set_pipeline(&[("contacts", None), ("redact", Some(redact))])?;
    Ok(site)
}

#[tokio::test]
async fn an_offline_waits_for_what_the_redactor_asks_and_is_told_bare_in_the_end() -> Result<()> {
    let (mut world, service) =
        start(|site| with_settings(site)?.with("directory.request.wait_ms", 200)).await?;
    connect(&world, "12345").await?;
    world.tape.hosts(FILTERED_ONLINE, 1).await?;
    lose_answers(&world, service).await?;
    disconnect(&world, "12345").await?;
    let offline = world.tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    assert_eq!(offline.visible_to(), ["11111", "67890"]);
    assert_eq!(offline.field("lastSeen"), &Value::Null);
    assert_eq!(on(world.tape.seen(), DLQ), [Value::Null; 0]);
    world.end().await
}

#[tokio::test]
async fn an_offline_that_waits_outlives_a_kill() -> Result<()> {
    let (mut world, service) =
        start(|site| with_settings(site)?.with("directory.request.wait_ms", 60_000)).await?;
    connect(&world, "12345").await?;
    world.tape.hosts(FILTERED_ONLINE, 1).await?;
    lose_answers(&world, service).await?;
    // The records: the connection and who was told; then the ends of both, and the pending event.
    world.host.until_saved(2.0).await?;
    disconnect(&world, "12345").await?;
    world.host.until_saved(5.0).await?;
    world.host.process.kill().await?;
    world.host = Host::start(&world.site).await?;
    assert_eq!(notifications(&world, FILTERED_OFFLINE), []);
    let service = self::service(&world).await?;
    let offline = world.tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    assert_eq!(offline.visible_to(), ["11111", "67890"]);
    assert!(offline.field("lastSeen").is_u64(), "{}", offline.body);
    drop(service);
    world.end().await
}

#[test]
fn a_replay_has_nobody_to_ask() -> Result<()> {
    let site = Site::new("nats://127.0.0.1:1")?.with("directory.source", "request")?;
    let input = site.path().join("input.ndjson");
    std::fs::write(&input, "")?;
    let replayed = host::run(&site, &["replay", &input.to_string_lossy()])?;
    let error = String::from_utf8(replayed.stderr)?;
    assert_eq!(replayed.status.code(), Some(1));
    assert!(error.contains("source = \"file\""), "{error}");
    let checked = host::run(&site, &["check"])?;
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    Ok(())
}
