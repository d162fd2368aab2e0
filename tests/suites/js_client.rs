//! The reference client in JavaScript, `clients/js`, with a fake host: how it handles gaps, epochs,
//! repetitions and late answers, in Node and in a real browser.

use anyhow::{Context, Result, ensure};
use presence_tests::browser::Browser;
use presence_tests::nats::{NatsServer, Options};
use presence_tests::web::Web;
use presence_tests::{node, tools};
use serde_json::Value;

#[tokio::test]
async fn its_tests_pass_in_node() -> Result<()> {
    let server = NatsServer::start().await?;
    let files =
        ["sources", "scenarios", "handshake"].map(|name| format!("clients/js/test/{name}.test.js"));
    let files = files.each_ref().map(String::as_str);
    let mut node = node::test(&files, &server.url())?;
    let status = node.wait().await?;
    let said = node.stdout().join("\n");
    ensure!(status.success(), "{said}\n{}", node.log_tail());
    let passed = said.lines().find_map(|line| line.strip_prefix("# pass "));
    let passed: usize = passed.context("a count of what passed")?.parse()?;
    ensure!(passed > 0, "no test was run:\n{said}");
    Ok(())
}

#[tokio::test]
async fn it_does_the_same_in_a_browser() -> Result<()> {
    let port = tools::free_port()?;
    let server = NatsServer::start_with(Options {
        config: format!("websocket {{ listen: \"127.0.0.1:{port}\", no_tls: true }}"),
        ..Options::default()
    })
    .await?;
    let mut web = Web::start(&[
        ("/client/", tools::root().join("clients/js")),
        ("/modules/", node::modules()?),
    ])
    .await?;
    let page = format!(
        "/client/test/browser.html?nats=ws://127.0.0.1:{port}&module=/modules/nats.ws/esm/nats.js"
    );
    let browser = Browser::open(&web.url(&page))?;

    let mut passed = 0;
    loop {
        let report = web.report("the page to report").await;
        let report = report.with_context(|| browser.process.log_tail())?;
        let report: Value = serde_json::from_str(&report)?;
        let error = report["error"].as_str();
        ensure!(
            error.is_none(),
            "{}: {}",
            report["name"],
            error.unwrap_or_default()
        );
        if report["end"] == true {
            break;
        }
        passed += 1;
    }
    ensure!(passed > 20, "only {passed} scenarios were run");
    drop(server);
    Ok(())
}
