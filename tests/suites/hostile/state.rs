//! Plugins that are hostile over several calls, or while they are replaced.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use presence_tests::client::now_ms;
use serde_json::json;

use super::rule::{Rule, enricher, filter, forever};
use super::{Arena, QUIET};
use crate::inputs::{self, CONNECT, FILTERED_OFFLINE, FILTERED_ONLINE};

/// Writes a text to the log, at the level `info`.
fn log(place: usize, bytes: usize) -> String {
    format!("(call $log (i32.const 2) (i32.const {place}) (i32.const {bytes}))")
}

/// How many lines of the node's log contain a text.
fn lines(arena: &Arena, text: &str) -> usize {
    let log = arena.world.host.process.stderr();
    log.iter().filter(|line| line.contains(text)).count()
}

#[tokio::test]
async fn a_rule_that_grows_a_little_at_each_call_is_begun_afresh_before_it_fails() -> Result<()> {
    let mut arena = Arena::start().await?;
    // It takes 1 MiB per call, and traps if it doesn't get it. It logs when it begins.
    let grows = Rule {
        module: r#"(global $began (mut i32) (i32.const 0)) (data (i32.const 512) "begun afresh")"#
            .into(),
        ..filter(format!(
            "(if (i32.eqz (global.get $began))
               (then (global.set $began (i32.const 1)) {}))
             (if (i32.eq (memory.grow (i32.const 16)) (i32.const -1)) (then unreachable))",
            log(512, 12)
        ))
    };
    arena.swap_in(&grows.bytes()?).await?;
    let mut last = String::new();
    for _ in 0..150 {
        last = arena.victim().await?;
    }
    // The last user was decided on, like all before.
    arena.world.all_about(&last).await?;
    arena.quiet_is_undisturbed().await?;
    let letters = arena.world.tape.seen();
    let letters = letters
        .iter()
        .filter(|seen| seen.subject == inputs::DLQ)
        .count();
    ensure!(letters == 0, "it failed {letters} times");
    // Two or three instances for 150 MiB, of at most 48 each.
    let begun = lines(&arena, "begun afresh");
    ensure!((3..=5).contains(&begun), "begun {begun} times");
    arena.end().await
}

#[tokio::test]
async fn an_enricher_that_hoards_in_its_state_fails_alone_and_loses_it() -> Result<()> {
    let mut arena = Arena::start().await?;
    let hoards = Rule {
        exports: STATE.into(),
        module: with_state("", ""),
        ..enricher("(if (i32.eq (memory.grow (i32.const 64)) (i32.const -1)) (then unreachable))")
    };
    arena.swap_in(&hoards.bytes()?).await?;
    let mut victims = Vec::new();
    for _ in 0..20 {
        victims.push(arena.victim().await?);
    }
    let about_last = victims.last().context("a victim")?;
    arena.world.all_about(about_last).await?;
    let seen = arena.world.tape.seen();
    let letters = seen.iter().filter(|seen| seen.subject == inputs::DLQ);
    let errors: Vec<_> = letters
        .map(|letter| letter.text("error").to_owned())
        .collect();
    // In every 16 calls, the one that gets no more memory fails.
    ensure!(errors.len() == 1, "{errors:?}");
    ensure!(
        errors[0].contains("refused more than 67108864 bytes of memory"),
        "{errors:?}"
    );
    arena.end().await
}

