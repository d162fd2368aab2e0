//! Texts by others in the store's tenants, however long: messages about them have a bound, and
//! don't keep a command from its answer.

use anyhow::Result;
use async_nats::jetstream::{self, kv::Store};
use presence_tests::client::now_ms;
use presence_tests::host::{self, Host};
use presence_tests::http;
use presence_tests::nats::{NatsServer, Options};
use serde_json::json;

use crate::tenants_store::{apply, done, failed, section, site, until_states};

async fn bucket(server: &NatsServer) -> Result<Store> {
    let nats = async_nats::connect(server.url()).await?;
    let bucket = jetstream::new(nats);
    Ok(bucket.get_key_value("presence-tenants").await?)
}

#[tokio::test]
async fn what_is_wrong_with_tenants_is_said_in_short_however_long_it_is() -> Result<()> {
    let server = NatsServer::start().await?;
    let site = site(&server)?;
    let host = Host::start(&site).await?;
    done(apply(&site, &section("beta", ""))?)?;
    let bucket = bucket(&server).await?;
    for name in ["junk1", "junk2", "junk3"] {
        let key = "k".repeat(480_000);
        let value = json!({"section": "", key: 1});
        bucket.put(name, value.to_string().into()).await?;
    }
    let keys: String = (0..20_000).map(|it| format!("key{it} = 1\n")).collect();
    let many = json!({"section": format!("[[tenant]]\nname = 'many'\n{keys}")});
    bucket.put("many", many.to_string().into()).await?;
    let nats = async_nats::connect(server.url()).await?;
    let long = format!("$KV.presence-tenants.{}", "n".repeat(3_000));
    let context = jetstream::new(nats);
    let place = context.publish(long, "{}".into()).await?.await?.sequence;
    let long = format!("{}… (message {place})", "n".repeat(64));
    let refused = ["junk1", "junk2", "junk3", "many", &long].map(|it| (it, "refused"));
    let mut states = vec![("acme", "serving"), ("beta", "serving")];
    states.extend(refused);
    until_states(&site, &states).await?;
    // Commands about others are answered.
    let applied = done(apply(&site, &section("gamma", ""))?)?;
    assert!(applied.contains("gamma serving"), "{applied}");
    let why = failed(&host::run(&site, &["tenants", "pause", "many", "--yes"])?)?;
    assert!(
        why.contains("unknown key `key0`") && why.contains("lines more"),
        "{why}"
    );
    for text in [
        http::get(site.http_port(), "/readyz").await?.body,
        done(host::run(&site, &["tenants", "list"])?)?,
        why,
    ] {
        assert!(text.len() < 30_000, "{} bytes", text.len());
    }
    let log = host.process.stderr();
    let longest = log.iter().map(String::len).max();
    assert!(longest < Some(4_000), "a line of {longest:?} bytes");
    let of_many = log
        .iter()
        .filter(|it| it.contains("presence-tenants.many"))
        .count();
    assert!((1..30).contains(&of_many), "{of_many} lines");
    assert!(log.iter().any(|it| it.contains("bytes more)")));
    host.stop().await
}

#[tokio::test]
async fn a_command_whose_answer_is_too_long_is_told_so() -> Result<()> {
    let options = Options {
        config: "max_payload: 4096".into(),
        ..Options::default()
    };
    let server = NatsServer::start_with(options).await?;
    let site = site(&server)?;
    let mut host = Host::start(&site).await?;
    done(apply(&site, &section("beta", ""))?)?;
    // A message about each of these keys has the line's place, and what to do about it.
    let keys: String = (0..8)
        .map(|it| format!("{}{it} = 1\n", "k".repeat(380)))
        .collect();
    let section = format!("[[tenant]]\nname = 'many'\n{keys}");
    let many = json!({"section": section, "when": now_ms()});
    bucket(&server)
        .await?
        .put("many", many.to_string().into())
        .await?;
    let states = [
        ("acme", "serving"),
        ("beta", "serving"),
        ("many", "refused"),
    ];
    until_states(&site, &states).await?;
    let why = failed(&host::run(&site, &["tenants", "pause", "many", "--yes"])?)?;
    assert!(
        why.contains("the broker carries messages of 4096 (max_payload)"),
        "{why}"
    );
    let words = ["an operator's command can't be answered", "(max_payload)"];
    host.wait_for_log(0, &words).await?;
    host.stop().await
}
