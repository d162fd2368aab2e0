//! What viewers have been told is corrected at a pace, while what is new goes on.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use presence_tests::client::{ReceivedMessage, now_ms};
use presence_tests::component;
use serde_json::json;

use crate::inputs::{self, CONNECT, FILTERED_OFFLINE, FILTERED_ONLINE};
use crate::world::World;

const USERS: usize = 300;

/// The pace of corrections, in messages. The two rules differ on everyone, so that a swap takes two
/// messages per user.
const PER_SECOND: i64 = 100;

#[tokio::test]
async fn a_swap_is_corrected_at_the_pace_while_new_events_go_on() -> Result<()> {
    let users = || (0..USERS).map(|user| format!("user-{user}"));
    let mut world = World::start_with(|site| {
        let mut site = site.with("correction.messages_per_s", PER_SECOND)?;
        site.set_pipeline(&[("contacts", None), ("redact", None)])?;
        let everyone = || users().chain(["late".to_owned()]);
        let contacts: BTreeMap<_, _> = everyone().map(|user| (user, ["friend"])).collect();
        let groups: BTreeMap<_, _> = everyone()
            .map(|user| (format!("team-{user}"), [user, "colleague".to_owned()]))
            .collect();
        site.write_directory_value(&json!({"contacts": contacts, "groups": groups}))?;
        Ok(site)
    })
    .await?;
    for user in users() {
        let connect = inputs::connect(&user, "c", now_ms());
        world.client.input(CONNECT, connect).await?;
    }
    world.tape.hosts(FILTERED_ONLINE, USERS).await?;

    let from = world.host.log_len();
    let groups = component::named(&component::load("groups")?, "contacts")?;
    world.site.write_plugin("contacts", groups)?;
    world.tape.hosts(FILTERED_OFFLINE, 1).await?;
    // All shards have been told of the swap by then, and not just the one that was quickest.
    let began = ["correction started: deciding again for online users"];
    world.host.wait_for_log(from, &began).await?;
    // It goes on, and anyone who comes online now doesn't wait for its end.
    let connect = inputs::connect("late", "c", now_ms());
    world.client.input(CONNECT, connect).await?;
    let is_late =
        |seen: &ReceivedMessage| seen.subject == FILTERED_ONLINE && seen.text("userId") == "late";
    let late = world.tape.next("the new user to be shown", is_late).await?;
    assert_eq!(late.visible_to(), ["colleague"]);
    let backlog = "presence_correction_backlog_users";
    let left = world.host.metric(backlog, &[]).await?;
    assert!(left > 0.0, "the swap is corrected already");

    let done = [
        "correction finished: all online users were decided again",
        "generation=2",
    ];
    world.host.wait_for_log(from, &done).await?;
    assert_eq!(world.host.metric(backlog, &[]).await?, 0.0);
    let messages = "presence_correction_messages_total";
    let messages = world.host.metric(messages, &[]).await?;
    assert_eq!(messages, 2.0 * USERS as f64);
    world.tape.hosts(FILTERED_OFFLINE, USERS).await?;
    world.tape.hosts(FILTERED_ONLINE, 2 * USERS + 1).await?;
    let order: Vec<_> = world.tape.seen().iter().collect();
    let place = |subject, user: &str| {
        let found =
            |seen: &&ReceivedMessage| seen.subject == subject && seen.text("userId") == user;
        order.iter().rposition(found)
    };
    for user in users() {
        assert!(place(FILTERED_OFFLINE, &user) < place(FILTERED_ONLINE, &user));
    }
    // A source is a shard: it tells all who lose sight before anyone gains it.
    let hosts = order.iter().filter(|seen| seen.is_from_host());
    let sources: BTreeSet<_> = hosts.map(|seen| seen.sequence().0).collect();
    for source in sources {
        let is_told = |seen: &ReceivedMessage, subject| {
            let of_source = seen.subject == subject && seen.sequence().0 == source;
            of_source && seen.text("userId") != "late"
        };
        let losses = order.iter().filter(|seen| is_told(seen, FILTERED_OFFLINE));
        let losses = losses.count();
        let last = order
            .iter()
            .rposition(|seen| is_told(seen, FILTERED_OFFLINE));
        let later = order.iter().skip(last.unwrap_or_default());
        let gains = later.filter(|seen| is_told(seen, FILTERED_ONLINE));
        assert_eq!(gains.count(), losses, "told by {source}");
    }
    world.end().await
}
