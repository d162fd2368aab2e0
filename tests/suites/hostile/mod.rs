//! Hostile plugins. Each is swapped into a running node, misbehaves, and is ended by a limit that
//! the node names. Meanwhile, a quiet user's events pass. All of this is on one node, which goes
//! on.

mod calls;
mod loads;
mod rule;
mod state;

use anyhow::{Context, Result, ensure};
use presence_tests::client::now_ms;
use serde_json::json;

use crate::inputs::{self, CONNECT, DISCONNECT, DLQ};
use crate::world::World;
use rule::{Rule, VICTIM_BYTES, filter};

/// The user whom nothing may disturb, and the viewers of this user.
const QUIET: &str = "12345";
const VIEWERS: [&str; 2] = ["22222", "67890"];

/// The number of other users, all in one group; and the number of groups with one user in all of
/// them.
const CROWD: usize = 200_000;
const GROUPS: usize = 2_000;

/// A node that runs one hostile plugin after another.
struct Arena {
    world: World,
    victims: usize,
}

impl Arena {
    async fn start() -> Result<Self> {
        let first = Rule::default().bytes()?;
        let world = World::start_with(|mut site| {
            site.set_pipeline(&[
                ("contacts", None),
                ("groups", None),
                ("blocklist", None),
                ("rule", None),
            ])?;
            for (key, value) in [
                ("engine.workers", 1),
                // The behaviour of each call has to end it, on any machine, and not the deadline.
                ("engine.deadline_ms", 60_000),
                ("engine.retry_ms", 3_600_000),
                ("engine.retry_ms_max", 3_600_000),
                // A user on whom the plugin fails must not put it into quarantine for the others.
                ("engine.quarantine_failures", 1_000_000),
                ("plugins.file_bytes_max", 4_194_304),
            ] {
                site.set(key, value)?;
            }
            site.write_directory_value(&directory())?;
            site.write_plugin("rule", first)?;
            Ok(site)
        })
        .await?;
        let mut arena = Self { world, victims: 0 };
        arena.quiet_is_undisturbed().await?;
        Ok(arena)
    }

    /// Puts a plugin in force.
    async fn swap_in(&mut self, bytes: &[u8]) -> Result<()> {
        let from = self.world.host.log_len();
        self.world.site.write_plugin("rule", bytes)?;
        let host = &mut self.world.host;
        let line = host.wait_for_log(from, &["pipeline", "swapped"]).await?;
        ensure!(!line.contains("not swapped"), "{line}");
        Ok(())
    }

    /// Checks that the node refuses a plugin, in these words.
    async fn refuses(&mut self, bytes: &[u8], words: &str) -> Result<()> {
        let from = self.world.host.log_len();
        self.world.site.write_plugin("rule", bytes)?;
        let host = &mut self.world.host;
        let line = host.wait_for_log(from, &["pipeline", "swapped"]).await?;
        ensure!(line.contains("not swapped"), "it was taken: {line}");
        ensure!(line.contains(words), "`{words}` is not in: {line}");
        ensure!(line.len() < 4_096, "it is refused in {} bytes", line.len());
        self.quiet_is_undisturbed().await
    }

    /// A user whom the plugin treats badly comes online. Returns the user's id.
    async fn victim(&mut self) -> Result<String> {
        let victim = format!("m-{:05}", self.victims);
        self.victims += 1;
        ensure!(victim.len() == VICTIM_BYTES, "{victim}");
        let body = inputs::connect(&victim, "c1", now_ms());
        self.world.client.publish(CONNECT, &body).await?;
        Ok(victim)
    }

    /// A victim goes offline.
    async fn gone(&mut self, victim: &str) -> Result<()> {
        let body = inputs::disconnect(victim, "c1", now_ms(), "client_disconnect");
        self.world.client.input(DISCONNECT, body).await
    }

    /// Checks that a call about a victim ends with these words in its dead letter, and that the
    /// quiet user isn't disturbed.
    async fn fails(&mut self, words: &str) -> Result<()> {
        self.quiet_is_undisturbed().await?;
        let victim = self.victim().await?;
        self.quiet_is_undisturbed().await?;
        let error = self.error_about(&victim).await?;
        ensure!(error.contains(words), "`{words}` is not in: {error}");
        ensure!(error.len() < 4_096, "it fails in {} bytes", error.len());
        self.gone(&victim).await
    }

    /// The error in the first dead letter about a user.
    async fn error_about(&mut self, user: &str) -> Result<String> {
        let about = format!("\"userId\":\"{user}\"");
        let mut error = None;
        let tape = &mut self.world.tape;
        tape.until(&format!("a dead letter about {user}"), |seen| {
            let mut letters = seen.iter().rev().filter(|seen| seen.subject == DLQ);
            let letter = letters.find(|seen| seen.text("payload").contains(&about));
            error = letter.map(|letter| letter.text("error").to_owned());
            letter.is_some_and(|letter| letter.text("reason") == "plugin-failed")
        })
        .await?;
        error.context("a dead letter has an error")
    }

