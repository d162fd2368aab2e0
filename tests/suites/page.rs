//! The page that a node serves: in a real browser, and with the requests of others.

use anyhow::{Context, Result, ensure};
use presence_tests::client::{Client, now_ms};
use presence_tests::host::{self, Host};
use presence_tests::nats::NatsServer;
use presence_tests::process::Process;
use presence_tests::site::Site;
use presence_tests::{browser, component, http, node, wait};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use toml::toml;

use crate::inputs::{self, CONNECT};
use crate::store;
use crate::tenants::{tenant, until_states, with};
use crate::world::World;

const TOKEN: &str = "a token that is long enough";
const LOOPBACK: (&str, &str) = ("Host", "127.0.0.1");
/// A header that another page's scripts can't send without a preflight request.
const JSON: (&str, &str) = ("Content-Type", "application/json");

/// What a page receives until it has all of these words.
async fn read_until(stream: &mut TcpStream, words: &[&str]) -> Result<String> {
    let mut told = Vec::new();
    let all = async {
        loop {
            let text = String::from_utf8_lossy(&told).into_owned();
            if words.iter().all(|word| text.contains(word)) {
                return Ok(text);
            }
            let read = stream.read_buf(&mut told).await?;
            ensure!(read > 0, "it ended with {text}");
        }
    };
    wait::guarded("a page's events", all).await?
}

/// The data of an event.
fn data(told: &str, event: &str) -> Result<Value> {
    let begin = format!("event: {event}\ndata: ");
    let (_, rest) = told.split_once(&begin).context("the event is there")?;
    let (data, _) = rest.split_once("\n\n").context("the event is whole")?;
    Ok(serde_json::from_str(data)?)
}

#[tokio::test]
async fn it_shows_what_the_node_says_and_can_be_used_by_everyone_in_a_real_browser() -> Result<()> {
    let mut world = World::start_with(|site| {
        site.with("explain.enabled", true)?
            .with("tracker.timeout_ms", 600_000)
    })
    .await?;
    for number in 0..12 {
        let (user, conn) = (format!("user-{}", number / 2), format!("c{number}"));
        let body = inputs::connect(&user, &conn, now_ms());
        world.client.input(CONNECT, body).await?;
    }
    let script = json!({"userId": "<img src=x onerror=window.hacked=1>", "connId": ""});
    world.client.publish(CONNECT, &script).await?;
    world.client.publish_bytes(CONNECT, "no JSON").await?;
    let metric = "presence_dead_letters_total";
    world.host.until_metric(metric, &[], |it| it == 2.0).await?;

    let chromium = browser::find()?.to_string_lossy().into_owned();
    let url = format!("http://127.0.0.1:{}", world.site.http_port());
    let mut page = node::spawn("tests/node/page.mjs", &[&chromium, &url])?;
    for seen in [
        "serving", "metrics", "text", "policy", "keyboard", "contrast", "narrow",
    ] {
        next(&mut page, &format!("seen: {seen}")).await?;
    }
    next(&mut page, "do: swap").await?;
    let groups = component::named(&component::load("groups")?, "contacts")?;
    world.site.write_plugin("contacts", groups)?;
    next(&mut page, "do: stop").await?;
    world.host.stop().await?;
    next(&mut page, "do: start").await?;
    world.host = Host::start(&world.site).await?;
    next(&mut page, "done").await?;
    ensure!(page.wait().await?.success(), "{}", page.log_tail());
    world.end().await
}

async fn next(page: &mut Process, words: &str) -> Result<()> {
    let is = |line: &str| line == words;
    let said = page.wait_for_stdout(words, is).await;
    said.map(drop).with_context(|| page.log_tail())
}

