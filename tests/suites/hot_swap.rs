//! Rules change while the host runs: under load, with every event accounted for. A broken plugin
//! changes nothing.
//!
//! The two rules are the default plugins `contacts` and `groups`. The second is swapped in under
//! the first's name, so that the viewers of a user show which rule decided.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use presence_tests::client::{Client, ReceivedMessage, now_ms};
use presence_tests::component;
use serde_json::json;

use crate::inputs::{
    self, CONNECT, DISCONNECT, DLQ, EVENTS, FILTERED_OFFLINE, FILTERED_ONLINE, OFFLINE, ONLINE,
};
use crate::world::World;

const BY_CONTACT: [&str; 1] = ["friend"];
const BY_GROUP: [&str; 1] = ["colleague"];

/// How many times the rules are swapped under load.
const SWAPS: usize = 4;

/// How many users the load comes from.
const USERS: usize = 40;

/// A world where contacts alone decide. Everyone has a friend and a colleague.
async fn world() -> Result<World> {
    World::start_with(|mut site| {
        site.set_pipeline(&[("contacts", None), ("redact", None)])?;
        let users = (0..USERS)
            .map(|user| format!("user-{user}"))
            .chain(["12345".to_owned()]);
        let contacts: BTreeMap<_, _> = users.clone().map(|user| (user, BY_CONTACT)).collect();
        let groups: BTreeMap<_, _> = users
            .map(|user| (format!("team-{user}"), [user, "colleague".to_owned()]))
            .collect();
        site.write_directory_value(&json!({"contacts": contacts, "groups": groups}))?;
        Ok(site)
    })
    .await
}

fn contacts() -> Result<Vec<u8>> {
    component::load("contacts")
}

fn groups_as_contacts() -> Result<Vec<u8>> {
    component::named(&component::load("groups")?, "contacts")
}

#[tokio::test]
async fn a_replaced_file_takes_effect_and_a_deleted_one_stays_in_force() -> Result<()> {
    let mut world = world().await?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    world.site.write_plugin("contacts", groups_as_contacts()?)?;
    world.until_visible_to("12345", &BY_GROUP).await?;

    let from = world.host.log_len();
    fs::remove_file(world.site.plugin_path("contacts"))?;
    world.host.wait_for_log(from, &["contacts"]).await?;
    assert_eq!(
        world.probe("12345").await?.visible_to(),
        BY_GROUP,
        "the default must not come back"
    );

    world.site.write_plugin("contacts", contacts()?)?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    world.end().await
}

#[tokio::test]
async fn a_broken_file_keeps_the_running_generation_and_says_so() -> Result<()> {
    let mut world = world().await?;
    world.site.write_plugin("contacts", groups_as_contacts()?)?;
    world.until_visible_to("12345", &BY_GROUP).await?;
    let whole = contacts()?;
    let half = whole
        .get(..whole.len() / 2)
        .context("half of a component")?;
    for broken in [&b"this is no component"[..], b"", half] {
        let from = world.host.log_len();
        world.site.write_plugin("contacts", broken)?;
        world.host.wait_for_log(from, &["contacts.wasm"]).await?;
        assert_eq!(world.probe("12345").await?.visible_to(), BY_GROUP);
    }
    world.site.write_plugin("contacts", whole)?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    world.end().await
}

#[tokio::test]
async fn a_file_written_in_pieces_and_a_swapped_link_take_effect() -> Result<()> {
    let mut world = world().await?;
    let place = world.site.plugin_path("contacts");

    let new = groups_as_contacts()?;
    for end in [new.len() / 3, new.len() / 2, new.len()] {
        fs::write(&place, new.get(..end).unwrap_or_default())?;
    }
    world.until_visible_to("12345", &BY_GROUP).await?;

    let elsewhere = world.site.path().join("contacts-2.wasm");
    fs::write(&elsewhere, contacts()?)?;
    let link = world.site.path().join("link");
    symlink(&elsewhere, &link)?;
    fs::rename(&link, &place)?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    world.end().await
}

#[tokio::test]
async fn a_changed_pipeline_takes_effect_and_a_broken_one_does_not() -> Result<()> {
    let mut world = world().await?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    world
        .site
        .set_pipeline(&[("groups", None), ("redact", None)])?;
    world.until_visible_to("12345", &BY_GROUP).await?;

    let from = world.host.log_len();
    world.site.set_pipeline(&[
        ("contacts", None),
        ("no-such-filter", None),
        ("redact", None),
    ])?;
    world.host.wait_for_log(from, &["no-such-filter"]).await?;
    assert_eq!(world.probe("12345").await?.visible_to(), BY_GROUP);
    world.end().await
}

