//! An operator asks why a viewer can or can't see a user.

use anyhow::Result;
use presence_tests::client::now_ms;
use presence_tests::{component, host, wait};
use serde_json::{Value, json};
use toml::toml;

use crate::inputs::{self, CONNECT, DISCONNECT, DLQ, FILTERED_ONLINE};
use crate::world::World;

const EXPLAIN: &str = "presence.explain";

async fn explain(world: &World, viewer: &str, user: &str) -> Result<Value> {
    let body = json!({"viewerId": viewer, "userId": user}).to_string();
    world.client.request(EXPLAIN, body).await
}

/// Each stage's plugin, and what it did.
fn turns(answer: &Value) -> Vec<(&str, &str)> {
    let stages = answer["stages"].as_array().into_iter().flatten();
    stages
        .map(|stage| {
            let field = |name: &str| stage[name].as_str().unwrap_or_default();
            assert_eq!(field("sha256").len(), 64, "{stage}");
            assert!(!field("version").is_empty() && !field("role").is_empty());
            (field("plugin"), field("turn"))
        })
        .collect()
}

#[tokio::test]
async fn it_is_off_unless_turned_on_and_turned_on_while_it_runs() -> Result<()> {
    let mut world = World::start().await?;
    let refused = explain(&world, "67890", "12345").await?;
    assert_eq!(refused["reason"], "not-enabled", "{refused}");
    assert!(
        refused["error"].to_string().contains("[explain]"),
        "{refused}"
    );
    let output = host::run(&world.site, &["explain", "67890", "12345"])?;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr)?.contains("[explain]"));

    world.site.set("explain.enabled", true)?;
    wait::until("explanations to be given", async || {
        let answer = explain(&world, "67890", "12345").await?;
        Ok((answer["ok"] != false).then_some(()))
    })
    .await?;
    for (body, reason, field) in [
        ("{", "invalid-json", Value::Null),
        ("7", "not-an-object", Value::Null),
        (r#"{"viewerId":"v"}"#, "missing-field", "userId".into()),
        (
            r#"{"viewerId":1,"userId":"u"}"#,
            "invalid-field",
            "viewerId".into(),
        ),
        (
            r#"{"viewerId":"v","userId":""}"#,
            "invalid-field",
            "userId".into(),
        ),
    ] {
        let answer = world.client.request(EXPLAIN, body).await?;
        assert_eq!(answer["reason"], reason, "{answer}");
        assert_eq!(
            answer.get("field").unwrap_or(&Value::Null),
            &field,
            "{answer}"
        );
    }
    world.end().await
}

#[tokio::test]
async fn it_tells_stage_by_stage_who_admitted_and_who_removed_the_viewer() -> Result<()> {
    let mut world = World::start_with(|site| site.with("explain.enabled", true)).await?;
    let unknown = explain(&world, "67890", "12345").await?;
    assert_eq!(unknown["event"]["basis"], "hypothetical", "{unknown}");
    assert_eq!(unknown["status"], "offline");
    assert_eq!(unknown["outcome"]["maySee"], true);
    assert_eq!(unknown["outcome"]["told"], false);

    let connect = inputs::connect("12345", "c", now_ms());
    world.client.input(CONNECT, connect).await?;
    for (viewer, expected) in [
        ("67890", ["admitted", "kept", "kept", "kept"]),
        ("11111", ["admitted", "kept", "removed", "absent"]),
        ("22222", ["absent", "admitted", "kept", "kept"]),
        ("stranger", ["absent", "absent", "absent", "absent"]),
    ] {
        let answer = explain(&world, viewer, "12345").await?;
        let plugins = ["contacts", "groups", "blocklist", "redact"];
        let expected: Vec<_> = plugins.into_iter().zip(expected).collect();
        assert_eq!(turns(&answer), expected, "{answer}");
        let sees = expected.last().is_some_and(|(_, turn)| *turn == "kept");
        let outcome = &answer["outcome"];
        assert_eq!(
            (&outcome["maySee"], &outcome["told"]),
            (&json!(sees), &json!(sees))
        );
        assert_eq!(outcome["standing"], "settled");
        assert_eq!(
            (&answer["generation"], &answer["status"]),
            (&json!(1), &json!("online"))
        );
        let rendition = json!({"keys": ["device"], "lastSeen": true});
        let rendition = if sees { rendition } else { Value::Null };
        assert_eq!(outcome.get("rendition").unwrap_or(&Value::Null), &rendition);
    }
    let themself = explain(&world, "12345", "12345").await?;
    assert_eq!(themself["outcome"]["maySee"], false);
    assert!(
        themself["outcome"]["why"]
            .to_string()
            .contains("own audience")
    );

    let bye = inputs::disconnect("12345", "c", now_ms(), "client_disconnect");
    world.client.input(DISCONNECT, bye).await?;
    let gone = explain(&world, "67890", "12345").await?;
    assert_eq!(gone["event"]["type"], "user_offline", "{gone}");
    assert_eq!(gone["event"]["basis"], "last-event");
    let published = world.all_about("12345").await?;
    let told = published
        .iter()
        .filter(|seen| seen.subject == FILTERED_ONLINE);
    assert_eq!(told.count(), 1, "explaining tells nobody");
    world.end().await
}

