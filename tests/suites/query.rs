//! Viewers ask who is online: over NATS, and on the command line.

use anyhow::{Context, Result};
use presence_tests::client::now_ms;
use presence_tests::host;
use presence_tests::nats::{NatsServer, Options};
use presence_tests::site::Site;
use serde_json::{Value, json};

use crate::inputs::{self, CONNECT, DISCONNECT, DLQ, EVENTS, FILTERED_OFFLINE, OFFLINE};
use crate::world::World;

const QUERY: &str = "presence.query";

async fn ask(world: &World, body: Value) -> Result<Value> {
    world.client.request(QUERY, body.to_string()).await
}

/// The answer on one user.
async fn about(world: &World, viewer: &str, user: &str) -> Result<Value> {
    let reply = ask(world, json!({"viewerId": viewer, "userIds": [user]})).await?;
    assert_eq!(reply["viewerId"], viewer, "{reply}");
    Ok(reply["users"][0].clone())
}

fn unknown(user: &str) -> Value {
    json!({"userId": user, "status": "offline"})
}

async fn come(world: &World, user: &str) -> Result<()> {
    let connect = inputs::connect(user, "c", now_ms());
    world.client.input(CONNECT, connect).await
}

async fn go(world: &World, user: &str) -> Result<()> {
    let bye = inputs::disconnect(user, "c", now_ms(), "client_disconnect");
    world.client.input(DISCONNECT, bye).await
}

#[tokio::test]
async fn a_viewer_sees_what_they_were_told_and_nothing_of_the_rest() -> Result<()> {
    let mut world = World::start().await?;
    come(&world, "12345").await?;
    let online = json!({"userId": "12345", "status": "online", "metadata": {"device": "web"}});
    let reply = ask(
        &world,
        json!({"viewerId": "67890", "userIds": ["zoe", "12345", "67890", "12345"]}),
    );
    let expected = json!({
        "viewerId": "67890",
        "users": [unknown("zoe"), online, unknown("67890"), online],
    });
    assert_eq!(reply.await?, expected);
    assert_eq!(about(&world, "22222", "12345").await?, online);
    for viewer in ["11111", "stranger", "12345"] {
        assert_eq!(about(&world, viewer, "12345").await?, unknown("12345"));
    }

    go(&world, "12345").await?;
    let gone = world.tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    let mut expected = unknown("12345");
    let seen = about(&world, "67890", "12345").await?;
    if let Some(last_seen) = gone.body.get("lastSeen") {
        expected["lastSeen"] = last_seen.clone();
    }
    assert_eq!(seen, expected, "as the event said");
    assert_eq!(about(&world, "11111", "12345").await?, unknown("12345"));
    world.end().await
}

#[tokio::test]
async fn a_hidden_user_is_byte_for_byte_an_unknown_one() -> Result<()> {
    let world = World::start().await?;
    for step in 0..3 {
        match step {
            1 => go(&world, "12345").await?,
            _ => come(&world, "12345").await?,
        }
        let request = |user: &str| {
            let body = json!({"viewerId": "11111", "userIds": [user]}).to_string();
            world.client.nats.request(QUERY, body.into())
        };
        let hidden = request("12345").await?.payload;
        let never_seen = request("54321").await?.payload;
        let hidden = String::from_utf8(hidden.to_vec())?;
        let never_seen = String::from_utf8(never_seen.to_vec())?;
        assert_eq!(hidden.replace("12345", "54321"), never_seen);
    }
    world.end().await
}