#[tokio::test]
async fn it_is_not_for_other_pages_and_names_nobody_to_those_without_the_token() -> Result<()> {
    let world = World::start_with(|site| {
        site.with("explain.enabled", true)?
            .with("http.admin_token", TOKEN.replace(' ', "-"))
    })
    .await?;
    let port = world.site.http_port();
    let bearer = format!("Bearer {}", TOKEN.replace(' ', "-"));
    let token = ("Authorization", &*bearer);
    let host = format!("127.0.0.1:{port}");
    let own = ("Host", &*host);
    world
        .client
        .publish_bytes(CONNECT, r#"{"userId": "ada", "connId": ""}"#)
        .await?;
    let metric = "presence_dead_letters_total";
    world.host.until_metric(metric, &[], |it| it == 1.0).await?;

    // Another name that leads here, and requests from another page, are refused.
    for path in ["/", "/page/main.js", "/page/events"] {
        let answer = http::ask(port, path, &[("Host", "evil.example")], None).await?;
        assert_eq!(answer.status, 403, "{path}");
    }
    for foreign in [
        ("Origin", "http://evil.example"),
        ("Sec-Fetch-Site", "cross-site"),
    ] {
        let answer = http::ask(port, "/page/events", &[own, foreign, token], None).await?;
        assert_eq!(answer.status, 403, "{foreign:?}");
    }
    // So is a request that a browser makes for another page without these headers, as for a
    // picture.
    for path in ["/page/events", "/page/history", "/page/beside"] {
        let answer = http::ask(port, path, &[own], None).await?;
        assert_eq!(answer.status, 415, "{path}");
    }

    // Names the user whom a dead letter is about only to operators.
    let mut stream = http::begin(port, "/page/events", &[own, JSON], None).await?;
    let anyone = read_until(&mut stream, &["event: letters", "]}\n\n"]).await?;
    let letters = data(&anyone, "letters")?;
    ensure!(!letters.to_string().contains("ada"), "{letters}");
    assert_eq!(
        letters["letters"][0]["reason"], "missing-field",
        "{letters}"
    );
    assert_eq!(data(&anyone, "hello")?["explain"], "token");
    let mut stream = http::begin(port, "/page/events", &[own, JSON, token], None).await?;
    let operator = read_until(&mut stream, &["event: letters", "]}\n\n"]).await?;
    assert_eq!(data(&operator, "letters")?["letters"][0]["user"], "ada");
    assert_eq!(data(&operator, "hello")?["operator"], true);
    let wrong = ("Authorization", "Bearer another-token-of-a-length");
    let answer = http::ask(port, "/page/events", &[own, JSON, wrong], None).await?;
    assert_eq!(answer.status, 401);

    // An explanation.
    let question = json!({"viewerId": "11111", "userId": "12345"}).to_string();
    let json = ("Content-Type", "application/json");
    for (headers, status) in [
        (vec![own, json], 403),
        (vec![own, json, wrong], 401),
        (vec![own, token, ("Content-Type", "text/plain")], 415),
        (
            vec![own, token, json, ("Origin", "http://evil.example")],
            403,
        ),
        (vec![own, token, json], 200),
    ] {
        let answer = http::ask(port, "/page/explain", &headers, Some(&question)).await?;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.body);
    }
    let answer = http::ask(port, "/page/explain", &[own, token, json], Some(&question)).await?;
    let here: Value = serde_json::from_str(&answer.body)?;
    let there = world.client.request("presence.explain", question).await?;
    assert_eq!(here["stages"], there["stages"]);
    let answer = http::ask(port, "/page/explain", &[own, token, json], Some("[]")).await?;
    let refused: Value = serde_json::from_str(&answer.body)?;
    assert_eq!(refused["ok"], false, "{refused}");
    world.end().await
}

