//! Dead letters for operators: kept in a stream, listed, shown, and redriven.

use anyhow::{Context, Result, ensure};
use async_nats::Subscriber;
use async_nats::jetstream::{self, consumer::pull};
use futures_util::StreamExt as _;
use presence_tests::client::now_ms;
use presence_tests::host::Host;
use presence_tests::site::Site;
use presence_tests::{component, host, wait};
use serde_json::{Value, json};
use toml::toml;

use crate::inputs::{self, CONNECT, DISCONNECT, DLQ, ONLINE};
use crate::permissions;
use crate::world::World;

/// What a command prints, and whether it ended well.
fn run(site: &Site, args: &[&str]) -> Result<(String, String, bool)> {
    let args: Vec<_> = ["dlq"].iter().chain(args).copied().collect();
    let output = host::run(site, &args)?;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes);
    Ok((
        text(output.stdout)?,
        text(output.stderr)?,
        output.status.success(),
    ))
}

/// The JSON object that a successful command prints.
fn json(site: &Site, args: &[&str]) -> Result<Value> {
    let (out, error, good) = run(site, &[args, &["--json"]].concat())?;
    ensure!(good, "{args:?}: {error}");
    Ok(serde_json::from_str(&out)?)
}

/// The letters that are listed: their numbers, reasons and subjects.
fn listed(site: &Site, args: &[&str]) -> Result<Vec<(u64, String, String)>> {
    let listed = json(site, &[&["list"], args].concat())?;
    let letters = listed["deadLetters"].as_array().context("a list")?;
    let letters = letters.iter().map(|it| {
        let text = |field: &str| it["letter"][field].as_str().unwrap_or_default().to_owned();
        let number = it["number"].as_u64().unwrap_or_default();
        (number, text("reason"), text("subject"))
    });
    Ok(letters.collect())
}

/// What became of one letter.
fn redriven(site: &Site, args: &[&str]) -> Result<(String, String)> {
    let args = [&["redrive", "--yes", "--json"], args].concat();
    let (out, error, _) = run(site, &args)?;
    let outcome: Value = serde_json::from_str(&out).with_context(|| format!("{out}{error}"))?;
    let [outcome] = &**outcome["redriven"].as_array().context("a list")? else {
        anyhow::bail!("one letter was meant: {outcome}");
    };
    let text = |field: &str| outcome[field].as_str().unwrap_or_default().to_owned();
    Ok((text("outcome"), text("why")))
}

async fn until_listed(site: &Site, count: usize) -> Result<Vec<(u64, String, String)>> {
    wait::until("the stream to have the dead letters", async || {
        let letters = listed(site, &[])?;
        Ok((letters.len() == count).then_some(letters))
    })
    .await
}

