//! `blocklist` with `mutual = true`: a block hides the two from each other, also
//! while both are online, whatever the directory's source.

use anyhow::Result;
use presence_tests::client::now_ms;
use presence_tests::site::Site;
use serde_json::{Value, json};
use toml::toml;

use crate::inputs::{self, CONNECT, FILTERED_OFFLINE, FILTERED_ONLINE};
use crate::service::Service;
use crate::world::World;

/// Ann and ben are each other's contacts, and so are ann and cleo.
fn directory(blocks: Value) -> Value {
    json!({
        "contacts": {"ann": ["ben", "cleo"], "ben": ["ann"], "cleo": ["ann"]},
        "groups": {},
        "blocks": blocks,
    })
}

fn mutual(mut site: Site) -> Result<Site> {
    site.set_pipeline(&[
        ("contacts", None),
        ("blocklist", Some(toml! { mutual = true })),
        ("redact", None),
    ])?;
    site.write_directory_value(&directory(json!({})))?;
    Ok(site)
}

async fn come(world: &mut World) -> Result<()> {
    for user in ["ann", "ben", "cleo"] {
        let connect = inputs::connect(user, "c1", now_ms());
        world.client.input(CONNECT, connect).await?;
    }
    world.tape.hosts(FILTERED_ONLINE, 3).await?;
    Ok(())
}

/// Who is told of whom on a subject, from message number `from` on, sorted by user.
async fn notified_pairs(
    world: &mut World,
    subject: &str,
    from: usize,
    count: usize,
) -> Result<Vec<String>> {
    let seen = world
        .tape
        .hosts(subject, from + count)
        .await?
        .split_off(from);
    let told = seen.iter();
    let mut told: Vec<_> = told
        .map(|seen| format!("{:?} of {}", seen.visible_to(), seen.text("userId")))
        .collect();
    told.sort();
    Ok(told)
}

/// What the block of ann by ben changes: each of the two loses the other, and gets
/// them back when it is lifted. Cleo notices nothing.
async fn hides_both(world: &mut World) -> Result<()> {
    let both = [r#"["ann"] of ben"#, r#"["ben"] of ann"#];
    assert_eq!(notified_pairs(world, FILTERED_OFFLINE, 0, 2).await?, both);
    for (viewer, user) in [("ann", "ben"), ("ben", "ann")] {
        let question = json!({"viewerId": viewer, "userIds": [user, "nobody"]}).to_string();
        let answer = world.client.request("presence.query", question).await?;
        assert_eq!(answer["users"][0]["status"], answer["users"][1]["status"]);
    }
    Ok(())
}

async fn shows_both_again(world: &mut World) -> Result<()> {
    let both = [r#"["ann"] of ben"#, r#"["ben"] of ann"#];
    assert_eq!(notified_pairs(world, FILTERED_ONLINE, 3, 2).await?, both);
    assert_eq!(world.tape.hosts(FILTERED_OFFLINE, 2).await?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_mutual_block_hides_the_two_from_each_other() -> Result<()> {
    let mut world = World::start_with(mutual).await?;
    come(&mut world).await?;
    let blocked = directory(json!({"ben": ["ann"]}));
    world.site.write_directory_value(&blocked)?;
    hides_both(&mut world).await?;
    world.site.write_directory_value(&directory(json!({})))?;
    shows_both_again(&mut world).await?;
    world.end().await
}

#[tokio::test]
async fn a_service_is_asked_who_has_blocked_a_user() -> Result<()> {
    let site = |site: Site| mutual(site.with("directory.source", "request")?);
    let mut world = World::start_with(site).await?;
    let service = Service::start(&world.server.url(), directory(json!({}))).await?;
    come(&mut world).await?;
    service.set_directory(directory(json!({"ben": ["ann"]})));
    service.invalidate("").await?;
    hides_both(&mut world).await?;
    let asked = service.asked();
    assert!(asked.iter().any(|it| it.subject == ".blockers.ann"));

    service.set_directory(directory(json!({})));
    for (question, id) in [("blocked-by", "ben"), ("blockers", "ann")] {
        let changed = json!({"question": question, "id": id}).to_string();
        service.invalidate(&changed).await?;
    }
    shows_both_again(&mut world).await?;
    world.end().await
}
