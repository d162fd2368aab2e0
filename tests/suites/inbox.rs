//! Delivery per viewer, for those who turn it on.

use anyhow::Result;
use presence_tests::client::{ReceivedMessage, now_ms};
use presence_tests::wait;
use serde_json::json;

use crate::inputs::{self, CONNECT, DISCONNECT, FILTERED_OFFLINE, FILTERED_ONLINE};
use crate::world::World;

const ANN: &str = "presence.inbox.=YW5uQGV4YW1wbGUuY29t";

fn seqs(seen: &[ReceivedMessage], subject: &str) -> Vec<u64> {
    let on = seen.iter().filter(|seen| seen.subject == subject);
    on.map(|seen| seen.sequence().2).collect()
}

#[tokio::test]
async fn each_viewer_gets_the_filtered_event_alone_and_numbered() -> Result<()> {
    let mut world = World::start_with(|site| {
        site.write_directory(r#"{"contacts": {"12345": ["67890", "ann@example.com"]}}"#)?;
        site.with("inbox.enabled", true)?
            .with("nats.message_ids", true)
    })
    .await?;
    let connect = inputs::connect("12345", "c", now_ms());
    world.client.input(CONNECT, connect).await?;
    world
        .site
        .write_directory(r#"{"contacts": {"12345": ["67890"]}}"#)?;
    world.tape.hosts(FILTERED_OFFLINE, 1).await?;
    let bye = inputs::disconnect("12345", "c", now_ms(), "client_disconnect");
    world.client.input(DISCONNECT, bye).await?;
    let seen = world.all_about("12345").await?;
    assert_eq!(seqs(&seen, "presence.inbox.67890"), [1, 2]);
    assert_eq!(seqs(&seen, ANN), [1, 2]);
    let filtered = seen
        .iter()
        .filter(|seen| seen.subject.starts_with("presence.filtered."));
    let mut ids = std::collections::BTreeSet::new();
    for filtered in filtered {
        for viewer in filtered.visible_to() {
            let subject = match viewer {
                "67890" => "presence.inbox.67890",
                _ => ANN,
            };
            let mut expected = filtered.body.clone();
            expected["visibleTo"] = json!([viewer]);
            let alone = seen
                .iter()
                .filter(|seen| seen.subject == subject && seen.body == expected);
            let alone: Vec<_> = alone.collect();
            assert_eq!(alone.len(), 1, "{expected}");
            assert_eq!(alone[0].fields(), filtered.fields());
            let [(source, epoch, _), (same, too, _)] =
                [alone[0], filtered].map(ReceivedMessage::sequence);
            assert_eq!((source, epoch), (same, too));
            ids.insert(alone[0].headers["Nats-Msg-Id"].clone());
        }
    }
    assert_eq!(ids.len(), 4, "no two have one id");
    world.end().await
}

#[tokio::test]
async fn it_is_off_unless_turned_on_and_turned_on_while_it_runs() -> Result<()> {
    let mut world = World::start().await?;
    world.probe("12345").await?;
    assert!(
        !world
            .tape
            .seen()
            .iter()
            .any(|seen| seen.subject.starts_with("presence.inbox."))
    );
    world.site.set("inbox.enabled", true)?;
    let from = std::time::Instant::now();
    loop {
        world.probe("12345").await?;
        let seen = world.tape.seen();
        let is_own = |seen: &&ReceivedMessage| seen.subject == "presence.inbox.67890";
        if seen.iter().any(|seen| is_own(&seen)) {
            break;
        }
        assert!(from.elapsed() < wait::GUARD, "turned on, and nothing comes");
    }
    let seen = world.tape.seen();
    assert!(seen.iter().any(|seen| seen.subject == FILTERED_ONLINE));
    world.end().await
}
