//! Subscriptions that are read more slowly than messages come. Messages that the broker's client
//! drops are counted for the subscription, and their content is fetched again. With room for only a
//! few messages, a burst is enough.

use anyhow::Result;
use presence_tests::client::{Client, ReceivedMessage, now_ms};
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::site::{DIRECTORY, Site};
use presence_tests::wait;
use serde_json::json;

use crate::inputs::{self, CONNECT, FILTERED_OFFLINE, FILTERED_ONLINE};
use crate::service::{SUBJECT, Service};
use crate::tenants::{tenant, until_states};
use crate::world::World;

const DROPS: &str = "presence_slow_consumer_drops_total";

/// How many messages a burst has: many times what a subscription holds.
const BURST: usize = 5_000;

/// A host with little room in its subscriptions.
async fn start(source: &str) -> Result<World> {
    World::start_with(|site: Site| {
        site.with("directory.source", source)?
            .with("nats.intake_queue", 8)
    })
    .await
}

/// Waits until messages of a subscription have been dropped.
async fn until_dropped(world: &World, of: &str) -> Result<()> {
    let label = format!("subscription=\"{of}\"");
    world
        .host
        .until_metric(DROPS, &[&label], |it| it > 0.0)
        .await
}

async fn dropped(world: &World, of: &str) -> Result<f64> {
    world
        .host
        .metric(DROPS, &[&format!("subscription=\"{of}\"")])
        .await
}

#[tokio::test]
async fn an_invalidation_that_was_dropped_in_a_burst_is_made_up_for() -> Result<()> {
    let mut world = start("request").await?;
    let service = Service::start(&world.server.url(), serde_json::from_str(DIRECTORY)?).await?;
    let body = inputs::connect("12345", "c1", now_ms());
    world.client.input(CONNECT, body).await?;
    world.tape.hosts(FILTERED_ONLINE, 1).await?;

    service.set_directory(json!({"contacts": {"12345": ["33333"]}}));
    let subject = format!("{SUBJECT}.invalidate");
    for number in 0..BURST {
        let user = match number {
            // This one is in the middle of the burst.
            2_500 => "12345".to_owned(),
            number => format!("user-{number}"),
        };
        for question in ["contacts", "co-members", "blocked-by"] {
            let body = json!({"question": question, "id": user}).to_string();
            world
                .client
                .nats
                .publish(subject.clone(), body.into())
                .await?;
        }
    }
    // The answers may come together or one by one.
    let corrected = |seen: &[ReceivedMessage]| {
        let told = |subject: &str, viewer: &str| {
            let mut on = seen.iter().filter(|seen| seen.subject == subject);
            on.any(|seen| seen.visible_to().contains(&viewer))
        };
        let lost = ["22222", "67890"];
        lost.iter().all(|viewer| told(FILTERED_OFFLINE, viewer)) && told(FILTERED_ONLINE, "33333")
    };
    world.tape.until("the correction", corrected).await?;

    until_dropped(&world, "invalidations").await?;
    assert_eq!(dropped(&world, "inputs").await?, 0.0, "they aren't blamed");
    let words = ["invalidations arrive faster", "asked again"];
    world.host.wait_for_log(0, &words).await?;
    world.end().await
}

#[tokio::test]
async fn a_buckets_entry_that_was_dropped_in_a_burst_is_read_again() -> Result<()> {
    let mut world = start("kv").await?;
    let jetstream = async_nats::jetstream::new(world.client.nats.clone());
    let bucket = jetstream.get_key_value("presence-directory").await?;
    bucket.put("contacts.12345", r#"["67890"]"#.into()).await?;
    world.until_visible_to("12345", &["67890"]).await?;
    // The bucket has the same keys before and after, so no count shows what is missing.
    for round in 0..2 {
        for number in 0..BURST {
            let (user, contact) = match number {
                2_500 if round == 1 => ("12345".to_owned(), "33333"),
                number => (format!("user-{}", number % 100), "67890"),
            };
            let key = format!("$KV.presence-directory.contacts.{user}");
            let value = json!([contact, round.to_string()]).to_string();
            world.client.nats.publish(key, value.into()).await?;
        }
    }
    until_dropped(&world, "other").await?;
    world.until_visible_to("12345", &["1", "33333"]).await?;
    world.end().await
}

#[tokio::test]
async fn questions_that_were_dropped_are_counted_as_such() -> Result<()> {
    let mut world = start("file").await?;
    let question = json!({"viewerId": "67890", "userIds": ["12345"]}).to_string();
    wait::until("a question to be dropped", async || {
        for _ in 0..BURST {
            let inbox = world.client.nats.new_inbox();
            let body = question.clone().into();
            // `presence.query` is one of the subjects that inputs are read from.
            world
                .client
                .nats
                .publish_with_reply("presence.query.67890", inbox, body)
                .await?;
        }
        Ok((dropped(&world, "questions").await? > 0.0).then_some(()))
    })
    .await?;
    world
        .host
        .wait_for_log(0, &["questions arrive faster"])
        .await?;
    world.end().await
}

#[tokio::test]
async fn what_is_dropped_is_told_of_the_tenant_whose_messages_they_are() -> Result<()> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?
        .with("nats.intake_queue", 8)?
        .with("tenant", vec![tenant("quiet"), tenant("loud")])?;
    let mut host = Host::start(&site).await?;
    until_states(&site, &[("loud", "serving"), ("quiet", "serving")]).await?;
    let client = Client::connect(&server.url()).await?;
    let of = |tenant: &str| format!("tenant=\"{tenant}\"");
    let inputs = "subscription=\"inputs\"";
    wait::until("an input to be dropped", async || {
        for number in 0..BURST {
            let subject = format!("loud.{CONNECT}");
            let body = inputs::connect("12345", &format!("c{number}"), now_ms());
            client
                .nats
                .publish(subject, body.to_string().into())
                .await?;
        }
        let dropped = host.metric(DROPS, &[&of("loud"), inputs]).await?;
        Ok((dropped > 0.0).then_some(()))
    })
    .await?;
    assert_eq!(host.metric(DROPS, &[&of("quiet"), inputs]).await?, 0.0);
    host.wait_for_log(0, &["some are dropped", "of `loud`"])
        .await?;
    host.stop().await
}
