//! `presence plugin`, as an author uses it: in each language, from an empty folder to a filter that
//! decides in a running host.

use std::fs;

use anyhow::{Context, Result};
use presence_tests::client::now_ms;
use presence_tests::component;
use presence_tests::kit::Kit;
use serde_json::{Value, json};

use crate::inputs::{self, CONNECT, FILTERED_OFFLINE, FILTERED_ONLINE};
use crate::world::World;

#[tokio::test]
async fn rust_goes_from_new_to_a_running_filter() -> Result<()> {
    from_new_to_running("rust", "cargo test --quiet").await
}

#[tokio::test]
async fn typescript_goes_from_new_to_a_running_filter() -> Result<()> {
    from_new_to_running("typescript", "npm test").await
}

#[tokio::test]
async fn python_goes_from_new_to_a_running_filter() -> Result<()> {
    from_new_to_running("python", "python3 -m unittest").await
}

#[tokio::test]
async fn c_goes_from_new_to_a_running_filter() -> Result<()> {
    from_new_to_running("c", "make test").await
}

#[test]
fn rust_has_a_redactor_and_an_enricher() -> Result<()> {
    other_roles("rust", "cargo test --quiet")
}

#[test]
fn typescript_has_a_redactor_and_an_enricher() -> Result<()> {
    other_roles("typescript", "npm test")
}

#[test]
fn python_has_a_redactor_and_an_enricher() -> Result<()> {
    other_roles("python", "python3 -m unittest")
}

#[test]
fn c_has_a_redactor_and_an_enricher() -> Result<()> {
    other_roles("c", "make test")
}

async fn from_new_to_running(language: &str, own_tests: &str) -> Result<()> {
    let kit = Kit::new("quiet", "filter", language)?;
    kit.own_tests(own_tests)?;

    let built = kit.succeed(&["build", "quiet"])?;
    assert!(
        built.contains("quiet 0.1.0, filter, presence:plugin 0.2.0"),
        "{built}"
    );
    assert!(built.contains("needs no grants"), "{built}");
    let plugin = fs::read(kit.plugin())?;

    let said = kit.json(&["inspect", "quiet/quiet.wasm", "--json"])?;
    assert_eq!(said["role"], "filter");
    let directory = said["directory"].as_array().context("directory")?;
    assert!(directory.contains(&json!("contacts")), "{said}");
    // The engines of the other languages import everything.
    assert!(directory.len() == 1 || ["typescript", "python"].contains(&language));
    assert_eq!(said["sizeBytes"], plugin.len());
    assert_eq!(said["selfTests"].as_array().map(Vec::len), Some(4));
    for import in said["imports"].as_array().context("imports")? {
        let interface = import["interface"].as_str().unwrap_or_default();
        assert!(interface.starts_with("presence:plugin/"), "{import}");
    }
    let wit = kit.succeed(&["inspect", "quiet/quiet.wasm", "--wit"])?;
    assert!(
        wit.contains("export filter: func(event: event, audience: audience) -> audience;"),
        "{wit}"
    );

    all_pass(&kit.json(&["test", "quiet/quiet.wasm", "--json"])?, 4)?;

    let bench = kit.json(&["bench", "quiet/quiet.wasm", "--ms", "50", "--json"])?;
    let plugins = bench["plugins"].as_array().context("plugins")?;
    let names: Vec<_> = plugins.iter().map(|plugin| &plugin["plugin"]).collect();
    assert_eq!(names, ["quiet", "contacts"]);
    for plugin in plugins {
        let calls = plugin["calls"].as_array().context("calls")?;
        let viewers: Vec<_> = calls.iter().map(|row| row["viewers"].as_u64()).collect();
        assert_eq!(viewers, [Some(10), Some(100), Some(1_000), Some(10_000)]);
        for row in calls {
            assert!(
                row["callsPerS"].as_u64() > Some(0) && row["fuel"].as_u64() > Some(0),
                "{row}"
            );
            assert!(row["p50Ns"].as_u64() <= row["p99Ns"].as_u64(), "{row}");
        }
    }

    // A second build of the same source does nothing.
    let again = kit.succeed(&["build", "quiet"])?;
    assert!(again.contains("unchanged, not rebuilt"), "{again}");
    fails_with_its_place(&kit, language)?;
    takes_effect(&plugin).await
}

