//! Rules that people know from messengers: tiers of viewers, and users' own settings, which take
//! effect when the directory changes.

use anyhow::Result;
use presence_tests::client::ReceivedMessage;
use serde_json::{Value, json};
use toml::toml;

use crate::inputs::{self, CONNECT, DISCONNECT, FILTERED_OFFLINE, FILTERED_ONLINE, SEED_MS};
use crate::world::World;

const ANN: &str = "ann";
const BEN: &str = "ben";
const CLEO: &str = "cleo";
const DAN: &str = "dan";

#[tokio::test]
async fn each_tier_gets_its_own_and_contacts_alone_when_the_user_was_last_seen() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        let tiers = toml! {
            tiers = [
                { for = "contacts", keys = ["device", "location"], last_seen = true },
                { for = "groups", keys = ["device"] },
            ]
        };
        site.set_pipeline(&[
            ("contacts", None),
            ("groups", None),
            ("redact", Some(tiers)),
        ])?;
        site.write_directory_value(&json!({
            "contacts": {ANN: [BEN]},
            "groups": {"team-a": [ANN, BEN, CLEO], "team-b": [ANN, DAN]},
        }))?;
        Ok(site)
    })
    .await?;
    let mut body = inputs::connect(ANN, "c1", SEED_MS);
    body["metadata"] = json!({"device": "web", "location": "dashboard", "ip": "192.168.1.1"});
    world.client.input(CONNECT, body).await?;
    go(&world, ANN, SEED_MS).await?;
    let seen = world.all_about(ANN).await?;

    let online = viewers_and_field(&seen, FILTERED_ONLINE, "metadata");
    let both = json!({"device": "web", "location": "dashboard"});
    let expected = [
        (vec![BEN], both),
        (vec![CLEO, DAN], json!({"device": "web"})),
    ];
    assert_eq!(online, expected);
    let offline = viewers_and_field(&seen, FILTERED_OFFLINE, "lastSeen");
    let expected = [(vec![BEN], json!(SEED_MS)), (vec![CLEO, DAN], Value::Null)];
    assert_eq!(offline, expected);
    world.end().await
}

#[tokio::test]
async fn an_invisible_user_goes_out_of_sight_and_comes_back_into_it() -> Result<()> {
    let mut world = world(&["contacts", "privacy", "redact"]).await?;
    come(&world, ANN, SEED_MS).await?;
    let seen = world.tape.hosts(FILTERED_ONLINE, 1).await?;
    assert_eq!(seen[0].visible_to(), [BEN, CLEO]);

    write_settings(&world, &json!({ANN: {"invisible": true}}))?;
    let gone = world.tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    assert_eq!(gone.visible_to(), [BEN, CLEO]);
    // As if they had left just now, by the clock that said that they came: this is years in the
    // past.
    let last_seen = gone.field("lastSeen").as_u64().unwrap_or_default();
    let ran_ms = last_seen.checked_sub(SEED_MS);
    assert!(ran_ms.is_some_and(|ms| ms < 600_000), "{last_seen}");

    write_settings(
        &world,
        &json!({ANN: {"invisible": false, "online": {"contactsExcept": [CLEO]}}}),
    )?;
    let back = world.tape.hosts(FILTERED_ONLINE, 2).await?.remove(1);
    assert_eq!(back.visible_to(), [BEN]);

    go(&world, ANN, SEED_MS).await?;
    let seen = world.all_about(ANN).await?;
    let offline = viewers_and_field(&seen, FILTERED_OFFLINE, "type");
    assert_eq!(offline[1..], [(vec![BEN], json!("user_offline"))]);
    world.end().await
}

