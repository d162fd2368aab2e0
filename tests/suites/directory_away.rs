//! A directory that disappears is not an empty one: what was known stays in force, over
//! a restart too, readiness says so, and it heals by itself.

use std::convert::Infallible;
use std::fs;
use std::time::Duration;

use anyhow::{Result, ensure};
use async_nats::jetstream::kv::{Config, Store};
use async_nats::jetstream::stream::StorageType;
use async_nats::jetstream::{self, Context};
use presence_tests::client::{Client, now_ms};
use presence_tests::host::Host;
use presence_tests::http;
use presence_tests::nats::NatsServer;
use presence_tests::proxy::Proxy;
use presence_tests::site::{DIRECTORY, Site};
use presence_tests::wait;
use serde_json::{Value, json};

use crate::inputs::{self, CONNECT, DISCONNECT, EVENTS, FILTERED_ONLINE};
use crate::service::Service;
use crate::world::World;

/// Who sees user 12345 in the contract's directory, in which 11111 is blocked.
const SEEN: [&str; 2] = ["22222", "67890"];

const UNAVAILABLE: &str = "presence_directory_unavailable";

const BUCKET: &str = "presence-directory";

/// Waits until the host says that it can't read its directory.
async fn until_away(world: &mut World, words: &[&str]) -> Result<()> {
    let host = &world.host;
    host.until_metric(UNAVAILABLE, &[], |it| it == 1.0).await?;
    let what = "readiness to say what is wrong with the directory";
    wait::until(what, async || {
        let ready = http::get(world.site.http_port(), "/readyz").await?;
        let says = ["directory has been unavailable for"].iter().chain(words);
        let says = says.clone().all(|word| ready.body.contains(word));
        Ok((ready.status == 503 && says).then_some(()))
    })
    .await
}

async fn until_back(world: &mut World) -> Result<()> {
    let host = &mut world.host;
    host.until_metric(UNAVAILABLE, &[], |it| it == 0.0).await?;
    host.ready().await
}

/// Waits until the copy of the directory is on the disk.
async fn until_kept(world: &World) -> Result<()> {
    let name = "presence_directory_unsaved_entries";
    world.host.until_metric(name, &[], |it| it == 0.0).await
}

/// Stops the host and starts it again, without waiting until it is ready.
async fn restart_host(world: &mut World) -> Result<()> {
    until_kept(world).await?;
    world.host.process.stop().await?;
    world.host = Host::spawn(&world.site)?;
    let words = ["ready", "workers"];
    world.host.wait_for_log(0, &words).await.map(drop)
}

