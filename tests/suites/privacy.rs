//! Each message shows viewers what the current rules, directory and configuration allow, and a
//! query shows the same.

use anyhow::Result;
use presence_tests::client::{ReceivedMessage, now_ms};
use presence_tests::component;
use presence_tests::host::Host;
use presence_tests::site::Site;
use serde_json::{Value, json};
use toml::{Table, toml};

use crate::inputs::{self, CONNECT, DISCONNECT, FILTERED_OFFLINE, FILTERED_ONLINE};
use crate::world::{World, on};

const FILTERED_UPDATED: &str = "presence.filtered.user_updated";

/// The records of a user: the connection, and the ledger's entry.
const RECORDS: f64 = 2.0;

/// Contacts see the device and the browser. Members of the same group see the device.
fn tiers() -> Table {
    toml! {
        tiers = [
            { for = "contacts", keys = ["device", "userAgent"], last_seen = true },
            { for = "everyone", keys = ["device"] },
        ]
    }
}

/// Ben is ann's contact, and they share a group with cleo.
fn site(mut site: Site) -> Result<Site> {
    site.set_pipeline(&[
        ("contacts", None),
        ("groups", None),
        ("redact", Some(tiers())),
    ])?;
    directory(&site, &["ben"])?;
    Ok(site)
}

fn directory(site: &Site, contacts: &[&str]) -> Result<()> {
    site.write_directory_value(&json!({
        "contacts": {"ann": contacts},
        "groups": {"team": ["ann", "ben", "cleo"]},
    }))
}

async fn come(world: &mut World) -> Result<()> {
    let connect = inputs::connect("ann", "c1", now_ms());
    world.client.input(CONNECT, connect).await?;
    world.tape.hosts(FILTERED_ONLINE, 2).await?;
    Ok(())
}

/// The answer to a viewer's query about ann.
async fn asked(world: &World, viewer: &str) -> Result<Value> {
    asked_of(world, viewer, "ann").await
}

async fn asked_of(world: &World, viewer: &str, user: &str) -> Result<Value> {
    let question = json!({"viewerId": viewer, "userIds": [user]}).to_string();
    let answer = world.client.request("presence.query", question).await?;
    Ok(answer["users"][0].clone())
}

/// The answer about a user who has never been seen.
fn unknown(user: &str) -> Value {
    json!({"userId": user, "status": "offline"})
}

async fn disconnect(world: &World, user: &str, at: u64) -> Result<()> {
    let bye = inputs::disconnect(user, "c1", at, "client_disconnect");
    world.client.input(DISCONNECT, bye).await
}

fn online(metadata: &Value) -> Value {
    json!({"userId": "ann", "status": "online", "metadata": metadata})
}

#[tokio::test]
async fn a_viewer_who_comes_to_another_tier_is_told_what_they_may_see_now() -> Result<()> {
    let mut world = World::start_with(site).await?;
    come(&mut world).await?;
    let browser = json!({"device": "web", "userAgent": "Mozilla/5.0..."});
    assert_eq!(asked(&world, "ben").await?, online(&browser));

    directory(&world.site, &[])?;
    let told = world.tape.hosts(FILTERED_ONLINE, 3).await?.remove(2);
    assert_eq!(told.visible_to(), ["ben"]);
    assert_eq!(*told.field("metadata"), json!({"device": "web"}));
    assert_eq!(
        asked(&world, "ben").await?,
        online(&json!({"device": "web"}))
    );

    // Ben comes back to his tier, and cleo comes to it from the other one.
    directory(&world.site, &["ben", "cleo"])?;
    let told = world.tape.hosts(FILTERED_ONLINE, 4).await?.remove(3);
    assert_eq!(told.visible_to(), ["ben", "cleo"]);
    assert_eq!(*told.field("metadata"), browser);
    assert_eq!(asked(&world, "cleo").await?, online(&browser));
    assert!(on(world.tape.seen(), FILTERED_OFFLINE).is_empty());
    world.end().await
}

