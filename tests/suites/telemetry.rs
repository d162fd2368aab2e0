//! Metrics and traces by OTLP, to the test's own collector.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use presence_otlp::Span;
use presence_tests::collector::{Answers, Collector, text};
use presence_tests::host;
use presence_tests::{component, wait};

use crate::inputs::{self, CONNECT, DISCONNECT, HEARTBEAT, SEED_MS};
use crate::world::World;

const METRICS: &str = "/v1/metrics";
const TRACES: &str = "/v1/traces";

/// A user and a connection, which must not be sent.
const USER: &str = "12345";
const CONN: &str = "web_abc123";

/// A sender's `traceparent`, with its trace and its span.
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const TRACE: [u8; 16] = [
    0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c,
];
const SPAN: [u8; 8] = [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31];

/// A host that sends to a collector, and traces this share of messages.
async fn world(sample: f64) -> Result<(World, Collector)> {
    let collector = Collector::start().await?;
    let url = collector.url();
    let world = World::start_with(|site| {
        std::fs::write(site.path().join("collector.headers"), "x-team=acme\n")?;
        site.with("telemetry.otlp", url)?
            .with("telemetry.interval_ms", 100)?
            .with("telemetry.sample", sample)?
            .with("telemetry.headers", "authorization=Bearer%20abc")?
            .with("telemetry.headers_file", "collector.headers")
    });
    Ok((world.await?, collector))
}

/// Every series of `/metrics` that doesn't change while nothing happens.
fn still(series: impl IntoIterator<Item = (String, f64)>) -> BTreeMap<String, String> {
    let moves = [
        "process_",
        "presence_telemetry_",
        "presence_state_lag_",
        "presence_state_records_",
        "presence_state_bytes",
        "presence_directory_age_",
        // Beacons go through it.
        "presence_journal_bytes",
    ];
    let is_still = |name: &str| !moves.iter().any(|it| name.starts_with(it));
    let still = series.into_iter().filter(|(name, _)| is_still(name));
    still
        .map(|(name, value)| (name, value.to_string()))
        .collect()
}

fn of_text(exposition: &str) -> Vec<(String, f64)> {
    let samples = exposition.lines().filter(|line| !line.starts_with('#'));
    let parsed = samples.filter_map(|line| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    });
    parsed.collect()
}

#[tokio::test]
async fn a_collector_gets_what_metrics_says() -> Result<()> {
    let (mut world, collector) = world(0.0).await?;
    for user in ["12345", "67890", "11111"] {
        let connect = inputs::connect(user, CONN, SEED_MS);
        world.client.input(CONNECT, connect).await?;
    }
    world.client.publish_bytes(CONNECT, "{").await?;
    world.all_about("12345").await?;
    // Waits until the figures include the last input, and have been sent.
    wait::until("the same of both", async || {
        let told = still(of_text(&world.host.metrics().await?));
        let requests = collector.requests().into_iter().rev();
        let mut newest = requests.filter(|it| it.path == METRICS);
        let Some(newest) = newest.next() else {
            return Ok(None);
        };
        let sent = still(newest.series()?);
        let value = |series: &str| told.get(series).map(String::as_str);
        let has_all = value("presence_dead_letters_total{reason=\"invalid-json\"}") == Some("1")
            && value("presence_decision_seconds_bucket{le=\"+Inf\"}") == Some("2")
            && value("presence_inputs_total{kind=\"connect\"}") == Some("3")
            && value("presence_intake_to_publish_seconds_count").is_some_and(|it| it != "0")
            && value("presence_plugin_call_fuel_total{plugin=\"contacts\"}")
                .is_some_and(|it| it != "0");
        Ok((sent == told && has_all).then_some(()))
    })
    .await?;
    let requests = collector.requests();
    let request = requests.first().context("there are some")?;
    let head = request.head.to_lowercase();
    for line in [
        "content-type: application/x-protobuf",
        "authorization: bearer abc",
        "x-team: acme",
    ] {
        assert!(head.contains(line), "{head}");
    }
    assert!(
        requests.iter().all(|it| it.path == METRICS),
        "nothing is traced"
    );
    world.end().await
}

/// The spans of a trace, once all spans of a message are there.
async fn spans_of(collector: &Collector, trace: [u8; 16]) -> Result<Vec<Span>> {
    wait::until("the spans of a trace", async || {
        let spans = collector.spans()?.into_iter();
        let spans: Vec<_> = spans.filter(|it| it.trace_id == trace).collect();
        Ok((!spans.is_empty()).then_some(spans))
    })
    .await
}

