//! What is found before a node runs: `presence check`, also with the broker, and `presence config`.

use anyhow::{Context, Result, ensure};
use presence_tests::client::Client;
use presence_tests::host;
use presence_tests::nats::{NatsServer, Options};
use presence_tests::site::Site;
use presence_tests::tools;
use serde_json::{Value, json};

/// What `presence check --json` finds, with further options, and its exit code.
fn check(site: &Site, options: &[&str]) -> Result<(Option<i32>, Value)> {
    let args = [&["check", "--json"], options].concat();
    let output = host::run(site, &args)?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let found = serde_json::from_str(&printed).with_context(|| format!("{output:?}"))?;
    Ok((output.status.code(), found))
}

fn texts(found: &Value) -> Vec<String> {
    let problems = found["problems"].as_array().into_iter().flatten();
    let texts = problems.filter_map(|problem| problem["text"].as_str());
    texts.map(str::to_owned).collect()
}

async fn server(config: String) -> Result<NatsServer> {
    NatsServer::start_with(Options {
        config,
        ..Options::default()
    })
    .await
}

/// A node that uses all features.
fn site(server: &NatsServer, user: &str, password: &str) -> Result<Site> {
    Site::new(&server.url())?
        .with("nats.user", user)?
        .with("nats.password", password)?
        .with("inbox.enabled", true)?
        .with("status.enabled", true)?
        .with("directory.source", "request")
}

#[tokio::test]
async fn the_example_permissions_are_all_that_a_node_needs() -> Result<()> {
    let file = tools::root().join("docs/permissions.conf");
    let server = server(std::fs::read_to_string(file)?).await?;
    let site = site(&server, "processor", "change-me-processor")?;
    let (code, found) = check(&site, &["--connect"])?;
    assert_eq!(code, Some(0), "{found}");
    assert_eq!(found["ok"], true, "{found}");
    assert_eq!(found["nats"]["unknown"], json!([]), "{found}");
    let restart = found["restart"].as_array().context("restart")?;
    ensure!(restart.contains(&json!("nats.url")), "{found}");
    ensure!(!restart.contains(&json!("nats.user")), "{found}");

    // A user with fewer permissions is told everything that is missing.
    let site = self::site(&server, "operator", "change-me-operator")?;
    let (code, found) = check(&site, &["--connect"])?;
    assert_eq!(code, Some(1), "{found}");
    let texts = texts(&found);
    for subject in ["subscribe to `presence.>`", "publish to `_INBOX.>`"] {
        let is = |text: &String| text.contains(subject);
        ensure!(texts.iter().any(is), "{subject} is not in {texts:#?}");
    }
    // What can't be found out is said, and not taken for permitted.
    let unknown = found["nats"]["unknown"].to_string();
    ensure!(unknown.contains("to publish to `presence.dlq`"), "{found}");
    Ok(())
}

#[tokio::test]
async fn each_missing_permission_is_named_and_nothing_is_published_to_find_out() -> Result<()> {
    let users = r#"authorization { users = [
        { user: node, password: s3cret, permissions: {
            publish: { deny: ["presence.dlq", "presence.inbox.*"] }
            subscribe: { deny: "presence-nodes.hello" }
        } }
        { user: tests, password: tests }
    ] }"#;
    let server = server(users.into()).await?;
    let options = async_nats::ConnectOptions::new();
    let options = options.user_and_password("tests".into(), "tests".into());
    let client = Client {
        nats: options.connect(server.url()).await?,
    };
    let mut heard = client.record("presence.>").await?;
    let site = site(&server, "node", "s3cret")?;
    let (code, found) = check(&site, &["--connect"])?;
    assert_eq!(code, Some(1), "{found}");
    let rights = [
        "subscribe to `presence-nodes.hello`",
        "publish to `presence.inbox.*`",
        "publish to `presence.dlq`",
    ];
    let texts = texts(&found);
    assert_eq!(texts.len(), rights.len(), "{texts:#?}");
    for (text, right) in texts.iter().zip(rights) {
        ensure!(text.contains(right), "{right} is not {text}");
    }
    // All that was published before the mark has been received.
    client.publish("presence.mark", &json!({})).await?;
    let first = heard.next("a message", |_| true).await?;
    assert_eq!(first.subject, "presence.mark", "{first:?}");

    // A login that the broker refuses is one problem among others.
    let mut site = site.with("nats.password", "other")?;
    site.set("tracker.timeout_ms", 0)?;
    let (_, found) = check(&site, &["--connect"])?;
    let texts = self::texts(&found).join("\n");
    for word in ["timeout_ms", "authorization violation"] {
        assert_eq!(texts.matches(word).count(), 1, "{word}: {texts}");
    }
    let place = found["problems"][0]["place"].as_str().unwrap_or_default();
    ensure!(place.contains("presence.toml:"), "{found}");
    ensure!(!found.to_string().contains("s3cret"), "{found}");
    Ok(())
}

#[test]
fn what_is_in_effect_is_printed_with_what_sets_it_and_without_secrets() -> Result<()> {
    let site = Site::new("nats://ann:s3cret@127.0.0.1:1")?.with("tracker.grace_ms", 7)?;
    let mut command = host::command(&site, &["config", "--json"])?;
    let output = command.env("PRESENCE_LOG_LEVEL", "debug").output()?;
    ensure!(output.status.success(), "{output:?}");
    let told: Value = serde_json::from_slice(&output.stdout)?;
    let settings = told["settings"].as_array().context("settings")?;
    let of = |key: &str| settings.iter().find(|it| it["key"] == key);
    let grace = of("tracker.grace_ms").context("grace_ms")?;
    assert_eq!(
        (&grace["value"], &grace["source"]),
        (&json!(7), &json!("file"))
    );
    let place = grace["place"].as_str().unwrap_or_default();
    ensure!(place.contains("presence.toml:"), "{grace}");
    let level = json!({
        "key": "log.level", "value": "debug", "source": "environment",
        "place": "PRESENCE_LOG_LEVEL", "restart": true,
    });
    assert_eq!(of("log.level"), Some(&level));
    let fuel = json!({
        "key": "engine.fuel", "value": 10_000_000, "source": "default", "place": null,
        "restart": false,
    });
    assert_eq!(of("engine.fuel"), Some(&fuel));
    assert_eq!(told["pipeline"][0]["stage"]["plugin"], "contacts");
    let page = host::run(&site, &["config"])?;
    for printed in [output.stdout, page.stdout] {
        let printed = String::from_utf8(printed)?;
        ensure!(printed.contains("(secret)"), "{printed}");
        ensure!(!printed.contains("s3cret"), "{printed}");
    }
    Ok(())
}