#[tokio::test]
async fn a_redactor_that_shows_less_is_told_even_if_it_was_changed_while_the_host_was_down()
-> Result<()> {
    let mut world = World::start_with(site).await?;
    come(&mut world).await?;
    world.host.until_saved(RECORDS).await?;
    world.host.process.kill().await?;
    world
        .site
        .set_stage("redact", "config", toml! { keys = ["device"] })?;
    world.host = Host::start(&world.site).await?;
    let told = world.tape.hosts(FILTERED_ONLINE, 3).await?.remove(2);
    assert_eq!(told.visible_to(), ["ben"], "cleo sees what she saw");
    assert_eq!(*told.field("metadata"), json!({"device": "web"}));

    // This changes nothing that viewers see, so nobody is told anything.
    let from = world.host.log_len();
    let keys = toml! { keys = ["device", "location"] };
    world.site.set_stage("redact", "config", keys)?;
    let done = [
        "correction finished: all online users were decided again",
        "generation=2",
    ];
    world.host.wait_for_log(from, &done).await?;
    let from = world.host.log_len();
    let keys = toml! { keys = ["userAgent"] };
    world.site.set_stage("redact", "config", keys)?;
    let done = [
        "correction finished: all online users were decided again",
        "generation=3",
    ];
    world.host.wait_for_log(from, &done).await?;
    let told = world.tape.hosts(FILTERED_ONLINE, 4).await?.remove(3);
    assert_eq!(told.visible_to(), ["ben", "cleo"]);
    let browser = json!({"userAgent": "Mozilla/5.0..."});
    assert_eq!(*told.field("metadata"), browser);
    assert_eq!(asked(&world, "cleo").await?, online(&browser));
    world.end().await
}

#[tokio::test]
async fn where_statuses_are_on_what_is_shown_no_more_is_taken_back_by_an_update() -> Result<()> {
    let statuses = |it| {
        let mut site = site(it)?
            .with("status.enabled", true)?
            .with("inbox.enabled", true)?
            .with("status.min_interval_ms", 0)?;
        site.set_stage("redact", "config", toml! { keys = ["device", "activity"] })?;
        Ok(site)
    };
    let mut world = World::start_with(statuses).await?;
    let mut connect = inputs::connect("ann", "c1", now_ms());
    connect["metadata"]["activity"] = "typing".into();
    world.client.input(CONNECT, connect).await?;
    let told = world.tape.hosts(FILTERED_ONLINE, 1).await?.remove(0);
    let typing = json!({"device": "web", "activity": "typing"});
    assert_eq!(*told.field("metadata"), typing);

    let keys = toml! { keys = ["device"] };
    world.site.set_stage("redact", "config", keys)?;
    let told = world.tape.hosts(FILTERED_UPDATED, 1).await?.remove(0);
    assert_eq!(told.visible_to(), ["ben", "cleo"]);
    assert_eq!(*told.field("metadata"), json!({"device": "web"}));
    let inbox = world.tape.hosts("presence.inbox.cleo", 2).await?.remove(1);
    assert_eq!(inbox.text("type"), "user_updated");
    assert_eq!(*inbox.field("metadata"), json!({"device": "web"}));
    assert_eq!(
        asked(&world, "ben").await?,
        online(&json!({"device": "web"}))
    );
    assert_eq!(on(world.tape.seen(), FILTERED_ONLINE).len(), 1);
    world.end().await
}

#[tokio::test]
async fn one_stages_wish_to_be_asked_again_makes_no_other_stages_time_reusable() -> Result<()> {
    let reader = component::load("fixtures/reader")?;
    let prepare = |mut site: Site| {
        for name in ["clock", "alarm"] {
            site.write_plugin(name, component::named(&reader, name)?)?;
        }
        let steps = |step: toml::Value| toml! { steps = ["contacts", step] };
        let later = i64::try_from(now_ms() + 3_600_000)?;
        let alarm = steps(toml! { reconsider_at = later }.into());
        let clock = steps("now".into());
        site.set_pipeline(&[
            ("clock", Some(clock)),
            ("alarm", Some(alarm)),
            ("redact", None),
        ])?;
        for name in ["clock", "alarm"] {
            site.set_stage(name, "grants", vec!["widen"])?;
        }
        directory(&site, &["ben"])?;
        Ok(site)
    };
    let mut world = World::start_with(prepare).await?;
    for time in 1..=3 {
        let body = inputs::online("ann", now_ms());
        world.client.input(inputs::ONLINE, body).await?;
        world.tape.hosts(inputs::EVENTS, time).await?;
    }
    let metric = |name| world.host.metric(name, &[]);
    assert_eq!(metric("presence_verdicts_reused_total").await?, 0.0);
    world.end().await
}