fn named<'a>(spans: &'a [Span], name: &str) -> Result<&'a Span> {
    let span = spans.iter().find(|it| it.name == name);
    span.with_context(|| {
        let names: Vec<_> = spans.iter().map(|it| &it.name).collect();
        format!("no span {name} among {names:?}")
    })
}

#[tokio::test]
async fn a_trace_has_its_senders_span_as_its_parent_and_names_nobody() -> Result<()> {
    // With this share, no message is traced by chance.
    let (mut world, collector) = world(1e-300).await?;
    let connect = inputs::connect(USER, CONN, SEED_MS);
    let headers = [("Traceparent", PARENT)];
    world
        .client
        .publish_with(CONNECT, &headers, &connect)
        .await?;
    world.all_about(USER).await?;
    let spans = spans_of(&collector, TRACE).await?;
    let whole = named(&spans, "process presence.connect")?;
    assert_eq!(whole.parent_span_id, SPAN);
    assert_eq!(
        whole.flags & 0x300,
        0x300,
        "the parent is another process's"
    );
    let subject = whole.attributes.iter().find_map(|it| {
        let is_it = it.key == "messaging.destination.name";
        is_it.then(|| text(it)).flatten()
    });
    assert_eq!(subject, Some(CONNECT));
    let decision = named(&spans, "decide")?;
    assert_eq!(decision.parent_span_id, whole.span_id);
    for stage in [
        "filter contacts",
        "filter groups",
        "filter blocklist",
        "redactor redact",
    ] {
        let call = named(&spans, stage)?;
        assert_eq!(call.parent_span_id, decision.span_id, "{stage}");
        assert!(call.start_time_unix_nano >= decision.start_time_unix_nano);
        assert!(call.end_time_unix_nano <= decision.end_time_unix_nano);
    }
    assert!(whole.start_time_unix_nano <= decision.start_time_unix_nano);
    assert!(whole.end_time_unix_nano >= decision.end_time_unix_nano);

    // A message whose sender doesn't trace it is not traced, nor is one without a valid header.
    let unsampled = [("traceparent", PARENT.replace("-01", "-00"))];
    let unsampled = unsampled.each_ref().map(|(name, value)| (*name, &**value));
    let bye = inputs::disconnect(USER, CONN, SEED_MS, "client_disconnect");
    world
        .client
        .publish_with(DISCONNECT, &unsampled, &bye)
        .await?;
    let wrong = [("traceparent", "00-nonsense")];
    let connect = inputs::connect("67890", CONN, SEED_MS);
    world.client.publish_with(CONNECT, &wrong, &connect).await?;
    // This message comes last, so its trace comes after theirs.
    let last = PARENT.replace("0af7", "0bf7");
    let last = [("traceparent", last.as_str())];
    let beat = inputs::heartbeat("67890", CONN, SEED_MS + 1);
    world.client.publish_with(HEARTBEAT, &last, &beat).await?;
    let mut trace = TRACE;
    trace[0] = 0x0b;
    spans_of(&collector, trace).await?;
    let roots = collector.spans()?;
    let roots = roots.iter().filter(|it| it.name.starts_with("process "));
    assert_eq!(roots.count(), 2);

    for request in collector.requests() {
        for secret in [USER, "67890", CONN, "Mozilla", "device"] {
            let mut parts = request.body.windows(secret.len());
            let is_told = parts.any(|part| part == secret.as_bytes());
            assert!(!is_told, "{secret} in a request to {}", request.path);
        }
    }
    world.end().await
}

#[tokio::test]
async fn of_what_no_sender_decides_a_share_is_traced_with_calls_that_fail() -> Result<()> {
    let (mut world, collector) = world(1.0).await?;
    let trap = component::named(&component::load("fixtures/trap")?, "contacts")?;
    let from = world.host.log_len();
    world.site.write_plugin("contacts", trap)?;
    world.host.wait_for_log(from, &["pipeline swapped"]).await?;
    let connect = inputs::connect(USER, CONN, SEED_MS);
    world.client.input(CONNECT, connect).await?;
    let failed = wait::until("a call that fails", async || {
        let spans = collector.spans()?.into_iter();
        let mut failed = spans.filter(|it| it.status.as_ref().is_some_and(|it| it.code == 2));
        Ok(failed.next())
    });
    let failed = failed.await?;
    assert_eq!(failed.name, "filter contacts");
    assert_eq!(
        failed.status.context("it has one")?.message,
        "",
        "it may name users"
    );
    world.end().await
}