#[tokio::test]
async fn a_block_takes_effect_in_answers() -> Result<()> {
    let mut world = World::start().await?;
    come(&world, "12345").await?;
    assert_eq!(about(&world, "67890", "12345").await?["status"], "online");
    world
        .site
        .write_directory(r#"{"contacts": {"12345": ["67890"]}, "blocks": {"12345": ["67890"]}}"#)?;
    world.tape.hosts(FILTERED_OFFLINE, 1).await?;
    assert_eq!(about(&world, "67890", "12345").await?, unknown("12345"));
    go(&world, "12345").await?;
    assert_eq!(about(&world, "67890", "12345").await?, unknown("12345"));
    world.end().await
}

#[tokio::test]
async fn up_to_a_thousand_users_are_answered_in_their_order() -> Result<()> {
    let world = World::start_with(|site| site.with("engine.workers", 3)).await?;
    for user in 0..40 {
        come(&world, &format!("user-{}", user * 20)).await?;
    }
    for count in [1, 100, 1_000] {
        let users: Vec<_> = (0..count).map(|user| format!("user-{user}")).collect();
        let reply = ask(&world, json!({"viewerId": "v", "userIds": users})).await?;
        let answered = reply["users"].as_array().context("users")?;
        let answered: Vec<_> = answered.iter().map(|user| &user["userId"]).collect();
        assert_eq!(json!(answered), json!(users));
    }
    let users = vec!["u"; 1_001];
    let reply = ask(&world, json!({"viewerId": "v", "userIds": users})).await?;
    assert_eq!(reply["reason"], "invalid-field", "{reply}");
    assert_eq!(reply["field"], "userIds");
    world.end().await
}

#[tokio::test]
async fn what_is_wrong_with_a_query_is_replied_and_is_no_dead_letter() -> Result<()> {
    let mut world = World::start().await?;
    for (body, reason, field) in [
        ("", "invalid-json", Value::Null),
        ("{\"viewerId\":", "invalid-json", Value::Null),
        ("[]", "not-an-object", Value::Null),
        (r#"{"userIds":["a"]}"#, "missing-field", "viewerId".into()),
        (r#"{"viewerId":"v"}"#, "missing-field", "userIds".into()),
        (
            r#"{"viewerId":"v","userIds":["a","b","c",{}]}"#,
            "invalid-field",
            "userIds[3]".into(),
        ),
    ] {
        let reply = world.client.request(QUERY, body).await?;
        assert_eq!(reply["ok"], false, "{reply}");
        assert_eq!(reply["reason"], reason, "{reply}");
        assert_eq!(
            reply.get("field").unwrap_or(&Value::Null),
            &field,
            "{reply}"
        );
        assert!(
            reply["error"]
                .as_str()
                .is_some_and(|error| !error.is_empty())
        );
    }
    // Without a reply subject, nothing is sent, but the question is counted.
    world.client.publish_bytes(QUERY, "{").await?;
    world.client.round_trip().await?;
    about(&world, "v", "u").await?;
    let metrics = world.host.metrics().await?;
    for line in [
        "presence_questions_total{outcome=\"answered\"} 1",
        "presence_questions_total{outcome=\"refused\"} 6",
        "presence_questions_total{outcome=\"ignored\"} 1",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    world.all_about("12345").await?;
    let dead = world.tape.seen().iter().filter(|seen| seen.subject == DLQ);
    assert_eq!(dead.count(), 0);
    world.end().await
}

#[tokio::test]
async fn the_subject_can_say_who_asks() -> Result<()> {
    let world = World::start_with(|site| {
        site.write_directory(r#"{"contacts": {"12345": ["ann@example.com"]}}"#)?;
        site.with("tenant.prefix", "acme")
    })
    .await?;
    let client = &world.client;
    let connect = inputs::connect("12345", "c", now_ms());
    client.input("acme.presence.connect", connect).await?;
    let subject = "acme.presence.query.=YW5uQGV4YW1wbGUuY29t";
    let reply = client.request(subject, r#"{"userIds":["12345"]}"#).await?;
    assert_eq!(reply["viewerId"], "ann@example.com");
    assert_eq!(reply["users"][0]["status"], "online");
    let other = r#"{"viewerId":"67890","userIds":["12345"]}"#;
    let reply = client.request(subject, other).await?;
    assert_eq!(reply["field"], "viewerId", "{reply}");
    world.end().await
}

#[tokio::test]
async fn a_viewers_contacts_make_a_first_paint() -> Result<()> {
    let directory = json!({
        "contacts": {"67890": ["12345", "zoe", "22222"], "12345": ["67890"], "22222": ["67890"]},
    });
    let world = World::start_with(|site| {
        site.write_directory_value(&directory)?;
        Ok(site)
    })
    .await?;
    come(&world, "12345").await?;
    let snapshot = json!({"viewerId": "67890", "userIds": "contacts"});
    let reply = ask(&world, snapshot).await?;
    let mut users = reply["users"].as_array().context("users")?.clone();
    users.sort_by_key(|user| user["userId"].to_string());
    let online = json!({"userId": "12345", "status": "online", "metadata": {"device": "web"}});
    assert_eq!(users, [online, unknown("22222"), unknown("zoe")]);
    let nobody = ask(&world, json!({"viewerId": "zoe", "userIds": "contacts"})).await?;
    assert_eq!(nobody, json!({"viewerId": "zoe", "users": []}));
    world.end().await
}

#[tokio::test]
async fn an_answer_past_max_payload_says_to_ask_in_parts() -> Result<()> {
    let server = NatsServer::start_with(Options {
        config: "max_payload: 65536".into(),
        ..Options::default()
    })
    .await?;
    let site = Site::new(&server.url())?;
    let contacts: Vec<_> = (0..2_000).map(|user| format!("user-{user}")).collect();
    site.write_directory_value(&json!({"contacts": {"v": contacts}}))?;
    let host = host::Host::start(&site).await?;
    let client = presence_tests::client::Client::connect(&server.url()).await?;
    let body = r#"{"viewerId":"v","userIds":"contacts"}"#;
    let reply = client.request(QUERY, body).await?;
    assert_eq!(reply["reason"], "too-large", "{reply}");
    assert!(reply["error"].to_string().contains("in parts"), "{reply}");
    let body = json!({"viewerId": "v", "userIds": contacts[..1_000]});
    let reply = client.request(QUERY, body.to_string()).await?;
    assert_eq!(reply["users"].as_array().map(Vec::len), Some(1_000));
    host.stop().await
}

/// For every user and viewer, at every step, an answer says the same as the last event before it.
#[tokio::test]
async fn answers_agree_with_the_events() -> Result<()> {
    const USERS: [&str; 4] = ["12345", "22222", "67890", "11111"];
    let mut world = World::start_with(|site| site.with("engine.workers", 2)).await?;
    // A fixed mixture; the core's property test tries all kinds.
    let mut chance = 7_u32;
    for _ in 0..40 {
        chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let user = USERS[(chance >> 16) as usize % USERS.len()];
        if chance >> 31 == 0 {
            come(&world, user).await?;
        } else {
            go(&world, user).await?;
        }
    }
    for user in USERS {
        // What the last event about the user told each viewer, without ending the user's visit.
        let reply = ask(&world, json!({"viewerId": "67890", "userIds": [user]})).await?;
        let is_online = reply["users"][0]["status"] == "online";
        world.client.round_trip().await?;
        let mark = json!({"type": "user_offline", "userId": "mark", "timestamp": now_ms()});
        world.client.input(OFFLINE, mark).await?;
        let mark = world.tape.next("the mark", |seen| {
            seen.subject == EVENTS && seen.text("userId") == "mark"
        });
        mark.await?;
        let filtered = world.tape.seen().iter().rev().find(|seen| {
            seen.subject.starts_with("presence.filtered.")
                && seen.text("userId") == user
                && seen.visible_to().contains(&"67890")
        });
        let told = filtered.is_some_and(|seen| seen.text("type") == "user_online");
        assert_eq!(is_online, told, "{user}");
    }
    world.end().await
}

/// A command's output, error output and exit code.
fn command(site: &Site, args: &[&str]) -> Result<(String, String, Option<i32>)> {
    let output = host::run(site, args)?;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes);
    Ok((
        text(output.stdout)?,
        text(output.stderr)?,
        output.status.code(),
    ))
}

#[tokio::test]
async fn the_command_prints_a_table_or_json() -> Result<()> {
    let world = World::start_with(|site| {
        site.write_directory(r#"{"contacts": {"12345": ["67890"], "67890": ["12345"]}}"#)?;
        Ok(site)
    })
    .await?;
    come(&world, "12345").await?;
    let (out, err, code) = command(&world.site, &["query", "67890", "12345", "zoe"])?;
    assert_eq!((err.as_str(), code), ("", Some(0)));
    let lines: Vec<Vec<_>> = out
        .lines()
        .map(|line| line.split_whitespace().collect())
        .collect();
    let expected = [
        vec!["WHO", "STATUS", "LAST", "SEEN", "METADATA"],
        vec!["12345", "online", "device=web"],
        vec!["zoe", "offline"],
    ];
    assert_eq!(lines, expected);

    go(&world, "12345").await?;
    let (out, ..) = command(&world.site, &["query", "67890"])?;
    assert!(out.contains("12345") && out.contains("UTC"), "{out}");
    let (out, _, code) = command(&world.site, &["query", "--json", "67890"])?;
    let answer: Value = serde_json::from_str(&out)?;
    assert_eq!((code, &answer["viewerId"]), (Some(0), &json!("67890")));
    assert!(answer["users"][0]["lastSeen"].is_u64(), "{answer}");
    world.end().await
}

#[tokio::test]
async fn the_command_says_what_is_wrong() -> Result<()> {
    let mut server = NatsServer::start().await?;
    let site = Site::new(&server.url())?;
    let (_, err, code) = command(&site, &["query", "67890", "12345"])?;
    assert_eq!(code, Some(1));
    assert!(
        err.contains("no processor answers on presence.query"),
        "{err}"
    );

    let host = host::Host::start(&site).await?;
    let (_, err, code) = command(&site, &["query", "67890", ""])?;
    assert_eq!((code, err.lines().count()), (Some(1), 1), "{err}");
    assert!(err.contains("userIds[0]"), "{err}");
    host.stop().await?;

    server.stop().await?;
    let (_, err, code) = command(&site, &["query", "67890", "12345"])?;
    assert_eq!((code, err.lines().count()), (Some(1), 1), "{err}");
    assert!(err.contains("can't connect to NATS"), "{err}");
    let (_, err, code) = command(&site, &["query"])?;
    assert_eq!(code, Some(2), "{err}");
    let (out, _, code) = command(&site, &["query", "--help"])?;
    assert!(out.contains("Examples:") && code == Some(0), "{out}");
    Ok(())
}