/// A rule on users' own metadata: only those are shown who have this text at `door`.
fn open_alone(site: &mut Site, text: &str) -> Result<()> {
    let steps = toml! { steps = [{ only_if = { key = "door", text = text } }] };
    let stages = [("contacts", None), ("door", Some(steps)), ("redact", None)];
    site.set_pipeline(&stages)?;
    site.set_stage("door", "grants", vec!["widen"])
}

#[tokio::test]
async fn when_a_user_was_seen_who_was_hidden_all_along_is_answered_to_nobody_ever() -> Result<()> {
    let reader = component::load("fixtures/reader")?;
    let mut world = World::start_with(|it| {
        let mut site = it.with("engine.workers", 1)?.with("state.flush_ms", 10)?;
        site.write_plugin("door", component::named(&reader, "door")?)?;
        open_alone(&mut site, "open")?;
        site.write_directory_value(&json!({"contacts": {"ann": ["ben"], "abe": ["ben"]}}))?;
        Ok(site)
    })
    .await?;
    let at = now_ms();
    for (user, door) in [("ann", "closed"), ("abe", "open")] {
        let mut connect = inputs::connect(user, "c1", at);
        connect["metadata"]["door"] = door.into();
        world.client.input(CONNECT, connect).await?;
        disconnect(&world, user, at).await?;
    }
    let gone = world.tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    assert_eq!(gone.text("userId"), "abe");
    let mut left = unknown("abe");
    left["lastSeen"] = at.into();
    assert_eq!(asked_of(&world, "ben", "abe").await?, left);
    assert_eq!(asked(&world, "ben").await?, unknown("ann"));

    // The same after the rule has been taken away and forgotten.
    let plain = [("contacts", None), ("redact", None)];
    world.site.set_pipeline(&plain)?;
    let taken = "presence_pipeline_generation";
    world.host.until_metric(taken, &[], |it| it == 2.0).await?;
    assert_eq!(asked_of(&world, "ben", "abe").await?, left);
    assert_eq!(asked(&world, "ben").await?, unknown("ann"));

    // The same after a kill, and after a stop. When later changes are stored, this one is.
    let records = "presence_state_records_total";
    let before = world.host.metric(records, &[]).await?;
    for number in 0..20 {
        let connect = inputs::connect(&format!("later-{number}"), "c1", now_ms());
        world.client.input(CONNECT, connect).await?;
    }
    let saved = |it: f64| it >= before + 20.0;
    world.host.until_metric(records, &[], saved).await?;
    for kill in [true, false] {
        match kill {
            true => world.host.process.kill().await?,
            false => world.host.process.stop().await?,
        }
        world.host = Host::start(&world.site).await?;
        assert_eq!(
            asked_of(&world, "ben", "abe").await?,
            left,
            "killed: {kill}"
        );
        assert_eq!(
            asked(&world, "ben").await?,
            unknown("ann"),
            "killed: {kill}"
        );
    }

    // The current rules apply as well, to the metadata that the user had while online.
    open_alone(&mut world.site, "ajar")?;
    world.host.until_metric(taken, &[], |it| it == 2.0).await?;
    assert_eq!(asked_of(&world, "ben", "abe").await?, unknown("abe"));
    open_alone(&mut world.site, "open")?;
    world.host.until_metric(taken, &[], |it| it == 3.0).await?;
    assert_eq!(asked_of(&world, "ben", "abe").await?, left);
    assert_eq!(asked(&world, "ben").await?, unknown("ann"));
    world.end().await
}

/// The ways in which a user is hidden. For each, there is a user who is hidden in this way, and one
/// who leaves instead.
const WAYS: [&str; 3] = ["block", "invisible", "contact"];

/// Ben is a contact of all of them, and cleo shares a group with each.
fn hiding(hides: bool) -> Value {
    let mut directory = json!({"contacts": {}, "groups": {}, "blocks": {}, "settings": {}});
    for user in WAYS
        .iter()
        .flat_map(|way| [format!("left-{way}"), format!("hide-{way}")])
    {
        directory["contacts"][&user] = json!(["ben"]);
        directory["groups"][format!("team-{user}")] = json!([user, "cleo"]);
    }
    if hides {
        directory["blocks"]["hide-block"] = json!(["ben", "cleo"]);
        directory["settings"]["hide-invisible"] = json!({"invisible": true});
        directory["contacts"]["hide-contact"] = json!([]);
        directory["groups"]["team-hide-contact"] = json!(["hide-contact"]);
    }
    directory
}