#[tokio::test]
async fn swaps_under_load_lose_double_and_leak_nothing() -> Result<()> {
    let mut world = world().await?;
    let done = Arc::new(AtomicBool::new(false));
    let lanes =
        (0..4).map(|lane| tokio::spawn(come_and_go(world.client.clone(), lane, Arc::clone(&done))));
    let lanes: Vec<_> = lanes.collect();

    for swap in 0..SWAPS {
        let (component, viewers) = if swap % 2 == 0 {
            (groups_as_contacts()?, BY_GROUP)
        } else {
            (contacts()?, BY_CONTACT)
        };
        // Waits until many users have come online under the new rule.
        let from = world.tape.seen().len();
        world.site.write_plugin("contacts", component)?;
        let decided = |seen: &ReceivedMessage| {
            seen.is_from_host() && seen.subject == FILTERED_ONLINE && seen.visible_to() == viewers
        };
        world
            .tape
            .until("the new rule to decide", |seen| {
                seen[from..].iter().filter(|seen| decided(seen)).count() > 100
            })
            .await?;
    }

    done.store(true, Ordering::Relaxed);
    let mut stays = 0;
    for lane in lanes {
        stays += lane.await??;
    }
    for user in 0..USERS {
        world.all_about(&format!("user-{user}")).await?;
    }
    let seen: Vec<_> = world
        .tape
        .seen()
        .iter()
        .filter(|seen| seen.is_from_host())
        .cloned()
        .collect();
    // The statements that `all_about` ends with are on the events' common subject only.
    let count = |subject: &str| seen.iter().filter(|seen| seen.subject == subject).count();
    assert_eq!(
        (count(ONLINE), count(OFFLINE)),
        (stays, stays),
        "every stay began and ended once"
    );
    assert_eq!(count(EVENTS), 2 * stays + USERS, "and was broadcast once");
    assert_eq!(
        count(DLQ),
        0,
        "{:?}",
        seen.iter().find(|seen| seen.subject == DLQ)
    );
    for user in 0..USERS {
        account_for(&format!("user-{user}"), &seen)?;
    }
    world.end().await
}

/// Users of one lane come and go, one after the other, until `done`. Returns the number of stays.
async fn come_and_go(client: Client, lane: usize, done: Arc<AtomicBool>) -> Result<usize> {
    let mut stays = 0;
    while !done.load(Ordering::Relaxed) {
        for user in (lane..USERS).step_by(4) {
            let user = format!("user-{user}");
            let conn = format!("c{stays}");
            client
                .input(CONNECT, inputs::connect(&user, &conn, now_ms()))
                .await?;
            let bye = inputs::disconnect(&user, &conn, now_ms(), "client_disconnect");
            client.input(DISCONNECT, bye).await?;
            stays += 1;
        }
    }
    Ok(stays)
}

/// Follows one user through the recording. Every coming and going was filtered, by one of the two
/// rules as a whole. No viewer is told twice, and a viewer who was told of the one is told of the
/// other. Nobody is told of a leave only if a swap has already hidden the user from the old
/// viewers, and not shown the user to new ones yet.
fn account_for(user: &str, seen: &[ReceivedMessage]) -> Result<()> {
    let seen: Vec<_> = seen
        .iter()
        .filter(|seen| seen.text("userId") == user)
        .collect();
    let (mut told, mut unseen) = (BTreeSet::new(), Vec::new());
    for message in &seen {
        if message.subject == OFFLINE && told.is_empty() {
            unseen.push(message.field("timestamp"));
        }
        if !message.subject.starts_with("presence.filtered.") {
            continue;
        }
        let viewers = message.visible_to();
        if viewers != BY_CONTACT && viewers != BY_GROUP {
            bail!("{user}: neither rule shows them to {viewers:?}");
        }
        for viewer in viewers {
            let online = message.subject == FILTERED_ONLINE;
            let changed = if online {
                told.insert(viewer)
            } else {
                told.remove(viewer)
            };
            if !changed {
                bail!("{user}: {viewer} is told twice: {:?}", message.body);
            }
        }
    }
    if !told.is_empty() {
        bail!("{user}: {told:?} were never told that it ended");
    }
    if unseen.len() > SWAPS {
        bail!("{user}: left unseen at {unseen:?}, in {SWAPS} swaps");
    }
    for (event, filtered) in [(ONLINE, FILTERED_ONLINE), (OFFLINE, FILTERED_OFFLINE)] {
        for event in seen.iter().filter(|seen| seen.subject == event) {
            let at = event.field("timestamp");
            let is_told = seen
                .iter()
                .any(|seen| seen.subject == filtered && seen.field("timestamp") == at);
            if !(is_told || event.subject == OFFLINE && unseen.contains(&at)) {
                bail!("{user}: nobody is told of {:?}", event.body);
            }
        }
    }
    Ok(())
}