#[tokio::test]
async fn the_command_tells_a_story_with_the_plugins_own_reasons() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[
            ("contacts", None),
            (
                "reader",
                Some(toml! { steps = [{ setting = "quiet" }, { contains = "67890" }] }),
            ),
            ("picky", Some(toml! { user = "22222" })),
            ("redact", None),
        ])?;
        for fixture in ["reader", "picky"] {
            site.write_plugin(fixture, component::load(&format!("fixtures/{fixture}"))?)?;
            site.set_stage(fixture, "grants", vec!["widen"])?;
        }
        site.with("explain.enabled", true)
    })
    .await?;
    let connect = inputs::connect("12345", "c", now_ms());
    world.client.input(CONNECT, connect).await?;
    // The command has a connection of its own.
    world.tape.hosts(FILTERED_ONLINE, 1).await?;
    let run = |args: &[&str]| -> Result<(String, Option<i32>)> {
        let output = host::run(&world.site, args)?;
        assert_eq!(String::from_utf8(output.stderr)?, "");
        Ok((String::from_utf8(output.stdout)?, output.status.code()))
    };
    let (story, code) = run(&["explain", "67890", "12345"])?;
    assert_eq!(code, Some(0));
    for words in [
        "May 67890 see 12345? yes.",
        "12345 is online",
        "generation 1",
        "1. contacts",
        "admits 67890",
        "2. reader",
        "says of 12345: setting: Ok(None)",
        "says of 12345: contains: true",
        "4. redact",
        "67890 has been told that 12345 is online.",
    ] {
        assert!(story.contains(words), "{words} in:\n{story}");
    }
    let (story, _) = run(&["explain", "67890", "22222"])?;
    for words in [
        "May 67890 see 22222? no.",
        "Nothing is known about 22222",
        "(filter) failed: trapped: panicked at ",
        "plugin.rs:20:9: this user is the one",
        "4. redact",
        "was not asked",
        "Why: plugin `picky`",
    ] {
        assert!(story.contains(words), "{words} in:\n{story}");
    }
    // While it is pending who may see a user, both commands say so, and viewers learn nothing.
    let connect = inputs::connect("22222", "c", now_ms());
    world.client.input(CONNECT, connect).await?;
    world.tape.hosts(DLQ, 1).await?;
    let (story, _) = run(&["explain", "67890", "22222"])?;
    let (table, _) = run(&["query", "67890", "22222", "nobody"])?;
    let pending = "The decision who may see 22222 is pending: nobody new is told until it has been";
    assert!(story.contains("not decided"), "{story}");
    for page in [&story, &table] {
        assert!(page.contains(pending), "{page}");
        assert!(
            page.contains("a query by 67890 shows 22222 as offline"),
            "{page}"
        );
    }
    assert_eq!(table.matches("pending").count(), 1, "{table}");
    let body = json!({"viewerId": "67890", "userIds": ["22222", "nobody"]}).to_string();
    let answer = world.client.request("presence.query", body).await?;
    assert_eq!(
        answer["users"],
        json!([
            {"userId": "22222", "status": "offline"},
            {"userId": "nobody", "status": "offline"},
        ])
    );
    let (json, _) = run(&["explain", "67890", "12345", "--json"])?;
    let answer: Value = serde_json::from_str(&json)?;
    assert_eq!(turns(&answer)[1], ("reader", "kept"));
    let (help, _) = run(&["explain", "--help"])?;
    assert!(help.contains("Example:"), "{help}");
    assert_eq!(
        host::run(&world.site, &["explain", "67890"])?.status.code(),
        Some(2)
    );
    world.end().await
}
