//! The harness itself: what the other suites rely on.

use std::process::Command;

use anyhow::Result;
use presence_tests::client::Client;
use presence_tests::nats::NatsServer;
use presence_tests::process::Process;
use presence_tests::proxy::Proxy;
use presence_tests::{http, wait};
use serde_json::json;

#[tokio::test]
async fn a_server_comes_back_on_its_port_with_its_storage() -> Result<()> {
    let mut server = NatsServer::start().await?;
    let client = Client::connect(&server.url()).await?;
    let context = async_nats::jetstream::new(client.nats.clone());
    let config = async_nats::jetstream::kv::Config {
        bucket: "b".into(),
        ..Default::default()
    };
    context
        .create_key_value(config)
        .await?
        .put("k", "v".into())
        .await?;
    server.restart().await?;
    let value = wait::until("the bucket to be back", async || {
        let Ok(store) = context.get_key_value("b").await else {
            return Ok(None);
        };
        Ok(store.get("k").await.ok().flatten())
    });
    assert_eq!(value.await?, "v");
    Ok(())
}

#[tokio::test]
async fn a_proxy_pauses_cuts_and_resumes() -> Result<()> {
    let server = NatsServer::start().await?;
    let proxy = Proxy::start(server.port()).await?;
    let near = Client::connect(&server.url()).await?;
    let mut tape = near.record("t").await?;
    let far = Client::connect(&proxy.url()).await?;

    proxy.pause();
    far.publish("t", &json!({"number": 1})).await?;
    near.publish("t", &json!({"number": 0})).await?;
    let first = tape.next("what wasn't paused", |_| true).await?;
    assert_eq!(*first.field("number"), 0);
    proxy.resume();
    let second = tape.next("what was paused", |_| true).await?;
    assert_eq!(*second.field("number"), 1);

    proxy.cut();
    wait::until("the client to notice", async || {
        let state = far.nats.connection_state();
        Ok((state != async_nats::connection::State::Connected).then_some(()))
    })
    .await?;
    proxy.resume();
    far.publish("t", &json!({"number": 2})).await?;
    let third = tape.next("what was sent after the cut", |_| true).await?;
    assert_eq!(*third.field("number"), 2);
    Ok(())
}

#[tokio::test]
async fn a_process_is_heard_to_its_last_line() -> Result<()> {
    let script =
        "trap 'echo bye >&2; exit 0' TERM; echo err >&2; echo out; while :; do sleep 0.01; done";
    let mut process = Process::spawn("sh", Command::new("sh").args(["-c", script]))?;
    process.wait_for_stdout("out", |line| line == "out").await?;
    process.stop().await?;
    assert_eq!(process.stderr(), ["err", "bye"]);
    let missing = process
        .wait_for_log("a line that never comes", 0, |line| line == "never")
        .await;
    assert!(missing.is_err_and(|error| format!("{error:#}").contains("bye")));
    Ok(())
}

#[test]
fn metrics_are_summed_over_their_labels() {
    let text = "# TYPE a_total counter\n\
                a_total{kind=\"x\",worker=\"0\"} 3\na_total{kind=\"x\",worker=\"1\"} 4\n\
                a_total{kind=\"y\"} 5\na_total_more 100\nplain 2.5\n";
    assert_eq!(http::metric(text, "a_total", &["kind=\"x\""]), 7.0);
    assert_eq!(http::metric(text, "a_total", &[]), 12.0);
    assert_eq!(http::metric(text, "plain", &[]), 2.5);
    assert_eq!(http::metric(text, "absent", &[]), 0.0);
}