/// The further exports of a stateful enricher.
const STATE: &str = r#"
    (type $state' (record (field "version" u32) (field "data" (list u8))))
    (export $state "state" (type $state'))
    (func (export "save") (result $state) (canon lift (core func $rule "save")
      (memory $libc "memory") (realloc (func $libc "realloc"))))
    (func (export "restore") (param "state" $state) (result (result (error string)))
      (canon lift (core func $rule "restore")
        (memory $libc "memory") (realloc (func $libc "realloc"))))"#;

/// The functions that save and restore a state. They begin with this code.
fn with_state(save: &str, restore: &str) -> String {
    format!(
        r#"(func (export "save") (result i32) {save} (i32.const 128))
        (func (export "restore") (param i32 i32 i32) (result i32) {restore} (i32.const 128))"#
    )
}

#[tokio::test]
async fn a_state_that_can_not_be_handed_over_is_lost_and_nothing_else() -> Result<()> {
    let spin = forever("");
    let large = "(drop (memory.grow (i32.const 40)))
        (i32.store (i32.const 64) (i32.const 1)) (i32.store (i32.const 68) (i32.const 0))
        (i32.store (i32.const 72) (i32.const 2000000)) (return (i32.const 64))";
    let giant = "(drop (memory.grow (i32.const 400)))
        (i32.store (i32.const 68) (i32.const 0))
        (i32.store (i32.const 72) (i32.const 20000000)) (return (i32.const 64))";
    let outside = "(i32.store (i32.const 68) (i32.const 65000))
        (i32.store (i32.const 72) (i32.const 20000)) (return (i32.const 64))";
    let refuses =
        "(i32.store8 (i32.const 64) (i32.const 1)) (i32.store (i32.const 68) (i32.const 512))
        (i32.store (i32.const 72) (i32.const 5)) (return (i32.const 64))";
    let mut arena = Arena::start().await?;
    for (what, save, restore, words) in [
        (
            "a save that traps",
            "unreachable",
            "",
            "trapped: wasm trap: wasm `unreachable`",
        ),
        (
            "a save that loops",
            &*spin,
            "",
            "used up its fuel of 100000000",
        ),
        (
            "a save of too much",
            large,
            "",
            "has a state of 2000000 bytes, and 1048576 may be handed over",
        ),
        (
            "a save of far too much",
            giant,
            "",
            "handed over more than 8388608 bytes at once",
        ),
        (
            "a save from outside its memory",
            outside,
            "",
            "out of bounds",
        ),
        (
            "a restore that traps",
            "",
            "unreachable",
            "trapped: wasm trap: wasm `unreachable`",
        ),
        (
            "a restore that loops",
            "",
            &*spin,
            "used up its fuel of 100000000",
        ),
        (
            "a restore that refuses",
            "",
            refuses,
            "refuses the state: never",
        ),
    ] {
        let rule = |save: &str, restore: &str, version: &str| {
            Rule {
                exports: STATE.into(),
                module: format!(
                    r#"(data (i32.const 512) "never") {}"#,
                    with_state(save, restore)
                ),
                ..enricher("")
            }
            .with_manifest_key("version", json!(version))
        };
        arena.swap_in(&rule(save, "", "1.0.0").bytes()?).await?;
        // This makes an instance.
        arena.quiet_is_undisturbed().await?;
        let from = arena.world.host.log_len();
        arena.swap_in(&rule("", restore, "2.0.0").bytes()?).await?;
        let host = &mut arena.world.host;
        let line = host
            .wait_for_log(from, &["can't take over the state"])
            .await;
        let line = line.context(what)?;
        ensure!(line.contains(words), "{what}: {line}");
        arena.quiet_is_undisturbed().await.context(what)?;
    }
    arena.end().await
}

#[tokio::test]
async fn a_flood_of_log_lines_is_cut_off_and_counted() -> Result<()> {
    let mut arena = Arena::start().await?;
    let floods = Rule {
        module: r#"(data (i32.const 512) "flood\0a\1b[2Jflood")"#.into(),
        ..filter(super::rule::times(1_000, &log(512, 15)))
    };
    arena.swap_in(&floods.bytes()?).await?;
    for _ in 0..40 {
        let victim = arena.victim().await?;
        arena.world.all_about(&victim).await?;
    }
    let left_out = "presence_plugin_log_lines_left_out_total";
    let host = &arena.world.host;
    host.until_metric(left_out, &["plugin=\"rule\""], |n| n > 0.0)
        .await?;
    let log = host.process.stderr();
    let written: Vec<_> = log.iter().filter(|line| line.contains("flood")).collect();
    // At most 16 lines per call, and 200 in ten seconds.
    ensure!(
        written.len() >= 16 && written.len() < 640,
        "{} lines",
        written.len()
    );
    ensure!(
        !written.iter().any(|line| line.contains('\u{1b}')),
        "{written:?}"
    );
    arena.quiet_is_undisturbed().await?;
    arena.end().await
}

#[tokio::test]
async fn an_answer_that_is_another_at_each_call_breaks_no_promise() -> Result<()> {
    let mut arena = Arena::start().await?;
    // Admits all contacts of the quiet user at every other call.
    let fickle = Rule {
        module: r#"(global $turn (mut i32) (i32.const 0)) (data (i32.const 512) "12345")"#.into(),
        ..filter(
            "(global.set $turn (i32.xor (global.get $turn) (i32.const 1)))
             (if (global.get $turn)
               (then (local.set 3 (call $contacts (i32.const 512) (i32.const 5)))))",
        )
    }
    .with_manifest_key("effect", json!("widen"));
    let from = arena.world.host.log_len();
    arena
        .world
        .site
        .set_stage("rule", "grants", vec!["widen"])?;
    let host = &mut arena.world.host;
    host.wait_for_log(from, &["pipeline swapped"]).await?;
    arena.swap_in(&fickle.bytes()?).await?;
    for round in 0..20 {
        let victim = arena.victim().await?;
        // Further messages about the same user, between which the decision may be repeated.
        let body = inputs::heartbeat(&victim, "c1", now_ms());
        arena.world.client.input(inputs::HEARTBEAT, body).await?;
        let body = inputs::connect(&victim, "c2", now_ms());
        arena.world.client.input(CONNECT, body).await?;
        if round % 4 == 0 {
            arena.quiet_is_undisturbed().await?;
        }
        let body = inputs::disconnect(&victim, "c2", now_ms(), "client_disconnect");
        arena.world.client.input(inputs::DISCONNECT, body).await?;
        arena.gone(&victim).await?;
        let mut told = BTreeSet::new();
        for seen in arena.world.all_about(&victim).await? {
            for viewer in seen.visible_to() {
                let is_news = match &*seen.subject {
                    FILTERED_ONLINE => told.insert(viewer.to_owned()),
                    FILTERED_OFFLINE => told.remove(viewer),
                    _ => true,
                };
                ensure!(is_news, "{victim}: {viewer} is told twice: {:?}", seen.body);
            }
        }
        ensure!(told.is_empty(), "{victim} is still shown to {told:?}");
    }
    arena.end().await
}

#[tokio::test]
async fn a_filter_that_says_it_narrows_adds_nobody() -> Result<()> {
    let mut arena = Arena::start().await?;
    let adds = filter("(local.set 3 (call $everyone))");
    arena.swap_in(&adds.bytes()?).await?;
    let victim = arena.victim().await?;
    arena.gone(&victim).await?;
    let shown = arena.world.all_about(&victim).await?;
    let shown: Vec<_> = shown
        .iter()
        .filter(|seen| seen.subject == FILTERED_ONLINE)
        .collect();
    ensure!(shown.is_empty(), "{shown:?}");
    // An enricher can't publish what is never published, either.
    let leaks = Rule {
        module: r#"(data (i32.const 512) "socketId") (data (i32.const 528) "leaked")"#.into(),
        ..enricher(
            "(i32.store (i32.const 128) (i32.const 144)) (i32.store (i32.const 132) (i32.const 1))
             (i32.store (i32.const 144) (i32.const 512)) (i32.store (i32.const 148) (i32.const 8))
             (i32.store8 (i32.const 152) (i32.const 1)) (i32.store8 (i32.const 156) (i32.const 0))
             (i32.store (i32.const 160) (i32.const 528)) (i32.store (i32.const 164) (i32.const 6))
             (return (i32.const 128))",
        )
    };
    arena.swap_in(&leaks.bytes()?).await?;
    let victim = arena.victim().await?;
    arena.gone(&victim).await?;
    let about = arena.world.all_about(&victim).await?;
    let leaked = about
        .iter()
        .find(|seen| seen.body.to_string().contains("socketId"));
    ensure!(leaked.is_none(), "{leaked:?}");
    ensure!(about.len() >= 2, "{about:?} about {victim}, beside {QUIET}");
    arena.end().await
}