    /// Checks that the quiet user comes and goes, seen by exactly those who may see them.
    async fn quiet_is_undisturbed(&mut self) -> Result<()> {
        let seen = self.world.probe(QUIET).await?;
        ensure!(seen.visible_to() == VIEWERS, "{:?}", seen.body);
        Ok(())
    }

    /// Checks that the node still works, and stops in order.
    async fn end(mut self) -> Result<()> {
        let last = Rule::default().with_manifest_key("version", json!("9.0.0"));
        self.swap_in(&last.bytes()?).await?;
        self.quiet_is_undisturbed().await?;
        self.world.host.ready().await?;
        self.world.end().await
    }
}

/// The contract's directory, a crowd, and a user who is in very many groups.
fn directory() -> serde_json::Value {
    let crowd: Vec<_> = (0..CROWD).map(|number| format!("crowd-{number}")).collect();
    let mut groups = serde_json::Map::new();
    groups.insert("team-a".into(), json!([QUIET, "22222"]));
    groups.insert("crowd".into(), json!(crowd));
    for number in 0..GROUPS {
        let members: Vec<_> = crowd.iter().skip(number).step_by(GROUPS).collect();
        let mut members = json!(members);
        if let Some(members) = members.as_array_mut() {
            members.push("joiner".into());
        }
        groups.insert(format!("club-{number}"), members);
    }
    json!({
        "contacts": {QUIET: ["67890", "11111"]},
        "groups": groups,
        "blocks": {QUIET: ["11111"]},
    })
}

#[tokio::test]
async fn calls_that_misbehave_are_ended_by_a_limit_that_is_named() -> Result<()> {
    let mut arena = Arena::start().await?;
    for case in calls::cases() {
        let tried = async {
            arena.swap_in(&case.rule.bytes()?).await?;
            arena.fails(case.ends).await
        };
        tried.await.with_context(|| case.what.to_owned())?;
    }
    arena.end().await
}

#[tokio::test]
async fn plugins_that_are_too_much_are_refused_with_what_is_wrong() -> Result<()> {
    let mut arena = Arena::start().await?;
    for case in loads::cases()? {
        let tried = arena.refuses(&case.bytes, case.refused).await;
        tried.with_context(|| case.what.to_owned())?;
    }
    arena.end().await
}

#[tokio::test]
async fn work_without_fuel_is_ended_by_the_deadline() -> Result<()> {
    let mut arena = Arena::start().await?;
    let from = arena.world.host.log_len();
    arena
        .world
        .site
        .set("engine.fuel", 1_000_000_000_000_u64 as i64)?;
    arena.world.site.set("engine.deadline_ms", 300)?;
    let host = &mut arena.world.host;
    host.wait_for_log(from, &["pipeline swapped"]).await?;
    // A unit of fuel moves 32 MiB.
    let moves = "(drop (memory.grow (i32.const 1000)))
        (loop (memory.copy (i32.const 0) (i32.const 33000000) (i32.const 32000000)) (br 0))";
    for rule in [filter(rule::forever("")), filter(moves)] {
        arena.swap_in(&rule.bytes()?).await?;
        arena.fails("took longer than 300 ms").await?;
    }
    arena.world.host.ready().await?;
    arena.world.end().await
}

#[tokio::test]
async fn a_plugin_that_compiles_too_long_is_given_up_and_the_next_one_has_its_turn() -> Result<()> {
    let mut arena = Arena::start().await?;
    let from = arena.world.host.log_len();
    arena.world.site.set("plugins.compile_timeout_ms", 5_000)?;
    let host = &mut arena.world.host;
    host.wait_for_log(from, &["configuration reloaded"]).await?;
    // Each function is within the bounds, and takes seconds to compile. A quick plugin takes a
    // fraction of the limit, even while the slow ones are still being compiled.
    let locals = "i32 ".repeat(300);
    let ifs: String = (0..3_000)
        .map(|number| {
            let local = number % 300;
            format!("(if (local.get 0) (then (local.set {local} (i32.const 1))))")
        })
        .collect();
    let uses: String = (0..300)
        .map(|local| format!("(drop (local.get {local}))"))
        .collect();
    let slow = |version: usize| {
        let functions = format!("(func (local {locals}) {ifs} {uses})").repeat(60);
        let rule = Rule {
            module: functions,
            ..Rule::default()
        };
        // Each run has another version: the result of a slow compilation is kept once it ends.
        let version = format!("{version}.0.{}", now_ms());
        rule.with_manifest_key("version", json!(version)).bytes()
    };
    let words = "takes too long to compile: more than 5 s ([plugins] compile_timeout_ms)";
    // More slow plugins than are compiled at a time, each followed by a quick one.
    for version in 1..=2 {
        arena.refuses(&slow(version)?, words).await?;
        let quick = Rule::default().with_manifest_key("version", json!(format!("{version}.1.0")));
        arena.swap_in(&quick.bytes()?).await?;
        arena.quiet_is_undisturbed().await?;
    }
    arena.world.host.ready().await?;
    arena.world.end().await
}
