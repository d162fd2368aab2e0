//! A flood of one kind takes no room from another, and what finds no room is told so.

use anyhow::{Context, Result};
use futures_util::StreamExt;
use presence_tests::client::now_ms;
use presence_tests::wait;
use serde_json::{Value, json};

use crate::inputs::{self, CONNECT, HEARTBEAT};
use crate::world::World;

const QUERY: &str = "presence.query";

/// A query after as many users as one may name.
fn large_query() -> String {
    let users: Vec<_> = (0..1_000).map(|user| format!("user-{user}")).collect();
    json!({"viewerId": "viewer", "userIds": users}).to_string()
}

#[tokio::test]
async fn a_burst_of_large_queries_costs_no_heartbeat() -> Result<()> {
    const HEARTBEATS: usize = 1_200;
    const QUERIES: usize = 600;
    // So few tasks waited in one queue, for all that there was to do.
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