async fn sees(world: &mut World, viewers: &[&str]) -> Result<()> {
    let seen = world.probe("12345").await?;
    ensure!(seen.visible_to() == viewers, "{:?}", seen.visible_to());
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_gone_emptied_blank_or_cut_off_leaves_what_was_known_in_force() -> Result<()>
{
    let mut world = World::start().await?;
    let path = world.site.directory_path();
    sees(&mut world, &SEEN).await?;
    let half = DIRECTORY.get(..DIRECTORY.len() / 2).unwrap_or_default();
    let end = DIRECTORY.find(r#""22222""#).unwrap_or_default();
    let within_an_entry = DIRECTORY.get(..end + 3).unwrap_or_default();
    for (text, word) in [
        (None, "does not exist"),
        (Some(""), "is empty"),
        (Some("{}"), "names no user"),
        (Some(r#"{"contacts": {}, "blocks": {}}"#), "names no user"),
        (Some(half), "can't be used"),
        (Some(within_an_entry), "can't be used"),
    ] {
        match text {
            None => fs::remove_file(&path)?,
            Some(text) => fs::write(&path, text)?,
        }
        until_away(&mut world, &["directory.json", word]).await?;
        sees(&mut world, &SEEN).await?;

        restart_host(&mut world).await?;
        until_away(&mut world, &["directory.json", word]).await?;
        sees(&mut world, &SEEN).await?;

        fs::write(&path, DIRECTORY)?;
        until_back(&mut world).await?;
        sees(&mut world, &SEEN).await?;
    }
    world.end().await
}

#[tokio::test]
async fn a_directory_is_emptied_by_naming_all_of_its_sections() -> Result<()> {
    let mut world = World::start().await?;
    sees(&mut world, &SEEN).await?;
    let empty = json!({"contacts": {}, "groups": {}, "blocks": {}, "settings": {}});
    world.site.write_directory_value(&empty)?;
    world.until_visible_to("12345", &[]).await?;
    world.host.ready().await?;
    restart_host(&mut world).await?;
    world.host.ready().await?;
    sees(&mut world, &[]).await?;
    world.end().await
}

#[tokio::test]
async fn a_byte_order_mark_is_no_part_of_the_file() -> Result<()> {
    let mut world = World::start().await?;
    let text = r#"{"contacts": {"12345": ["33333"]}}"#;
    world.site.write_directory(&format!("\u{feff}{text}"))?;
    world.until_visible_to("12345", &["33333"]).await?;
    world.host.ready().await?;
    world.end().await
}

#[tokio::test]
async fn a_file_that_is_named_and_was_never_there_keeps_decisions_pending_until_it_is() -> Result<()>
{
    let mut world = World::start().await?;
    let path = world.site.path().join("people.json");
    world.host.process.stop().await?;
    world.site.set("directory.path", "people.json")?;
    world.host = Host::spawn(&world.site)?;
    world.host.wait_for_log(0, &["ready", "workers"]).await?;
    until_away(&mut world, &["people.json", "does not exist"]).await?;
    // The tracker goes on, and nobody is told.
    let body = inputs::connect("12345", "c1", now_ms());
    world.client.input(CONNECT, body).await?;
    world.tape.hosts(EVENTS, 1).await?;
    let query = json!({"viewerId": "67890", "userIds": ["12345"]});
    let answer = world.client.request("presence.query", query.to_string());
    ensure!(!answer.await?.to_string().contains("online"));
    ensure!(world.tape.hosts(FILTERED_ONLINE, 0).await?.is_empty());

    fs::write(&path, DIRECTORY)?;
    let online = world.tape.hosts(FILTERED_ONLINE, 1).await?;
    ensure!(online[0].visible_to() == SEEN);
    until_back(&mut world).await?;
    world.end().await
}

#[tokio::test]
async fn the_default_file_may_be_missing_and_then_there_is_no_directory() -> Result<()> {
    let mut world = World::start_with(|site| {
        fs::remove_file(site.directory_path())?;
        Ok(site)
    })
    .await?;
    let words = ["does not exist", "nobody has contacts"];
    world.host.wait_for_log(0, &words).await?;
    sees(&mut world, &[]).await?;
    // A directory that appears is read. From then on, its absence is noticed.
    world.site.write_directory(DIRECTORY)?;
    world.until_visible_to("12345", &SEEN).await?;
    fs::remove_file(world.site.directory_path())?;
    until_away(&mut world, &["does not exist"]).await?;
    sees(&mut world, &SEEN).await?;
    world.end().await
}

/// A world with a bucket that holds the contract's directory.
async fn bucket_world(storage: StorageType) -> Result<World> {
    let mut world = World::start_with(|site| {
        site.with("directory.source", "kv")?
            .with("tracker.timeout_ms", 600_000)
    })
    .await?;
    let jetstream = jetstream(&world);
    // The host knows no entries yet, so the test may replace the bucket that the host has made.
    jetstream.delete_key_value(BUCKET).await?;
    let bucket = make(&jetstream, storage).await?;
    fill(&bucket).await?;
    world.until_visible_to("12345", &SEEN).await?;
    until_back(&mut world).await?;
    Ok(world)
}

fn jetstream(world: &World) -> Context {
    jetstream::new(world.client.nats.clone())
}

/// Makes the bucket. The host may be faster, as long as nothing was known.
async fn make(jetstream: &Context, storage: StorageType) -> Result<Store> {
    wait::until("the bucket to be made", async || {
        let config = Config {
            bucket: BUCKET.into(),
            storage,
            ..Config::default()
        };
        match jetstream.create_key_value(config).await {
            Ok(bucket) => Ok(Some(bucket)),
            Err(_) => {
                jetstream.delete_key_value(BUCKET).await?;
                Ok(None)
            }
        }
    })
    .await
}

async fn put(bucket: &Store, key: &str, value: Value) -> Result<()> {
    bucket.put(key, value.to_string().into()).await?;
    Ok(())
}

async fn fill(bucket: &Store) -> Result<()> {
    put(bucket, "contacts.12345", json!(["67890", "11111"])).await?;
    put(bucket, "groups.team-a", json!(["12345", "22222"])).await?;
    put(bucket, "blocks.12345", json!(["11111"])).await
}

/// Fills a bucket without a pause, until it is aborted.
async fn keep_filling(bucket: Store) -> Result<Infallible> {
    loop {
        put(&bucket, "contacts.other", json!([])).await?;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_bucket_that_was_deleted_leaves_what_was_known_in_force_until_it_is_filled_again()
-> Result<()> {
    let mut world = bucket_world(StorageType::File).await?;
    let jetstream = jetstream(&world);
    jetstream.delete_key_value(BUCKET).await?;
    until_away(&mut world, &["is gone"]).await?;
    sees(&mut world, &SEEN).await?;
    restart_host(&mut world).await?;
    until_away(&mut world, &["is gone"]).await?;
    sees(&mut world, &SEEN).await?;

    // An empty bucket is no directory, either.
    let bucket = make(&jetstream, StorageType::File).await?;
    until_away(&mut world, &["is empty"]).await?;
    sees(&mut world, &SEEN).await?;
    // Entries of the new bucket hold at once. Earlier entries that it lacks hold until no more
    // entries come.
    put(
        &bucket,
        "contacts.12345",
        json!(["67890", "11111", "33333"]),
    )
    .await?;
    let filling = tokio::spawn(keep_filling(bucket.clone()));
    let more = ["22222", "33333", "67890"];
    world.until_visible_to("12345", &more).await?;
    filling.abort();
    put(&bucket, "blocks.12345", json!(["67890"])).await?;
    until_back(&mut world).await?;
    world.until_visible_to("12345", &["11111", "33333"]).await?;
    world.end().await
}

#[tokio::test]
async fn a_bucket_that_others_made_while_the_host_was_cut_off_is_read_whole() -> Result<()> {
    let server = NatsServer::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let site = Site::new(&proxy.url())?.with("directory.source", "kv")?;
    let client = Client::connect(&server.url()).await?;
    let tape = client.record("presence.>").await?;
    let host = Host::start(&site).await?;
    let mut world = World {
        host,
        client,
        tape,
        site,
        server,
    };
    let jetstream = jetstream(&world);
    let bucket = jetstream.get_key_value(BUCKET).await?;
    fill(&bucket).await?;
    world.until_visible_to("12345", &SEEN).await?;

    proxy.cut();
    world.host.unready().await?;
    jetstream.delete_key_value(BUCKET).await?;
    let bucket = make(&jetstream, StorageType::File).await?;
    // A watch that went on behind the last entry of the other bucket would miss this.
    put(&bucket, "blocks.12345", json!(["11111", "67890"])).await?;
    put(&bucket, "contacts.12345", json!(["67890", "11111"])).await?;
    put(&bucket, "groups.team-a", json!(["12345", "22222"])).await?;
    for number in 0..10 {
        put(&bucket, "contacts.other", json!([number.to_string()])).await?;
    }
    proxy.resume();
    world.host.ready().await?;
    world.until_visible_to("12345", &["22222"]).await?;
    put(&bucket, "blocks.12345", json!([])).await?;
    let all = ["11111", "22222", "67890"];
    world.until_visible_to("12345", &all).await?;
    world.end().await
}

#[tokio::test]
async fn a_purged_bucket_is_not_an_empty_directory_and_one_of_deleted_keys_is() -> Result<()> {
    let mut world = bucket_world(StorageType::File).await?;
    let jetstream = jetstream(&world);
    let stream = jetstream.get_stream(format!("KV_{BUCKET}")).await?;
    stream.purge().await?;
    until_away(&mut world, &["is empty"]).await?;
    sees(&mut world, &SEEN).await?;
    restart_host(&mut world).await?;
    until_away(&mut world, &["is empty"]).await?;
    sees(&mut world, &SEEN).await?;

    let bucket = jetstream.get_key_value(BUCKET).await?;
    fill(&bucket).await?;
    until_back(&mut world).await?;
    sees(&mut world, &SEEN).await?;
    // A block that is lost, and not deleted, holds while the rest may be on its way.
    let from = world.host.log_len();
    stream
        .purge()
        .filter("$KV.presence-directory.blocks.>")
        .await?;
    world.host.wait_for_log(from, &["lost keys"]).await?;

    until_back(&mut world).await?;
    for key in ["contacts.12345", "groups.team-a"] {
        bucket.delete(key).await?;
    }
    world.until_visible_to("12345", &[]).await?;
    until_back(&mut world).await?;
    world.end().await
}

#[tokio::test]
async fn a_bucket_in_memory_that_was_lost_with_the_broker_leaves_what_was_known_in_force()
-> Result<()> {
    let mut world = bucket_world(StorageType::Memory).await?;
    world.server.restart().await?;
    world.client = Client::connect(&world.server.url()).await?;
    world.tape = world.client.record("presence.>").await?;
    until_away(&mut world, &["is gone"]).await?;
    sees(&mut world, &SEEN).await?;
    let bucket = make(&jetstream(&world), StorageType::Memory).await?;
    fill(&bucket).await?;
    until_back(&mut world).await?;
    put(&bucket, "blocks.12345", json!(["67890"])).await?;
    world.until_visible_to("12345", &["11111", "22222"]).await?;
    world.end().await
}

#[tokio::test]
async fn a_service_that_answers_nobody_turns_readiness_until_it_does() -> Result<()> {
    let mut world = World::start_with(|site| site.with("directory.source", "request")).await?;
    let user = "12345";
    let hello = inputs::connect(user, "c1", now_ms());
    world.client.input(CONNECT, hello).await?;
    world.host.unready().await?;
    let ready = http::get(world.site.http_port(), "/readyz").await?;
    assert!(
        ready
            .body
            .contains("the directory's service has not answered"),
        "{}",
        ready.body
    );
    // It heals though nobody needs an answer any more.
    let bye = inputs::disconnect(user, "c1", now_ms(), "client_disconnect");
    world.client.input(DISCONNECT, bye).await?;
    let directory = serde_json::from_str(DIRECTORY)?;
    let _service = Service::start(&world.server.url(), directory).await?;
    world.host.ready().await?;
    world.end().await
}
