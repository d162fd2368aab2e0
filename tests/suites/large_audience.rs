//! An audience whose ids fill several messages.

use std::collections::BTreeSet;

use anyhow::Result;
use presence_tests::client::{ReceivedMessage, now_ms};
use serde_json::json;

use crate::inputs::{self, CONNECT, DISCONNECT, FILTERED_OFFLINE, FILTERED_ONLINE};
use crate::world::World;

const VIEWERS: usize = 200_000;

/// What a `nats-server` takes unless it is told otherwise, headers included.
const MAX_PAYLOAD: usize = 1 << 20;

#[tokio::test]
async fn two_hundred_thousand_viewers_are_told_once_each_in_valid_messages() -> Result<()> {
    let viewers: Vec<_> = (0..VIEWERS)
        .map(|number| format!("viewer-{number:06}"))
        .collect();
    let mut world = World::start_with(|site| {
        let directory = json!({"contacts": {"12345": viewers}});
        site.write_directory_value(&directory)?;
        Ok(site)
    })
    .await?;
    let client = &world.client;
    let metadata = json!({"device": "web"});
    let mut connect = inputs::connect("12345", "c1", now_ms());
    connect["metadata"] = metadata.clone();
    client.input(CONNECT, connect).await?;
    let online = notifications(&mut world, FILTERED_ONLINE).await?;
    for message in &online {
        assert_eq!(
            message.fields(),
            ["type", "userId", "timestamp", "visibleTo", "metadata"]
        );
        assert_eq!(*message.field("metadata"), metadata);
    }
    let client = &world.client;
    let disconnect = inputs::disconnect("12345", "c1", now_ms(), "logout");
    client.input(DISCONNECT, disconnect).await?;
    let offline = notifications(&mut world, FILTERED_OFFLINE).await?;
    for message in &offline {
        assert_eq!(
            message.fields(),
            ["type", "userId", "timestamp", "lastSeen", "visibleTo"]
        );
    }
    world.end().await
}

/// The messages on a subject that together tell every viewer, once each.
async fn notifications(world: &mut World, subject: &str) -> Result<Vec<ReceivedMessage>> {
    let count = |seen: &[ReceivedMessage]| -> usize {
        let on_it = seen.iter().filter(|seen| seen.subject == subject);
        on_it.map(|seen| seen.visible_to().len()).sum()
    };
    let what = "everyone who may see the user";
    world
        .tape
        .until(what, |seen| count(seen) >= VIEWERS)
        .await?;
    let seen = world.tape.seen().iter();
    let messages: Vec<_> = seen
        .filter(|seen| seen.subject == subject)
        .cloned()
        .collect();
    assert!(messages.len() > 1, "one message can't hold them");
    for message in &messages {
        assert!(message.bytes.len() < MAX_PAYLOAD);
    }
    let listed: Vec<_> = messages
        .iter()
        .flat_map(ReceivedMessage::visible_to)
        .collect();
    let distinct: BTreeSet<_> = listed.iter().collect();
    assert_eq!((listed.len(), distinct.len()), (VIEWERS, VIEWERS));
    Ok(messages)
}
