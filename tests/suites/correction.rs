//! What viewers have been told is corrected at a pace, while what is new goes on.

use std::collections::BTreeMap;

use anyhow::Result;
use presence_tests::client::{Seen, now_ms};
use presence_tests::component;
use serde_json::json;

use crate::inputs::{self, CONNECT, FILTERED_OFFLINE, FILTERED_ONLINE};
use crate::world::World;

const USERS: usize = 300;

/// Of corrections, in messages. Both rules differ on everyone, so that a swap
/// takes twice as many.
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
    // It goes on, and anyone who comes online now doesn't wait for its end.
    let connect = inputs::connect("late", "c", now_ms());
    world.client.input(CONNECT, connect).await?;
    let is_late = |seen: &Seen| seen.subject == FILTERED_ONLINE && seen.text("userId") == "late";
    let late = world.tape.next("the new user to be shown", is_late).await?;
    assert_eq!(late.visible_to(), ["colleague"]);
    let backlog = "presence_correction_backlog_users";
    let left = world.host.metric(backlog, &[]).await?;
    assert!(left > 0.0, "the swap is corrected already");

    let began = ["deciding again on users who are online"];
    world.host.wait_for_log(from, &began).await?;
    let done = ["everyone online has been decided on again", "generation=2"];
    world.host.wait_for_log(from, &done).await?;
    assert_eq!(world.host.metric(backlog, &[]).await?, 0.0);
    let messages = "presence_correction_messages_total";
    let messages = world.host.metric(messages, &[]).await?;
    assert_eq!(messages, 2.0 * USERS as f64);
    world.tape.hosts(FILTERED_OFFLINE, USERS).await?;
    world.tape.hosts(FILTERED_ONLINE, 2 * USERS + 1).await?;
    let order: Vec<_> = world.tape.seen().iter().collect();
    let place = |subject, user: &str| {
        let found = |seen: &&Seen| seen.subject == subject && seen.text("userId") == user;
        order.iter().rposition(found)
    };
    for user in users() {
        assert!(place(FILTERED_OFFLINE, &user) < place(FILTERED_ONLINE, &user));
    }
    world.end().await
}

/// Whether this is a correction's.
fn is_told(seen: &Seen, subject: &str) -> bool {
    seen.is_hosts() && seen.subject == subject
}

#[tokio::test]
async fn all_workers_tell_who_loses_sight_before_any_tells_who_gains_it() -> Result<()> {
    let users = || (0..24).map(|user| format!("user-{user}"));
    let mut world = World::start_with(|site| {
        let mut site = site
            .with("engine.workers", 2)?
            // The losses of one worker take half a second.
            .with("correction.messages_per_s", 40)?;
        site.set_pipeline(&[("contacts", None), ("redact", None)])?;
        let contacts: BTreeMap<_, _> = users().map(|user| (user, ["friend"])).collect();
        site.write_directory_value(&json!({"contacts": contacts}))?;
        Ok(site)
    })
    .await?;
    for user in users() {
        let connect = inputs::connect(&user, "c", now_ms());
        world.client.input(CONNECT, connect).await?;
    }
    let shown = world.tape.hosts(FILTERED_ONLINE, users().count()).await?;
    let worker = |seen: &Seen| seen.counted().0.to_owned();
    let one = shown.iter().map(worker).min();
    let (ones, others): (Vec<_>, Vec<_>) = shown.iter().partition(|seen| Some(worker(seen)) == one);
    let [ones, others] = [ones, others].map(|shown| {
        let users = shown.into_iter().map(|seen| seen.text("userId").to_owned());
        users.collect::<Vec<_>>()
    });
    let enough = 4..=20;
    assert!(
        enough.contains(&ones.len()),
        "the users are on both workers"
    );

    // Of the one worker's users sight is lost, and of the other's it is gained.
    let begin = world.tape.seen().len();
    let contacts = others.iter().map(|user| (user, ["friend", "colleague"]));
    let groups = ones.iter().map(|user| (user, [user, "colleague"]));
    let (contacts, groups): (BTreeMap<_, _>, BTreeMap<_, _>) =
        (contacts.collect(), groups.collect());
    let directory = json!({"contacts": contacts, "groups": groups});
    world.site.write_directory_value(&directory)?;
    in_order(&mut world, begin, ones.len(), others.len()).await?;

    // And the other way about, when the rules change.
    let begin = world.tape.seen().len();
    let groups = component::named(&component::load("groups")?, "contacts")?;
    world.site.write_plugin("contacts", groups)?;
    in_order(&mut world, begin, others.len(), ones.len()).await?;
    world.end().await
}

/// Waits until so many have been told that they lose, and that they gain, sight of
/// somebody, and looks whether all losses came first.
async fn in_order(world: &mut World, begin: usize, losses: usize, gains: usize) -> Result<()> {
    let told = |seen: &[Seen], subject| {
        let told = seen.iter().skip(begin);
        told.filter(|seen| is_told(seen, subject)).count()
    };
    let all = |seen: &[Seen]| {
        told(seen, FILTERED_OFFLINE) == losses && told(seen, FILTERED_ONLINE) == gains
    };
    world.tape.until("the whole correction", all).await?;
    let order: Vec<_> = world.tape.seen().iter().skip(begin).collect();
    let last = order
        .iter()
        .rposition(|seen| is_told(seen, FILTERED_OFFLINE));
    let first = order.iter().position(|seen| is_told(seen, FILTERED_ONLINE));
    assert!(
        last < first,
        "the last loss is message {last:?}, the first gain {first:?}"
    );
    Ok(())
}