/// The text with all users and times replaced by the same words.
fn normalised(text: &str, user: &str) -> String {
    let mut plain = String::new();
    let mut digits = String::new();
    for char in text.replace(user, "somebody").chars().chain([' ']) {
        if char.is_ascii_digit() {
            digits.push(char);
            continue;
        }
        let is_time = digits.len() == 13;
        plain.push_str(if is_time { "<time>" } else { &digits });
        digits.clear();
        plain.push(char);
    }
    plain
}

/// All messages that a viewer gets about a user: the subject, the headers and the bytes of each,
/// without other viewers.
fn messages_about(seen: &[ReceivedMessage], viewer: &str, user: &str) -> Vec<String> {
    let own = format!("presence.inbox.{viewer}");
    let is_for = |seen: &&ReceivedMessage| {
        seen.text("userId") == user
            && (seen.subject == own
                || seen.subject.starts_with("presence.filtered.")
                    && seen.visible_to().contains(&viewer))
    };
    let line = |seen: &ReceivedMessage| {
        let headers: Vec<_> = seen.headers.keys().collect();
        let body = String::from_utf8_lossy(&seen.bytes).into_owned();
        let (head, rest) = body.split_once("\"visibleTo\":[").unwrap_or((&body, ""));
        let tail = rest.split_once(']').map_or("", |(_, tail)| tail);
        format!(
            "{} {headers:?} {}",
            seen.subject,
            normalised(&format!("{head}{tail}"), user)
        )
    };
    seen.iter().filter(is_for).map(line).collect()
}

#[tokio::test]
async fn being_hidden_from_a_viewer_gives_them_the_bytes_that_leaving_does() -> Result<()> {
    let mut world = World::start_with(|it| {
        let mut site = it.with("inbox.enabled", true)?;
        site.set_pipeline(&[
            ("contacts", None),
            ("groups", None),
            ("blocklist", None),
            ("privacy", None),
            ("redact", Some(tiers())),
        ])?;
        site.write_directory_value(&hiding(false))?;
        Ok(site)
    })
    .await?;
    for user in WAYS
        .iter()
        .flat_map(|way| [format!("left-{way}"), format!("hide-{way}")])
    {
        let connect = inputs::connect(&user, "c1", now_ms());
        world.client.input(CONNECT, connect).await?;
    }
    for way in WAYS {
        disconnect(&world, &format!("left-{way}"), now_ms()).await?;
    }
    world.site.write_directory_value(&hiding(true))?;
    // The messages to both tiers, and those on the viewers' own subjects, which come after them.
    let users = WAYS.len() * 2;
    world.tape.hosts(FILTERED_OFFLINE, users * 2).await?;
    for viewer in ["ben", "cleo"] {
        let inbox = format!("presence.inbox.{viewer}");
        world.tape.hosts(&inbox, users * 2).await?;
    }
    world.tape.catch_up(&world.client).await?;

    for way in WAYS {
        let (left, hidden) = (format!("left-{way}"), format!("hide-{way}"));
        for viewer in ["ben", "cleo"] {
            let of_left = messages_about(world.tape.seen(), viewer, &left);
            assert_eq!(
                of_left.len(),
                4,
                "an online and an offline, twice: {of_left:#?}"
            );
            let of_hidden = messages_about(world.tape.seen(), viewer, &hidden);
            assert_eq!(of_left, of_hidden, "{way} {viewer}");
            let knows = of_left[3].contains("lastSeen");
            assert_eq!(knows, viewer == "ben", "{of_left:#?}");
        }
        // A viewer who may not know when a user was last seen can't find out by asking, either. To
        // everyone, a hidden user looks like one who was never seen.
        assert_eq!(asked_of(&world, "cleo", &left).await?, unknown(&left));
        for viewer in ["ben", "cleo"] {
            assert_eq!(asked_of(&world, viewer, &hidden).await?, unknown(&hidden));
        }
    }
    world.end().await
}
