//! Thousands of connects and disconnects while the node is killed again and again, each time with
//! another number of shards: an oracle that sees only what was told.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use presence_tests::client::{ReceivedMessage, now_ms};
use serde_json::json;

use super::{CONNECT, DISCONNECT, OFFLINE, ONLINE, StreamWorld};
use crate::inputs;

const USERS: usize = 40;
const ROUNDS: usize = 30;
const KILLS: usize = 7;

/// What was told about each user: for each event, its epoch, and the number of the user's message
/// that it is about.
fn events_by_user(seen: &[ReceivedMessage], base: u64) -> BTreeMap<String, Vec<(u64, usize)>> {
    let mut told = BTreeMap::<_, Vec<_>>::new();
    let is_event =
        |it: &&ReceivedMessage| it.is_from_host() && [ONLINE, OFFLINE].contains(&&*it.subject);
    for event in seen.iter().filter(is_event) {
        let place = match event.subject == ONLINE {
            true => event.field("metadata")["connId"]
                .as_str()
                .and_then(|it| it.parse::<usize>().ok()),
            false => event
                .field("lastSeen")
                .as_u64()
                .and_then(|at| usize::try_from(at.checked_sub(base)?).ok()),
        };
        if let Some(place) = place {
            let user = event.text("userId").to_owned();
            told.entry(user)
                .or_default()
                .push((event.sequence().1, place));
        }
    }
    told
}

/// Checks what was told about a user who sent this many messages. Within an epoch, one event
/// follows the other, and a later epoch leaves none out. It may repeat what was not stored. Returns
/// how many were repeated.
fn judge(told: &[(u64, usize)], messages: usize) -> Result<usize> {
    let (mut epoch, mut next, mut again) = (0, 0, 0);
    for (of_epoch, place) in told {
        if *of_epoch == epoch {
            ensure!(
                *place == next,
                "{place} was told instead of {next}: {told:?}"
            );
        } else {
            ensure!(*of_epoch > epoch, "an epoch went back: {told:?}");
            ensure!(*place <= next, "{next} was left out: {told:?}");
            again += next - place;
            epoch = *of_epoch;
        }
        next = place + 1;
    }
    ensure!(next == messages, "{next} of {messages} were told: {told:?}");
    Ok(again)
}

#[test]
fn the_oracle_finds_what_is_left_out_and_what_is_told_twice() {
    assert_eq!(judge(&[(1, 0), (1, 1), (2, 1), (2, 2)], 3).unwrap(), 1);
    assert!(judge(&[(1, 0), (1, 2)], 3).is_err(), "left out");
    assert!(judge(&[(1, 0), (2, 2)], 3).is_err(), "left out by a kill");
    assert!(judge(&[(1, 0), (1, 0), (1, 1)], 2).is_err(), "told twice");
    assert!(judge(&[(1, 0)], 2).is_err(), "the end is missing");
    assert!(judge(&[(2, 0), (1, 1)], 2).is_err(), "an epoch went back");
}

#[tokio::test]
async fn whenever_the_node_is_killed_every_message_is_told_and_none_twice_in_an_epoch() -> Result<()>
{
    let mut it = StreamWorld::start_with(|site| {
        let site = site.with("tracker.timeout_ms", 600_000)?;
        let site = site.with("tracker.flap_threshold", 0)?;
        let contacts = (0..USERS).map(|user| (format!("user-{user}"), json!(["viewer"])));
        let contacts: serde_json::Map<_, _> = contacts.collect();
        site.write_directory_value(&json!({"contacts": contacts}))?;
        site.with("tenant.shards", 2)?.with("engine.workers", 2)
    })
    .await?;
    // Each message of a user has another time, and each connect another connection.
    let base = now_ms() - 10_000_000;
    let messages = ROUNDS * 2;
    let mut last = 0;
    for part in 0..KILLS {
        let rounds = (part * ROUNDS / KILLS)..((part + 1) * ROUNDS / KILLS);
        let mut acks = Vec::new();
        for round in rounds {
            for user in 0..USERS {
                let user = format!("user-{user}");
                let (place, conn) = (2 * round, (2 * round).to_string());
                let at = base + place as u64;
                let connect = inputs::connect(&user, &conn, at);
                let disconnect = inputs::disconnect(&user, &conn, at + 1, "client_disconnect");
                for (subject, body) in [(CONNECT, connect), (DISCONNECT, disconnect)] {
                    let stored = it.context.publish(subject, body.to_string().into());
                    acks.push(stored.await?);
                }
            }
        }
        for ack in acks {
            last = ack.await?.sequence;
        }
        // The kill is in the middle of the messages, or at their end.
        let half = last - (USERS * ROUNDS / KILLS) as u64 * (part % 3) as u64 / 2;
        it.until_taken(half).await?;
        it.kill().await?;
        it.world.site.set("tenant.shards", [4, 1, 8, 2][part % 4])?;
        it.resume().await?;
    }
    it.until_taken(last).await?;
    let (mut ended, mut looked) = (BTreeSet::new(), 0);
    let end = base + messages as u64 - 1;
    it.world
        .tape
        .until("everyone's last message to be told", |seen| {
            for event in seen.iter().skip(looked) {
                if event.is_from_host()
                    && event.subject == OFFLINE
                    && *event.field("lastSeen") == end
                {
                    ended.insert(event.text("userId").to_owned());
                }
            }
            looked = seen.len();
            ended.len() == USERS
        })
        .await?;
    // What was stored is not taken again.
    it.stop().await?;
    it.world.tape.catch_up(&it.world.client).await?;
    let before = it.world.tape.seen().len();
    it.resume().await?;
    it.types("nobody", "mark").await?;
    let (before, after) = it.world.tape.seen().split_at(before);
    let again = events_by_user(after, base);
    ensure!(again.is_empty(), "{again:?}");
    let told = events_by_user(before, base);
    ensure!(told.len() == USERS, "{} users", told.len());
    let mut again = 0;
    for (user, told) in &told {
        again += judge(told, messages).map_err(|error| error.context(user.clone()))?;
    }
    let all = USERS * messages;
    println!("{all} events, {again} told again after {KILLS} kills");
    it.world.end().await
}