/// An uncaught error, and a call of something that plugins don't have.
fn fails_with_its_place(kit: &Kit, language: &str) -> Result<()> {
    let (file, before, error, said, denied, wanted) = match language {
        "rust" => (
            "src/lib.rs",
            "        explain(",
            "assert!(event.user() != \"ada\", \"not ada\");",
            "trapped: panicked at src/lib.rs:37:9: not ada",
            "let _ = std::time::SystemTime::now();",
            "time not implemented on this platform",
        ),
        "typescript" => (
            "plugin.ts",
            "  explain(",
            "if (event.user === \"ada\") throw new TypeError(\"not ada\"); \
             if (event.user === \"leo\") return Promise.reject(\"not leo\") as any;",
            "trapped: TypeError: not ada, at plugin.ts:24 (filter)",
            "Date.now();",
            "tried to read the clock: plugins have none; ask the host with now(), at plugin.ts:25",
        ),
        "python" => (
            "plugin.py",
            "        host.explain(",
            "{}[event.user] if event.user == \"ada\" else None\n        \
             if event.user == \"leo\": return None",
            "trapped: KeyError: 'ada', at plugin.py:25 (filter)",
            "open(\"/etc/passwd\")",
            "tried to open the file '/etc/passwd': plugins have none, at plugin.py:27",
        ),
        _ => (
            "plugin.c",
            "        filter_string_t why;",
            "assert(event->user.len != 3);",
            "trapped: assertion failed: event->user.len != 3, at plugin.c:31",
            "puts(\"hello\");",
            "tried to write output: plugins have none; log instead",
        ),
    };
    let path = kit.folder().join(file);
    let source = fs::read_to_string(&path)?;
    let with = |lines: &[&str]| {
        let indent = &before[..before.len() - before.trim_start().len()];
        let lines: String = lines.iter().map(|it| format!("{indent}{it}\n")).collect();
        let includes = match language {
            "c" => "#include <assert.h>\n#include <stdio.h>\n",
            _ => "",
        };
        assert_eq!(source.matches(before).count(), 1, "{source}");
        format!(
            "{includes}{}",
            source.replace(before, &format!("{lines}{before}"))
        )
    };
    let event = |user: &str| json!({"type": "user_online", "userId": user, "timestamp": 7, "metadata": {"status": "quiet"}});
    let fails = |user: &str| -> Result<String> {
        let input = kit.folder().join("input.json");
        fs::write(&input, event(user).to_string())?;
        let output = kit.run(&["run", "quiet", "--event", "quiet/input.json", "--json"])?;
        assert!(!output.status.success());
        let stderr = String::from_utf8(output.stderr)?;
        let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        Ok(format!("{} {stderr}", answer["answer"]["error"]))
    };
    // In C, calls of WASI are already found by the build.
    let both = [error, denied];
    fs::write(
        &path,
        with(if language == "c" { &both[..1] } else { &both }),
    )?;
    let failure = fails("ada")?;
    assert!(failure.contains(said), "{failure}");
    fs::write(&path, with(&both))?;
    let failure = fails("eve")?;
    assert!(failure.contains(wanted), "{failure}");
    // An answer of the wrong type.
    let no_answer = match language {
        "typescript" => Some("`filter` is async, and plugins answer at once"),
        "python" => Some("filter returned None, and has to return an audience"),
        _ => None,
    };
    if let Some(wanted) = no_answer {
        let failure = fails("leo")?;
        assert!(failure.contains(wanted), "{failure}");
    }
    if language == "typescript" {
        fs::write(&path, format!("import \"node:fs\";\n{source}"))?;
        let failure = fails("ada")?;
        let wanted = "a plugin runs without Node, and has no files";
        assert!(failure.contains(wanted), "{failure}");
    }
    fs::write(&path, source)?;
    Ok(())
}

/// A user is online whom a contact and a colleague may see. The filter comes,
/// and since the user is quiet, the colleague loses sight of them.
async fn takes_effect(plugin: &[u8]) -> Result<()> {
    let mut world = World::start_with(|site| {
        // The user stays online, however long an engine for a plugin takes to compile.
        let mut site = site.with("tracker.timeout_ms", 600_000)?;
        let stages = ["contacts", "groups", "quiet", "redact"].map(|name| (name, None));
        site.set_pipeline(&stages)?;
        site.write_directory_value(&json!({
            "contacts": {"ada": ["ben"]},
            "groups": {"team": ["ada", "cleo"]},
        }))?;
        // Until the new plugin comes, this one takes nobody away from ada.
        let before = component::named(&component::load("blocklist")?, "quiet")?;
        site.write_plugin("quiet", before)?;
        Ok(site)
    })
    .await?;
    let mut connect = inputs::connect("ada", "c", now_ms());
    connect["metadata"]["status"] = "quiet".into();
    world.client.input(CONNECT, connect).await?;
    let online = world.tape.hosts(FILTERED_ONLINE, 1).await?;
    assert_eq!(online[0].visible_to(), ["ben", "cleo"]);

    world.site.write_plugin("quiet", plugin)?;
    let offline = world.tape.hosts(FILTERED_OFFLINE, 1).await?;
    assert_eq!(offline[0].text("userId"), "ada");
    assert_eq!(offline[0].visible_to(), ["cleo"]);
    world.end().await
}

fn other_roles(language: &str, own_tests: &str) -> Result<()> {
    for (role, cases) in [("redactor", 3), ("enricher", 4)] {
        let kit = Kit::new("mine", role, language)?;
        kit.own_tests(own_tests)?;
        let tested = kit.json(&["test", "mine", "--json"])?;
        assert_eq!(tested["role"], role);
        all_pass(&tested, cases)?;
    }
    Ok(())
}

/// All self-tests pass, within the limits.
fn all_pass(tested: &Value, count: usize) -> Result<()> {
    let cases = tested["cases"].as_array().context("cases")?;
    assert_eq!(cases.len(), count);
    let limits = &tested["limits"];
    for case in cases {
        assert_eq!(case["passes"], true, "{case}");
        // A refused configuration makes no call.
        if case["found"].get("error").is_none() {
            let within = |key: &str| {
                let taken = case[key].as_u64();
                taken > Some(0) && taken < limits[key].as_u64()
            };
            assert!(
                within("fuel") && within("memoryBytes"),
                "{case} of {limits}"
            );
        }
    }
    Ok(())
}
