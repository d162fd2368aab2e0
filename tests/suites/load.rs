//! A flood of one kind takes no room from another, and a sender for whom there is no room is told
//! so.

use anyhow::{Context, Result};
use futures_util::StreamExt;
use presence_tests::client::now_ms;
use presence_tests::wait;
use serde_json::{Value, json};

use crate::inputs::{self, CONNECT, DISCONNECT, DLQ, EVENTS, HEARTBEAT};
use crate::world::World;

const QUERY: &str = "presence.query";

/// A query about as many users as a query may name.
fn large_query() -> String {
    let users: Vec<_> = (0..1_000).map(|user| format!("user-{user}")).collect();
    json!({"viewerId": "viewer", "userIds": users}).to_string()
}

#[tokio::test]
async fn a_burst_of_large_queries_costs_no_heartbeat() -> Result<()> {
    const HEARTBEATS: usize = 1_200;
    const QUERIES: usize = 600;
    // With this limit, few tasks can wait in each queue.
    let world = World::start_with(|site| {
        site.with("engine.workers", 1)?
            .with("engine.worker_queue", 8)
    })
    .await?;
    let client = &world.client;
    client
        .input(CONNECT, inputs::connect("12345", "c", now_ms()))
        .await?;
    let inbox = client.nats.new_inbox();
    let mut answers = client.nats.subscribe(inbox.clone()).await?;
    let query = large_query();
    for number in 0..HEARTBEATS {
        if number % (HEARTBEATS / QUERIES) == 0 {
            let (to, body) = (inbox.clone(), query.clone().into());
            client.nats.publish_with_reply(QUERY, to, body).await?;
        }
        let beat = inputs::heartbeat("12345", "c", now_ms());
        client.publish(HEARTBEAT, &beat).await?;
    }
    let (mut answered, mut overloaded) = (0, 0);
    while answered + overloaded < QUERIES {
        let answer = wait::guarded("an answer", answers.next()).await?;
        let answer: Value = serde_json::from_slice(&answer.context("an answer")?.payload)?;
        match answer["reason"].as_str() {
            None => answered += 1,
            Some(reason) => {
                assert_eq!(reason, "overloaded", "{answer}");
                overloaded += 1;
            }
        }
    }
    let beats =
        world
            .host
            .until_metric("presence_inputs_total", &["kind=\"heartbeat\""], |taken| {
                taken >= HEARTBEATS as f64
            });
    beats.await.context("every heartbeat is taken in")?;
    let dropped = world
        .host
        .metric("presence_slow_consumer_drops_total", &["inputs"])
        .await?;
    assert!(dropped < 1.0, "{dropped} inputs were dropped");
    let outcomes = [("answered", answered), ("overloaded", overloaded)];
    for (outcome, count) in outcomes {
        let label = format!("outcome=\"{outcome}\"");
        let counted = world
            .host
            .metric("presence_questions_total", &[&label])
            .await?;
        assert!((counted - count as f64).abs() < 0.5, "{outcome}: {counted}");
    }
    world.end().await
}

#[tokio::test]
async fn a_question_that_finds_no_room_is_answered_at_once() -> Result<()> {
    let mut world =
        World::start_with(|site| site.with("engine.question_bytes_max", 65_536)).await?;
    let users: Vec<_> = (0..1_000).map(|user| format!("{user:0>64}")).collect();
    let query = json!({"viewerId": "viewer", "userIds": users}).to_string();
    let answer = world.client.request(QUERY, query).await?;
    assert_eq!(answer["ok"], false);
    assert_eq!(answer["reason"], "overloaded", "{answer}");
    world.host.wait_for_log(0, &["question_bytes_max"]).await?;
    // There is room for a smaller one.
    let answer = world.client.request(QUERY, large_query()).await?;
    assert_eq!(answer["users"].as_array().map(Vec::len), Some(1_000));
    world.end().await
}