#[tokio::test]
async fn who_hides_when_they_were_last_seen_is_not_told_it_of_others() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        let redact = toml! {
            keys = ["device"]
            user_settings = true
            reciprocal = true
        };
        site.set_pipeline(&[("contacts", None), ("redact", Some(redact))])?;
        site.write_directory_value(&directory(&json!({CLEO: {"lastSeen": "nobody"}})))?;
        Ok(site)
    })
    .await?;
    come(&world, ANN, SEED_MS).await?;
    go(&world, ANN, SEED_MS).await?;
    let seen = world.tape.hosts(FILTERED_OFFLINE, 2).await?;
    let expected = [(vec![BEN], json!(SEED_MS)), (vec![CLEO], Value::Null)];
    assert_eq!(
        viewers_and_field(&seen, FILTERED_OFFLINE, "lastSeen"),
        expected
    );

    // Cleo stops hiding it. The viewers of Dan show when this is in force.
    let settings = json!({CLEO: {"lastSeen": "everyone"}});
    let mut directory = directory(&settings);
    directory["contacts"][DAN] = json!([BEN]);
    world.site.write_directory_value(&directory)?;
    world.until_visible_to(DAN, &[BEN]).await?;
    come(&world, ANN, SEED_MS + 1).await?;
    go(&world, ANN, SEED_MS + 1).await?;
    let seen = world.all_about(ANN).await?;
    let offline = viewers_and_field(&seen, FILTERED_OFFLINE, "lastSeen");
    assert_eq!(offline[2..], [(vec![BEN, CLEO], json!(SEED_MS + 1))]);
    world.end().await
}

#[tokio::test]
async fn who_is_not_to_be_disturbed_is_told_nothing_until_that_ends() -> Result<()> {
    let mut world = world(&["contacts", "do-not-disturb", "redact"]).await?;
    come(&world, ANN, SEED_MS).await?;
    world.tape.hosts(FILTERED_ONLINE, 1).await?;

    // Ben loses sight of everyone whom he saw.
    write_settings(&world, &json!({BEN: {"doNotDisturb": true}}))?;
    let gone = world.tape.hosts(FILTERED_OFFLINE, 1).await?.remove(0);
    assert_eq!((gone.text("userId"), gone.visible_to()), (ANN, vec![BEN]));
    let from = world.tape.seen().len();
    go(&world, ANN, SEED_MS).await?;
    come(&world, DAN, SEED_MS).await?;
    let about_dan =
        |seen: &ReceivedMessage| seen.subject == FILTERED_ONLINE && seen.text("userId") == DAN;
    world.tape.next("Dan's online", about_dan).await?;
    let disturbed = |seen: &&ReceivedMessage| seen.visible_to().contains(&BEN);
    assert_eq!(world.tape.seen()[from..].iter().find(disturbed), None);

    // He is told of those who are online now, and not of those who came and went meanwhile.
    write_settings(&world, &json!({BEN: {"doNotDisturb": false}}))?;
    let back = world
        .tape
        .next("Ben to be told", |seen| seen.visible_to() == [BEN]);
    let back = back.await?;
    assert_eq!(
        (&*back.subject, back.text("userId")),
        (FILTERED_ONLINE, DAN)
    );
    go(&world, DAN, SEED_MS).await?;
    world.all_about(ANN).await?;
    let seen = world.all_about(DAN).await?;
    let offline = viewers_and_field(&seen, FILTERED_OFFLINE, "userId");
    assert_eq!(offline, [(vec![BEN, CLEO], json!(DAN))]);
    assert_eq!(
        world.tape.seen()[from..].iter().filter(disturbed).count(),
        2
    );
    world.end().await
}

/// A world with this pipeline, in which no user has settings yet.
async fn world(pipeline: &[&str]) -> Result<World> {
    World::start_with(|mut site| {
        let stages: Vec<_> = pipeline.iter().map(|plugin| (*plugin, None)).collect();
        site.set_pipeline(&stages)?;
        site.write_directory_value(&directory(&json!({})))?;
        Ok(site)
    })
    .await
}

/// Ann and Dan have the same contacts. `settings`: the users' settings.
fn directory(settings: &Value) -> Value {
    json!({"contacts": {ANN: [BEN, CLEO], DAN: [BEN, CLEO]}, "settings": settings})
}

fn write_settings(world: &World, settings: &Value) -> Result<()> {
    world.site.write_directory_value(&directory(settings))
}

async fn come(world: &World, user: &str, at: u64) -> Result<()> {
    let connect = inputs::connect(user, "c1", at);
    world.client.input(CONNECT, connect).await
}

async fn go(world: &World, user: &str, at: u64) -> Result<()> {
    let bye = inputs::disconnect(user, "c1", at, "client_disconnect");
    world.client.input(DISCONNECT, bye).await
}

/// The viewers of each message on a subject, and a field of the message.
fn viewers_and_field<'a>(
    seen: &'a [ReceivedMessage],
    subject: &str,
    field: &str,
) -> Vec<(Vec<&'a str>, Value)> {
    let on = seen.iter().filter(|seen| seen.subject == subject);
    on.map(|seen| (seen.visible_to(), seen.field(field).clone()))
        .collect()
}