#[tokio::test]
async fn a_collector_that_takes_nothing_costs_nothing_else_and_gets_the_rest() -> Result<()> {
    let (mut world, collector) = world(1.0).await?;
    collector.until_sent(METRICS, Answers::Well, 0).await?;
    let mut at = 0;
    for answers in [
        Answers::Status(503),
        Answers::Nonsense,
        Answers::Garbage,
        Answers::Nothing,
    ] {
        let from = collector.requests().len();
        collector.answer(answers);
        collector.until_sent(METRICS, answers, from).await?;
        // Users come and go, and viewers are told, as usual.
        let seen = world.probe(USER).await?;
        assert_eq!(seen.visible_to(), ["22222", "67890"], "{answers:?}");
        at += 1;
        let failed = ["outcome=\"failed\""];
        let name = "presence_telemetry_requests_total";
        let it = f64::from(at);
        world
            .host
            .until_metric(name, &failed, |failed| failed >= it)
            .await?;
    }
    let from = collector.requests().len();
    collector.answer(Answers::Well);
    collector.until_sent(METRICS, Answers::Well, from).await?;
    // The traces from meanwhile were kept, and come now.
    let sent = ["outcome=\"sent\""];
    let name = "presence_telemetry_traces_total";
    world
        .host
        .until_metric(name, &sent, |sent| sent > 0.0)
        .await?;
    collector.until_sent(TRACES, Answers::Well, from).await?;
    let log = world.host.process.stderr();
    let told = log
        .iter()
        .filter(|line| line.contains("doesn't take metrics"));
    assert_eq!(told.count(), 1, "{log:?}");
    assert!(!log.iter().any(|line| line.contains("Bearer")), "{log:?}");
    world.end().await
}

#[tokio::test]
async fn what_a_collector_rejects_is_counted_and_the_rest_is_sent() -> Result<()> {
    let (mut world, collector) = world(1.0).await?;
    collector.until_sent(METRICS, Answers::Well, 0).await?;
    collector.answer(Answers::AllButOne);
    world.probe(USER).await?;
    collector.until_sent(TRACES, Answers::AllButOne, 0).await?;
    let traces = "presence_telemetry_traces_total";
    for outcome in ["outcome=\"sent\"", "outcome=\"dropped\""] {
        world
            .host
            .until_metric(traces, &[outcome], |count| count > 0.0)
            .await?;
    }
    let requests = "presence_telemetry_requests_total";
    let failed = world.host.metric(requests, &["outcome=\"failed\""]).await?;
    assert_eq!(failed, 0.0, "the collector has accepted the request");
    world
        .host
        .wait_for_log(0, &["has rejected 1 spans", "too old"])
        .await?;
    world.end().await
}

#[tokio::test]
async fn a_collector_that_takes_no_metrics_gets_the_traces() -> Result<()> {
    let (mut world, collector) = world(1.0).await?;
    collector.answer(Answers::OnlyTraces);
    collector
        .until_sent(METRICS, Answers::Status(404), 0)
        .await?;
    let from = collector.requests().len();
    world.probe(USER).await?;
    collector.until_sent(TRACES, Answers::Well, from).await?;
    let metrics = collector.requests();
    let taken = |it: &&presence_tests::collector::Request| {
        it.path == METRICS && it.answered == Answers::Well
    };
    assert_eq!(metrics.iter().skip(from).filter(taken).count(), 0);
    world.end().await
}

#[tokio::test]
async fn a_file_of_headers_that_is_none_is_found_before_the_start() -> Result<()> {
    let (world, _collector) = world(0.0).await?;
    let file = world.site.path().join("collector.headers");
    std::fs::write(&file, "Bearer s3cret")?;
    for command in ["check", "run"] {
        let ended = host::run(&world.site, &[command])?;
        let said = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert!(
            said.contains("`headers_file` in [telemetry] has a header without"),
            "{said}"
        );
        assert!(!said.contains("s3cret"), "{said}");
    }
    std::fs::write(&file, "")?;
    world.end().await
}