#[tokio::test]
async fn what_was_refused_is_redriven_and_replaced_until_it_is_taken() -> Result<()> {
    let world = World::start().await?;
    let (site, client) = (&world.site, &world.client);
    let (_, error, good) = run(site, &["list"])?;
    assert!(
        !good && error.contains("`presence dlq init` makes it"),
        "{error}"
    );
    let (out, error, good) = run(site, &["init", "--max-bytes", "1MiB"])?;
    assert!(
        good && out.contains("`presence-dlq` was made"),
        "{out}{error}"
    );
    let (out, ..) = run(site, &["init", "--max-age", "1d"])?;
    assert!(out.contains("was there, and keeps 256 MiB"), "{out}");

    client.publish_bytes(CONNECT, b"\xff?".to_vec()).await?;
    let [(first, reason, subject)] = &*until_listed(site, 1).await? else {
        unreachable!("there is one");
    };
    assert_eq!((&**reason, &**subject), ("invalid-json", CONNECT));
    let shown = json(site, &["show", &first.to_string()])?;
    assert_eq!(shown["encoding"], "base64");
    let (out, ..) = run(site, &["show", &first.to_string()])?;
    assert!(out.contains("2 bytes that are not UTF-8"), "{out}");

    for _ in 0..2 {
        let (outcome, why) = redriven(site, &["--reason", "invalid-json"])?;
        assert_eq!(outcome, "refused", "{why}");
        assert!(why.starts_with("invalid-json: "), "{why}");
        let letters = until_listed(site, 1).await?;
        assert!(
            letters[0].0 > *first,
            "its new dead letter is there instead"
        );
    }

    // A connection of an hour ago is not brought back without an option that says so, even if its
    // letter is new.
    let hour_ago = now_ms() - 3_600_000;
    let letter = |subject: &str, reason: &str, payload: Value, at: u64| {
        json!({"subject": subject, "reason": reason, "error": "too many",
            "payload": payload.to_string(), "encoding": "utf8", "timestamp": at, "node": "n"})
    };
    let connect = inputs::connect("12345", "c", hour_ago);
    let connect = letter(CONNECT, "quota-exceeded", connect, now_ms());
    client.publish(DLQ, &connect).await?;
    let number = until_listed(site, 2).await?[1].0.to_string();
    let (updated, online) = (
        "presence.events.user_updated",
        inputs::online("22222", hour_ago),
    );
    for (subject, reason) in [
        (updated, "too-large"),
        (ONLINE, "quota-exceeded"),
        (ONLINE, "too-large"),
    ] {
        client
            .publish(DLQ, &letter(subject, reason, online.clone(), hour_ago))
            .await?;
    }
    until_listed(site, 5).await?;
    assert_eq!(listed(site, &["--since", "30m"])?.len(), 2);
    let (out, _, good) = run(site, &["redrive", "--yes", "--until", "30m"])?;
    assert!(!good);
    for (line, why) in out
        .lines()
        .zip(["none on which a node", "--old", "can make it shorter"])
    {
        assert!(line.contains("  left: ") && line.contains(why), "{line}");
    }
    assert_eq!(out.lines().count(), 3);
    let (outcome, why) = redriven(site, &[&number])?;
    assert!(outcome == "left" && why.contains("--old"), "{why}");
    let (outcome, why) = redriven(site, &[&number, "--old"])?;
    assert_eq!(outcome, "accepted", "{why}");
    until_listed(site, 4).await?;
    let newest = run(site, &["redrive", "--yes", "--old", "--all"])?;
    assert!(newest.0.contains("user_online  accepted"), "{newest:?}");
    let newest = until_listed(site, 3).await?[2].0;
    client.publish(DLQ, &connect).await?;
    let last = until_listed(site, 4).await?[3].0;
    assert!(last > newest);
    redriven(site, &[&last.to_string(), "--old"])?;
    let (_, error, _) = run(site, &["show", &last.to_string()])?;
    assert!(error.contains("there is no dead letter"), "{error}");

    let (_, error, good) = run(site, &["redrive", &number])?;
    assert!(
        !good && error.contains("there is no dead letter"),
        "{error}"
    );
    let (_, error, good) = run(site, &["redrive", "--all"])?;
    assert!(!good && error.contains("--yes"), "{error}");
    let (_, error, good) = run(site, &["redrive", "--yes"])?;
    assert!(!good && error.contains("<NUMBERS|"), "{error}");
    let (_, error, good) = run(site, &["list", "--reason", "nope"])?;
    assert!(
        !good && error.contains("invalid-json, not-an-object"),
        "{error}"
    );
    world.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redrives_at_once_leave_one_letter_of_each_message() -> Result<()> {
    const LETTERS: usize = 20;
    let world = World::start().await?;
    let site = &world.site;
    let (_, error, good) = run(site, &["init"])?;
    ensure!(good, "{error}");
    for number in 0..LETTERS {
        let broken = json!({"userId": number.to_string()}).to_string();
        world.client.publish_bytes(CONNECT, broken).await?;
    }
    let before = until_listed(site, LETTERS).await?;
    let args = ["dlq", "redrive", "--all", "--yes", "--json"];
    let mut runs = Vec::new();
    for _ in 0..3 {
        let mut command = host::command(site, &args)?;
        runs.push(tokio::task::spawn_blocking(move || command.output()));
    }
    let mut outcomes = Vec::new();
    for run in runs {
        let output = wait::guarded("a redrive to end", run).await???;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        let printed: Value = serde_json::from_slice(&output.stdout).context(error)?;
        let redriven = printed["redriven"].as_array().context("a list")?;
        let outcome = |it: &Value| {
            let outcome = it["outcome"].as_str().unwrap_or_default();
            (
                it["number"].as_u64().unwrap_or_default(),
                outcome.to_owned(),
            )
        };
        outcomes.extend(redriven.iter().map(outcome));
    }
    let after = until_listed(site, LETTERS).await?;
    ensure!(after.iter().all(|it| !before.contains(it)), "{after:?}");
    // Each letter was redriven by exactly one of the commands, and once.
    for (number, ..) in before {
        let of_it = outcomes.iter().filter(|it| it.0 == number);
        let refused = of_it.filter(|(_, outcome)| outcome == "refused").count();
        ensure!(refused == 1, "letter {number} was refused {refused} times");
    }
    world.end().await
}

/// Makes it seem that another redrive runs. The subscription shows when a redrive tries to get the
/// turn.
async fn another_redrive(world: &World) -> Result<(jetstream::Context, Subscriber)> {
    let client = async_nats::connect(world.server.url()).await?;
    let context = jetstream::new(client.clone());
    let stream = context.get_stream("presence-dlq").await?;
    let other = stream.create_consumer(pull::Config {
        name: Some("presence-redrive".into()),
        ..pull::Config::default()
    });
    other.await?;
    let asks = "$JS.API.CONSUMER.CREATE.presence-dlq.presence-redrive";
    Ok((context, client.subscribe(asks).await?))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redrive_waits_for_another_and_goes_on_when_that_is_gone() -> Result<()> {
    let world = World::start().await?;
    let site = &world.site;
    let (_, error, good) = run(site, &["init"])?;
    ensure!(good, "{error}");
    world.client.publish_bytes(CONNECT, "{}").await?;
    let before = until_listed(site, 1).await?;
    let (context, mut tries) = another_redrive(&world).await?;
    let stream = context.get_stream("presence-dlq").await?;
    let mut command = host::command(site, &["dlq", "redrive", "--all", "--yes"])?;
    let redrive = tokio::task::spawn_blocking(move || command.output());
    for _ in 0..3 {
        wait::guarded("it to ask for its turn", tries.next()).await?;
    }
    ensure!(listed(site, &[])? == before);
    stream.delete_consumer("presence-redrive").await?;
    let output = wait::guarded("the redrive to end", redrive).await???;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let words = "another redrive of the stream `presence-dlq` runs: waiting until it is done";
    ensure!(said.matches(words).count() == 1, "{said}");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(printed.contains("refused: missing-field"), "{printed}");
    let after = until_listed(site, 1).await?;
    ensure!(after != before, "{after:?}");
    ensure!(stream.consumer_info("presence-redrive").await.is_err());
    world.end().await
}

#[tokio::test]
async fn an_event_that_a_plugin_failed_on_is_decided_again_and_brings_back_nobody() -> Result<()> {
    let world = World::start_with(|mut site| {
        site.set("tenant.prefix", "acme")?;
        site.set_pipeline(&[
            ("contacts", None),
            ("picky", Some(toml! { user = "12345" })),
        ])?;
        site.set("engine.retry_ms", 3_600_000)?;
        site.set("engine.retry_ms_max", 3_600_000)?;
        site.write_directory(r#"{"contacts": {"12345": ["67890"]}}"#)?;
        site.write_plugin("picky", component::load("fixtures/picky")?)?;
        site.set_stage("picky", "grants", vec!["widen"])?;
        Ok(site)
    })
    .await?;
    let acme = |subject: &str| format!("acme.{subject}");
    let client = world.client.clone();
    let mut tape = client.record("acme.presence.events.>").await?;
    assert!(
        run(&world.site, &["init"])?
            .0
            .contains("`acme-presence-dlq`")
    );
    client
        .input(&acme(CONNECT), inputs::connect("12345", "c1", now_ms()))
        .await?;
    let letters = until_listed(&world.site, 1).await?;
    assert_eq!(letters[0].2, acme("presence.events.user_online"));
    assert_eq!(listed(&world.site, &["--plugin", "picky"])?, letters);
    assert_eq!(listed(&world.site, &["--plugin", "contacts"])?, []);
    // It fails again, and that is a dead letter, too.
    let (outcome, why) = redriven(&world.site, &["--plugin", "picky"])?;
    assert_eq!(outcome, "accepted", "{why}");
    let again = until_listed(&world.site, 1).await?;
    assert!(again[0].0 > letters[0].0);

    let bye = inputs::disconnect("12345", "c1", now_ms(), "client_disconnect");
    client.input(&acme(DISCONNECT), bye).await?;
    let (outcome, why) = redriven(&world.site, &["--all"])?;
    assert_eq!(outcome, "stale", "{why}");
    assert_eq!(until_listed(&world.site, 0).await?, []);
    client
        .input(&acme(CONNECT), inputs::connect("22222", "c1", now_ms()))
        .await?;
    tape.next("another user", |seen| seen.text("userId") == "22222")
        .await?;
    let seen = tape
        .seen()
        .iter()
        .filter(|seen| seen.text("userId") == "12345");
    let seen: Vec<_> = seen.map(|seen| seen.text("type")).collect();
    assert_eq!(
        seen,
        ["user_online", "user_offline"],
        "each is announced once"
    );
    world.end().await
}

#[tokio::test]
async fn an_operator_redrives_and_an_auditor_reads_with_the_permissions_of_the_example()
-> Result<()> {
    let server = permissions::server().await?;
    let site_of = |user: &str| permissions::as_user(Site::new(&server.url())?, user);
    let processor = site_of("processor")?;
    let host = Host::start(&processor).await?;
    let (operator, auditor) = (site_of("operator")?, site_of("auditor")?);
    let (_, error, good) = run(&operator, &["init"])?;
    assert!(good, "{error}");
    let transport = permissions::connect(&server, "transport").await?;
    transport.publish(CONNECT, "?".into()).await?;
    transport.flush().await?;
    let letters = until_listed(&auditor, 1).await?;
    assert_eq!(redriven(&operator, &["--all"])?.0, "refused");
    assert!(until_listed(&auditor, 1).await?[0].0 > letters[0].0);
    let (_, error, good) = run(&auditor, &["init"])?;
    assert!(!good, "{error}");
    host.stop().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn letters_of_a_stream_that_is_made_anew_are_not_those_that_were_meant() -> Result<()> {
    let world = World::start().await?;
    let site = &world.site;
    let (_, error, good) = run(site, &["init"])?;
    ensure!(good, "{error}");
    world.client.publish_bytes(CONNECT, "{}").await?;
    until_listed(site, 1).await?;
    let (context, mut tries) = another_redrive(&world).await?;
    let mut command = host::command(site, &["dlq", "redrive", "--all", "--yes"])?;
    let redrive = tokio::task::spawn_blocking(move || command.output());
    wait::guarded("it to ask for its turn", tries.next()).await?;
    context.delete_stream("presence-dlq").await?;
    let (_, error, good) = run(site, &["init"])?;
    ensure!(good, "{error}");
    world.client.publish_bytes(CONNECT, "[]").await?;
    let anew = until_listed(site, 1).await?;
    let output = wait::guarded("the redrive to end", redrive).await???;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(printed.contains("gone: "), "{printed}");
    ensure!(listed(site, &[])? == anew);
    world.end().await
}

#[tokio::test]
async fn what_becomes_of_a_letter_is_told_though_it_cant_be_removed() -> Result<()> {
    let world = World::start().await?;
    let site = &world.site;
    let client = async_nats::connect(world.server.url()).await?;
    let own = jetstream::stream::Config {
        name: "own".into(),
        subjects: vec![DLQ.into()],
        deny_delete: true,
        ..jetstream::stream::Config::default()
    };
    jetstream::new(client).create_stream(own).await?;
    world.client.publish_bytes(CONNECT, "{}").await?;
    wait::until("the letter", async || {
        let (out, ..) = run(site, &["list", "--stream", "own"])?;
        Ok(out.contains("missing-field").then_some(()))
    })
    .await?;
    let args = ["redrive", "1", "--yes", "--json", "--stream", "own"];
    let (out, error, good) = run(site, &args)?;
    assert!(
        !good && error.contains("can't remove dead letter 1"),
        "{error}"
    );
    let printed: Value = serde_json::from_str(&out)?;
    assert_eq!(printed["redriven"][0]["outcome"], "refused");
    world.end().await
}

#[tokio::test]
async fn a_redrive_whose_output_nobody_reads_redrives_all_the_same() -> Result<()> {
    const LETTERS: usize = 5;
    let world = World::start().await?;
    let site = &world.site;
    let (_, error, good) = run(site, &["init"])?;
    ensure!(good, "{error}");
    // A table cell of this width doesn't cause a panic.
    let user = "u".repeat(70_000);
    for _ in 0..LETTERS {
        let refused = inputs::connect(&user, "c1", now_ms());
        world.client.publish(CONNECT, &refused).await?;
    }
    let before = until_listed(site, LETTERS).await?;
    let (printed, error, good) = run(site, &["list"])?;
    ensure!(
        good && printed.lines().all(|line| line.len() < 1_000),
        "{error}"
    );
    let (reader, writer) = std::io::pipe()?;
    drop(reader);
    let mut command = host::command(site, &["dlq", "redrive", "--all", "--yes"])?;
    let output = command.stdout(writer).output()?;
    // All were refused again.
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let after = until_listed(site, LETTERS).await?;
    ensure!(after.iter().all(|it| !before.contains(it)), "{after:?}");
    world.end().await
}