#[tokio::test]
async fn few_pages_listen_at_a_time_and_nothing_that_they_do_keeps_a_probe_from_its_answer()
-> Result<()> {
    let world = World::start_with(|site| site.with("log.user_ids", false)).await?;
    let port = world.site.http_port();
    world
        .client
        .publish_bytes(CONNECT, r#"{"userId": "ada", "connId": ""}"#)
        .await?;
    let metric = "presence_dead_letters_total";
    world.host.until_metric(metric, &[], |it| it == 1.0).await?;
    let mut pages = Vec::new();
    for _ in 0..8 {
        let mut page = http::begin(port, "/page/events", &[LOOPBACK, JSON], None).await?;
        let first = read_until(&mut page, &["event: letters", "]}\n\n"]).await?;
        // Explanations are off by default, and names are left out, as the configuration says.
        assert_eq!(data(&first, "hello")?["explain"], "off");
        let letters = data(&first, "letters")?;
        ensure!(!letters.to_string().contains("ada"), "{letters}");
        pages.push(page);
    }
    let answer = http::ask(port, "/page/events", &[LOOPBACK, JSON], None).await?;
    assert_eq!(answer.status, 503, "{}", answer.body);
    for _ in 0..64 {
        assert_eq!(http::get(port, "/readyz").await?.status, 200);
    }
    // The page has the same figures as the metrics.
    let now = data(
        &read_until(&mut pages[0], &["event: now", "}\n\n"]).await?,
        "now",
    )?;
    assert_eq!(
        now["metrics"]["presence_dead_letters_total{reason=\"missing-field\"}"],
        1
    );
    assert_eq!(now["status"]["serving"]["pipeline"][0]["role"], "filter");
    // A page that is closed makes room for another one.
    drop(pages.pop());
    wait::until("another page to find room", async || {
        let mut page = http::begin(port, "/page/events", &[LOOPBACK, JSON], None).await?;
        let first = read_until(&mut page, &["\r\n\r\n"]).await?;
        Ok(first.starts_with("HTTP/1.0 200").then_some(()))
    })
    .await?;
    world.end().await
}

#[tokio::test]
async fn an_operator_rolls_the_pipeline_back_with_the_page_and_nobody_else_does() -> Result<()> {
    let server = NatsServer::start().await?;
    let token = TOKEN.replace(' ', "-");
    let site = Site::new(&server.url())?.with("http.admin_token", &*token)?;
    let mut world = store::empty(server, site).await?;
    store::apply(&world.site, store::CONTACTS)?;
    world.host.ready().await?;
    world.until_visible_to("12345", &["11111", "67890"]).await?;
    store::apply(&world.site, &store::CONTACTS.replace("contacts", "groups"))?;
    world.until_visible_to("12345", &["22222"]).await?;

    let port = world.site.http_port();
    let (host, bearer) = (format!("127.0.0.1:{port}"), format!("Bearer {token}"));
    let (own, operator) = (("Host", &*host), ("Authorization", &*bearer));
    let json = ("Content-Type", "application/json");
    let foreign = ("Origin", "http://evil.example");
    let back = json!({"revision": 1, "seen": 2}).to_string();
    for (headers, body, status) in [
        (vec![own, json], &*back, 403),
        (vec![own, json, operator, foreign], &*back, 403),
        (
            vec![own, json, ("Authorization", "Bearer other")],
            &*back,
            401,
        ),
        (vec![own, operator], &*back, 415),
        (vec![own, json, operator], r#"{"revision": 1}"#, 400),
        (vec![own, json, operator], "no JSON", 400),
    ] {
        let answer = http::ask(port, "/page/rollback", &headers, Some(body)).await?;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.body);
    }
    // A revision that was overtaken, one that isn't there, and the one that is in force.
    for (revision, seen, why) in [
        (1, 1, "has written revision 2 meanwhile"),
        (7, 2, "there is no revision 7"),
        (2, 2, "has the same pipeline"),
    ] {
        let body = json!({"revision": revision, "seen": seen}).to_string();
        let answer = http::ask(port, "/page/rollback", &[own, json, operator], Some(&body)).await?;
        let answer: Value = serde_json::from_str(&answer.body)?;
        let error = answer["error"].as_str().unwrap_or_default();
        ensure!(answer["ok"] == false && error.contains(why), "{answer}");
    }
    // Only operators are told who has made a change.
    let history = http::ask(port, "/page/history", &[own, JSON], None).await?;
    let history: Value = serde_json::from_str(&history.body)?;
    assert_eq!(history["revisions"][0]["revision"], 2, "{history}");
    assert_eq!(history["revisions"][0]["who"], Value::Null, "{history}");

    let chromium = browser::find()?.to_string_lossy().into_owned();
    let url = format!("http://{host}");
    let mut page = node::spawn("tests/node/rollback.mjs", &[&chromium, &url, &token])?;
    next(&mut page, "done").await?;
    ensure!(page.wait().await?.success(), "{}", page.log_tail());
    world.until_visible_to("12345", &["11111", "67890"]).await?;
    world.end().await
}

#[tokio::test]
async fn a_canary_and_a_shadow_are_on_the_page_and_an_operator_ends_a_canary_there() -> Result<()> {
    let server = NatsServer::start().await?;
    let token = TOKEN.replace(' ', "-");
    let site = Site::new(&server.url())?.with("http.admin_token", &*token)?;
    let mut world = store::empty(server, site).await?;
    store::apply(&world.site, store::CONTACTS)?;
    world.host.ready().await?;
    let groups = component::named(&component::load("groups")?, "contacts")?;
    let path = store::plugin(&world.site, "other.wasm", &groups)?;
    let named = format!("contacts@{}", store::push(&world.site, &path)?);
    let canary = ["plugins", "canary", &named, "--percent", "45.07", "--yes"];
    let rules = ["--abort-on", "errors>50%", "--promote-after", "1h"];
    store::run_ok(&world.site, &[&canary[..], &rules].concat())?;
    let connect = inputs::connect("12345", "c", now_ms());
    world.client.input(CONNECT, connect).await?;

    let port = world.site.http_port();
    let (host, bearer) = (format!("127.0.0.1:{port}"), format!("Bearer {token}"));
    let (own, operator) = (("Host", &*host), ("Authorization", &*bearer));
    let json = ("Content-Type", "application/json");
    for (headers, body, status) in [
        (vec![own, json], r#"{"promote": true, "seen": 2}"#, 403),
        (vec![own, operator], r#"{"promote": true, "seen": 2}"#, 415),
        (vec![own, json, operator], r#"{"seen": 2}"#, 400),
    ] {
        let answer = http::ask(port, "/page/canary", &headers, Some(body)).await?;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.body);
    }
    let late = r#"{"promote": true, "seen": 1}"#;
    let answer = http::ask(port, "/page/canary", &[own, json, operator], Some(late)).await?;
    ensure!(
        answer.body.contains("has written revision 2"),
        "{}",
        answer.body
    );
    let examples = http::ask(port, "/page/beside", &[own, JSON], None).await?;
    let examples: Value = serde_json::from_str(&examples.body)?;
    assert_eq!(examples["reports"], Value::Null, "they name users");

    let chromium = browser::find()?.to_string_lossy().into_owned();
    let url = format!("http://{host}");
    // For the pictures of the guide.
    let pictures = std::env::var("PRESENCE_PICTURES").unwrap_or_default();
    let args = [&*chromium, &*url, &*token, &*pictures];
    let mut page = node::spawn("tests/node/canary.mjs", &args)?;
    for seen in ["seen: figures", "seen: examples", "do: shadow"] {
        next(&mut page, seen).await?;
    }
    world.until_visible_to("12345", &["11111", "67890"]).await?;
    let args = ["plugins", "shadow", &named, "--for", "1h"];
    let mut shadow = host::start(&world.site, &args)?;
    next(&mut page, "do: garbage").await?;
    // The command sees that the shadow is over, long before its time.
    ensure!(shadow.wait().await?.success(), "{}", shadow.log_tail());
    let bucket = store::bucket(&world).await?;
    bucket.put("revision.99", "?".into()).await?;
    next(&mut page, "done").await?;
    ensure!(page.wait().await?.success(), "{}", page.log_tail());
    world.end().await
}

#[tokio::test]
async fn a_quarantine_is_in_the_history_of_the_page_also_without_a_store() -> Result<()> {
    let world = World::start_with(|mut site| {
        site.set_pipeline(&[("contacts", None), ("trap", None)])?;
        site.write_plugin("trap", component::load("fixtures/trap")?)?;
        site.with("engine.quarantine_failures", 1)
    })
    .await?;
    let port = world.site.http_port();
    let history = async || -> Result<Value> {
        let answer = http::ask(port, "/page/history", &[LOOPBACK, JSON], None).await?;
        Ok(serde_json::from_str(&answer.body)?)
    };
    assert_eq!(history().await?["alerts"], json!([]));
    let connect = inputs::connect("12345", "c", now_ms());
    world.client.input(CONNECT, connect).await?;
    let alert = wait::until("the quarantine", async || {
        let history = history().await?;
        Ok(history["alerts"].get(0).cloned())
    });
    let alert = alert.await?;
    assert_eq!(
        (&alert["type"], &alert["plugin"]),
        (&json!("quarantine"), &json!("trap"))
    );
    world.end().await
}

#[tokio::test]
async fn a_node_with_tenants_shows_one_at_a_time_and_nothing_of_another() -> Result<()> {
    let server = NatsServer::start().await?;
    let token = TOKEN.replace(' ', "-");
    let long = "x".repeat(60);
    let store = with(tenant("acme"), "plugins", toml! { source = "store" });
    let broken = with(tenant(&long), "tracker", toml! { timeout_ms = "soon" });
    let resting = with(tenant("resting"), "paused", true);
    let site = Site::new(&server.url())?
        .with("http.admin_token", &*token)?
        .with("explain.enabled", true)?
        .with("tracker.timeout_ms", 600_000)?
        .with("tenant", vec![store, tenant("beta"), resting, broken])?;
    let host = Host::start(&site).await?;
    let path = site.path().join("pipeline.toml");
    for pipeline in [
        store::CONTACTS,
        &store::CONTACTS.replace("contacts", "groups"),
    ] {
        std::fs::write(&path, pipeline)?;
        let path = path.to_string_lossy();
        let apply = ["pipeline", "apply", &path, "--tenant", "acme", "--yes"];
        store::run_ok(&site, &apply)?;
    }
    let states = [
        ("acme", "serving"),
        ("beta", "serving"),
        ("resting", "paused"),
        (&*long, "refused"),
    ];
    until_states(&site, &states).await?;
    let client = Client::connect(&server.url()).await?;
    for (prefix, user) in [("acme", "12345"), ("beta", "12345"), ("beta", "67890")] {
        let connect = inputs::connect(user, "c1", now_ms());
        client
            .input(&format!("{prefix}.{CONNECT}"), connect)
            .await?;
    }
    let bad = r#"{"userId": "ada", "connId": ""}"#;
    client
        .publish_bytes(&format!("beta.{CONNECT}"), bad)
        .await?;
    let of_beta = ["tenant=\"beta\"", "reason=\"missing-field\""];
    let metric = "presence_dead_letters_total";
    host.until_metric(metric, &of_beta, |it| it == 1.0).await?;

    let port = site.http_port();
    let (own, bearer) = (format!("127.0.0.1:{port}"), format!("Bearer {token}"));
    let (own, operator) = (("Host", &*own), ("Authorization", &*bearer));
    // Each page tells of its own tenant, and only the names of the others.
    for (name, letters) in [("acme", 0), ("beta", 1)] {
        let path = format!("/page/events?after=0&tenant={name}");
        let mut stream = http::begin(port, &path, &[own, JSON, operator], None).await?;
        let words = ["event: tenants", "event: now", "event: letters", "]}\n\n"];
        let told = read_until(&mut stream, &words).await?;
        assert_eq!(data(&told, "hello")?["tenant"], name);
        assert_eq!(data(&told, "now")?["status"]["tenant"]["name"], name);
        let found = data(&told, "letters")?;
        assert_eq!(
            found["letters"].as_array().map(Vec::len),
            Some(letters),
            "{found}"
        );
        let listed = data(&told, "tenants")?;
        assert_eq!(
            listed["tenants"][1],
            json!({"name": "beta", "state": "serving"})
        );
    }
    // A change needs the token, and concerns the tenant that is named.
    let back = json!({"revision": 1, "seen": 2}).to_string();
    for (tenant, headers, status) in [
        ("acme", vec![own, JSON], 403),
        (
            "acme",
            vec![own, JSON, ("Authorization", "Bearer other")],
            401,
        ),
        ("beta", vec![own, JSON, operator], 400),
        ("nobody", vec![own, JSON, operator], 400),
    ] {
        let path = format!("/page/rollback?tenant={tenant}");
        let answer = http::ask(port, &path, &headers, Some(&back)).await?;
        assert_eq!(
            answer.status, status,
            "{tenant} {headers:?}: {}",
            answer.body
        );
    }

    let chromium = browser::find()?.to_string_lossy().into_owned();
    let url = format!("http://127.0.0.1:{port}");
    let mut page = node::spawn("tests/node/tenants.mjs", &[&chromium, &url, &token])?;
    next(&mut page, "done").await?;
    ensure!(page.wait().await?.success(), "{}", page.log_tail());
    host.stop().await
}
