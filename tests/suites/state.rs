//! What a stateful enricher knows outlives a reload: the fixture `sessions`
//! counts how often a user came online today.

use anyhow::Result;
use presence_tests::client::now_ms;
use presence_tests::component;
use serde_json::{Value, json};
use toml::Table;

use crate::inputs::{self, CONNECT, DISCONNECT, OFFLINE, ONLINE};
use crate::world::World;

/// A day that doesn't end while the test runs, and the key for the count.
fn config(key: &str) -> Table {
    Table::from_iter([
        ("key".to_owned(), key.into()),
        ("day_ms".to_owned(), i64::MAX.into()),
    ])
}

/// Takes a user online and offline, and returns the metadata of the online.
async fn session(world: &mut World, user: &str) -> Result<Value> {
    // A connection that was closed within the same millisecond would be ignored.
    let conn = format!("c{}", world.tape.seen().len());
    let connect = inputs::connect(user, &conn, now_ms());
    world.client.input(CONNECT, connect).await?;
    let is_hosts = |subject: &'static str| {
        let user = user.to_owned();
        move |seen: &presence_tests::client::ReceivedMessage| {
            seen.is_from_host() && seen.subject == subject && seen.text("userId") == user
        }
    };
    let online = world.tape.next("the user's online", is_hosts(ONLINE));
    let metadata = online.await?.field("metadata").clone();
    let disconnect = inputs::disconnect(user, &conn, now_ms(), "client_disconnect");
    world.client.input(DISCONNECT, disconnect).await?;
    let offline = world.tape.next("the user's offline", is_hosts(OFFLINE));
    offline.await?;
    Ok(metadata)
}

#[tokio::test]
async fn counts_go_on_over_a_hot_swap_in_every_worker() -> Result<()> {
    let sessions = component::load("fixtures/sessions")?;
    let mut world = World::start_with(|mut site| {
        site.set("engine.workers", 2)?;
        site.set_pipeline(&[("sessions", Some(config("n"))), ("contacts", None)])?;
        site.write_plugin("sessions", sessions.clone())?;
        Ok(site)
    })
    .await?;
    let users = ["12345", "22222", "33333", "44444"];
    for user in users {
        for n in 1..=2 {
            assert_eq!(session(&mut world, user).await?["n"], json!(n), "{user}");
        }
    }

    // The configuration changes.
    let from = world.host.log_len();
    world
        .site
        .set_stage("sessions", "config", config("sessions"))?;
    world.host.wait_for_log(from, &["pipeline swapped"]).await?;
    for user in users {
        let metadata = session(&mut world, user).await?;
        assert_eq!(metadata["sessions"], json!(3), "{user}: {metadata}");
    }

    // Another plugin of the pipeline changes, and then the file of this plugin.
    for (n, plugin, component) in [
        (4, "contacts", component::load("groups")?),
        (5, "sessions", padded(&sessions)),
    ] {
        let from = world.host.log_len();
        let component = component::named(&component, plugin)?;
        world.site.write_plugin(plugin, component)?;
        world.host.wait_for_log(from, &["pipeline swapped"]).await?;
        for user in users {
            let metadata = session(&mut world, user).await?;
            assert_eq!(metadata["sessions"], json!(n), "{user}: {metadata}");
        }
    }
    world.end().await
}

#[tokio::test]
async fn a_refused_state_is_logged_and_the_swap_takes_place() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[("sessions", Some(config("n"))), ("contacts", None)])?;
        site.write_plugin("sessions", component::load("fixtures/sessions")?)?;
        Ok(site)
    })
    .await?;
    assert_eq!(session(&mut world, "12345").await?["n"], json!(1));
    let from = world.host.log_len();
    let mut config = config("sessions");
    config.insert("refuse".into(), "not mine".into());
    world.site.set_stage("sessions", "config", config)?;
    let words = ["can't take over the state", "refuses the state: not mine"];
    world.host.wait_for_log(from, &words).await?;
    assert_eq!(session(&mut world, "12345").await?["sessions"], json!(1));
    world.end().await
}

/// The same component with other bytes: it has one more custom section.
fn padded(component: &[u8]) -> Vec<u8> {
    let mut bytes = component.to_vec();
    bytes.extend([0, 4, 3, b'p', b'a', b'd']);
    bytes
}