#[tokio::test]
async fn a_connection_too_many_is_refused_by_name_and_costs_others_nothing() -> Result<()> {
    let mut world =
        World::start_with(|site| site.with("tracker.connections_per_user_max", 2)).await?;
    let connect = |user: &str, conn: &str| inputs::connect(user, conn, now_ms());
    for (user, conn) in [("12345", "a"), ("12345", "b"), ("67890", "c")] {
        world.client.input(CONNECT, connect(user, conn)).await?;
    }
    let sent = connect("12345", "c").to_string();
    let answer = world.client.request(CONNECT, sent.clone()).await?;
    assert_eq!(answer["ok"], false);
    assert_eq!(answer["reason"], "quota-exceeded", "{answer}");
    let letter = world.tape.hosts(DLQ, 1).await?.remove(0);
    assert_eq!(letter.text("reason"), "quota-exceeded");
    assert_eq!(letter.text("subject"), CONNECT);
    assert_eq!(letter.text("payload"), sent, "it can be sent again");
    let error = letter.text("error");
    assert!(
        error.contains("[tracker] connections_per_user_max"),
        "{error}"
    );
    world.host.wait_for_log(0, &["a quota is exceeded"]).await?;
    let labels = ["reason=\"quota-exceeded\""];
    // The metrics follow a moment after the answer.
    let counted = world
        .host
        .until_metric("presence_dead_letters_total", &labels, |it| it >= 1.0);
    counted.await?;
    // Connections that exist are not affected.
    world.client.input(CONNECT, connect("12345", "b")).await?;
    world.client.input(CONNECT, connect("67890", "d")).await?;
    world.end().await
}

#[tokio::test]
async fn a_flood_of_flips_makes_few_events_and_those_of_others_come_after_them() -> Result<()> {
    const FLIPS: usize = 2_000;
    const VIEWERS: usize = 20;
    let viewers: Vec<_> = (0..VIEWERS).map(|it| format!("viewer-{it}")).collect();
    let mut world = World::start_with(|site| {
        let contacts = json!({"flapper": viewers, "12345": ["67890"]});
        site.write_directory_value(&json!({"contacts": contacts}))?;
        site.with("inbox.enabled", true)
    })
    .await?;
    let client = &world.client;
    for _ in 0..FLIPS {
        let connect = inputs::connect("flapper", "c", now_ms());
        client.publish(CONNECT, &connect).await?;
        let bye = inputs::disconnect("flapper", "c", now_ms(), "client_disconnect");
        client.publish(DISCONNECT, &bye).await?;
    }
    let disconnects = ["kind=\"disconnect\""];
    let taken = world
        .host
        .until_metric("presence_inputs_total", &disconnects, |taken| {
            taken >= FLIPS as f64
        });
    taken.await?;
    client
        .input(CONNECT, inputs::connect("12345", "c", now_ms()))
        .await?;
    let others = world.tape.next("the event of another", |seen| {
        seen.is_from_host() && seen.subject == EVENTS && seen.text("userId") == "12345"
    });
    others.await?;
    let of_flapper = world.tape.seen().iter().filter(|seen| {
        seen.is_from_host() && seen.subject == EVENTS && seen.text("userId") == "flapper"
    });
    let told: Vec<_> = of_flapper.map(|seen| seen.text("type")).collect();
    assert!(
        told.len() >= 200,
        "a few dozen flips are told of: {}",
        told.len()
    );
    assert!(told.len() < 400, "{} events of one who flips", told.len());
    let alternate = told.chunks(2).all(|pair| pair[0] == "user_online");
    assert!(alternate, "and each follows the other");
    assert_eq!(
        told.last(),
        Some(&"user_online"),
        "the last offline is held back"
    );
    let held = world.host.metric("presence_offlines_held_back_total", &[]);
    assert!(held.await? >= 1_000.0);
    world.end().await
}

#[tokio::test]
async fn dead_letters_past_their_rate_are_counted_and_requests_are_still_answered() -> Result<()> {
    const BAD: usize = 40;
    let mut world = World::start_with(|site| {
        site.with("dead_letters.per_s", 1)?
            .with("engine.workers", 3)
    })
    .await?;
    for number in 0..BAD {
        let answer = world
            .client
            .request(CONNECT, format!("no {number}"))
            .await?;
        assert_eq!(answer["reason"], "invalid-json", "{answer}");
    }
    world
        .host
        .wait_for_log(0, &["[dead_letters] per_s"])
        .await?;
    let name = "presence_dead_letters_left_out_total";
    world.tape.catch_up(&world.client).await?;
    let letters = world.tape.seen().iter().filter(|seen| seen.subject == DLQ);
    let letters = letters.count();
    assert!((2..BAD).contains(&letters), "{letters}");
    // The metrics follow a moment after the answer.
    let all_others = |left_out: f64| (left_out + letters as f64 - BAD as f64).abs() < 0.5;
    world.host.until_metric(name, &[], all_others).await?;
    world.end().await
}
