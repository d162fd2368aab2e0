//! `presence plugin` with errors, and with existing plugins: without any language's tools.

use std::fs;
use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result};
use presence_tests::kit::plugin_command;
use presence_tests::{component, tools};
use serde_json::{Value, json};
use tempfile::TempDir;

/// `presence plugin` in a folder of its own.
struct Bench(TempDir);

impl Bench {
    fn new() -> Result<Self> {
        Ok(Self(tempfile::tempdir()?))
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Runs it with a `PATH` that has no programs.
    fn run(&self, args: &[&str]) -> Result<Output> {
        let mut command = plugin_command(self.path())?;
        let output = command.args(args).env("PATH", self.path()).output();
        output.context("running presence plugin")
    }

    /// Runs a command that fails with this code, and returns what it says.
    fn fails(&self, code: i32, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        let stderr = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        Ok(stderr)
    }

    fn succeeds(&self, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {stderr}");
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// Asserts that this is one readable line, with these words.
fn assert_one_line(stderr: &str, words: &[&str]) {
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{stderr} doesn't say {word}");
    }
}

#[test]
fn a_name_that_cannot_be_used_or_is_taken_is_refused() -> Result<()> {
    let bench = Bench::new()?;
    for name in ["", "a b", "../x", "a.b", &"x".repeat(65)] {
        let stderr = bench.fails(2, &["new", name])?;
        assert!(stderr.contains("letters A-Z and a-z, digits"), "{stderr}");
    }
    assert_eq!(fs::read_dir(bench.path())?.count(), 0);
    bench.succeeds(&["new", "quiet"])?;
    let before = fs::read(bench.path().join("quiet/plugin.json"))?;
    let stderr = bench.fails(1, &["new", "quiet", "--role", "enricher"])?;
    assert_one_line(&stderr, &["quiet is there already"]);
    assert_eq!(fs::read(bench.path().join("quiet/plugin.json"))?, before);
    bench.fails(2, &["new", "loud", "--lang", "cobol"])?;
    Ok(())
}

#[test]
fn a_missing_tool_is_named_with_how_to_get_it() -> Result<()> {
    let bench = Bench::new()?;
    for (language, words) in [
        ("rust", ["Rust is needed", "rustup.rs"]),
        ("typescript", ["Node is needed", "nodejs.org"]),
        ("python", ["componentize-py", ".venv/bin/pip install"]),
        ("c", ["Zig", "ziglang"]),
    ] {
        bench.succeeds(&["new", language, "--lang", language])?;
        assert_one_line(&bench.fails(1, &["build", language])?, &words);
    }
    // Node alone is not enough.
    let node = bench.path().join("node");
    fs::write(&node, "")?;
    assert_one_line(
        &bench.fails(1, &["build", "typescript"])?,
        &["@bytecodealliance/componentize-js", "npm install"],
    );
    Ok(())
}

#[test]
fn a_folder_that_is_no_plugin_is_refused() -> Result<()> {
    let bench = Bench::new()?;
    assert_one_line(
        &bench.fails(1, &["build"])?,
        &["Cargo.toml, plugin.ts, plugin.js, plugin.py, plugin.c"],
    );
    bench.succeeds(&["new", "quiet", "--lang", "c"])?;
    let manifest = bench.path().join("quiet/plugin.json");
    for (json, words) in [
        ("{", ["is no manifest", "line 1"]),
        (
            r#"{"name": "quiet", "rool": 1}"#,
            ["is no manifest", "rool"],
        ),
        (
            r#"{"name": "a b", "version": "1.0.0", "api": "0.2.0", "role": "filter"}"#,
            ["the name is `a b`", "letters"],
        ),
    ] {
        fs::write(&manifest, json)?;
        assert_one_line(&bench.fails(1, &["build", "quiet"])?, &words);
    }
    Ok(())
}

#[test]
fn what_is_no_plugin_is_said_to_be_none() -> Result<()> {
    let bench = Bench::new()?;
    let file = bench.path().join("x.wasm");
    for command in ["inspect", "test", "bench"] {
        assert_one_line(
            &bench.fails(1, &[command, "none.wasm"])?,
            &["can't read none.wasm"],
        );
        for (bytes, words) in [
            (&b"text"[..], "not a presence plugin"),
            (b"\0asm\x01\0\0\0", "it is a core module"),
            (b"\0asm\x0d\0\x01\0", "no `presence:manifest` section"),
        ] {
            fs::write(&file, bytes)?;
            assert_one_line(&bench.fails(1, &[command, "x.wasm"])?, &[words]);
        }
    }
    Ok(())
}

#[test]
fn a_plugin_is_inspected_without_being_run() -> Result<()> {
    let bench = Bench::new()?;
    fs::write(bench.path().join("groups.wasm"), component::load("groups")?)?;
    let page = bench.succeeds(&["inspect", "groups.wasm"])?;
    for words in [
        "filter, which may add viewers",
        "widen\n",
        "co-members",
        "presence:plugin 0.2.0",
    ] {
        assert!(page.contains(words), "{page}");
    }
    let object: Value =
        serde_json::from_str(&bench.succeeds(&["inspect", "groups.wasm", "--json"])?)?;
    assert_eq!(object["effect"], "widen");
    assert_eq!(object["directory"], json!(["co-members"]));
    assert_eq!(
        object["limits"],
        json!({"fuel": null, "memoryBytes": null, "deadlineMs": null})
    );
    // A component that no host accepts can still be inspected.
    fs::write(
        bench.path().join("w.wasm"),
        component::load("fixtures/wants-wasi")?,
    )?;
    assert!(
        bench
            .succeeds(&["inspect", "w.wasm"])?
            .contains("wasi:cli/environment")
    );
    Ok(())
}

#[test]
fn a_self_test_that_fails_is_shown_line_by_line_and_can_be_updated() -> Result<()> {
    let bench = Bench::new()?;
    let file = bench.path().join("f.wasm");
    let source = tools::root().join("plugins/fixtures/failing-self-test/plugin.json");
    fs::write(&file, component::load("fixtures/failing-self-test")?)?;
    fs::copy(&source, bench.path().join("plugin.json"))?;

    let output = bench.run(&["test", "f.wasm"])?;
    assert_eq!(output.status.code(), Some(1));
    let page = String::from_utf8(output.stdout)?;
    let signs: Vec<_> = page
        .lines()
        .filter_map(|line| line.trim().chars().next())
        .collect();
    assert!(signs.contains(&'-') && signs.contains(&'+'), "{page}");
    assert!(
        page.contains("FAILED") && page.contains("the most that a call may take"),
        "{page}"
    );
    assert!(String::from_utf8(output.stderr)?.contains("self-tests fail"));

    bench.succeeds(&["test", "f.wasm", "--update"])?;
    let tested: Value = serde_json::from_str(&bench.succeeds(&["test", "f.wasm", "--json"])?)?;
    let cases = tested["cases"].as_array().context("cases")?;
    assert!(cases.iter().all(|case| case["passes"] == true), "{tested}");
    // Only the expected result has changed in the source, in one line.
    let (before, after) = (
        fs::read_to_string(source)?,
        fs::read_to_string(bench.path().join("plugin.json"))?,
    );
    let changed = before
        .lines()
        .zip(after.lines())
        .filter(|(before, after)| before != after);
    assert_eq!(changed.count(), 1, "{after}");
    assert_eq!(before.lines().count(), after.lines().count());
    Ok(())
}

#[test]
fn what_a_rule_logs_and_explains_stands_under_its_case() -> Result<()> {
    let bench = Bench::new()?;
    let reader = component::with(&component::load("fixtures/reader")?, |manifest| {
        let case = |name: &str, user: &str| {
            json!({
                "name": name,
                "config": {"steps": [{"contains": "ben"}, "len"]},
                "event": {"type": "user_online", "userId": user, "timestamp": 7},
                "audience": ["ben"],
                "expect": {"audience": ["ben"]},
            })
        };
        manifest.insert(
            "tests".into(),
            json!([case("one", "ada"), case("two", "eve")]),
        );
    })?;
    fs::write(bench.path().join("r.wasm"), &reader)?;
    let page = bench.succeeds(&["test", "r.wasm"])?;
    let lines: Vec<_> = page.lines().collect();
    for (place, words) in [
        (1, "ok  one"),
        (2, "        explains: contains: true"),
        (3, "        explains: len: 1"),
        (4, "ok  two"),
        (5, "        explains: contains: true"),
    ] {
        assert!(lines[place].starts_with(words), "{page}");
    }
    let tested: Value = serde_json::from_str(&bench.succeeds(&["test", "r.wasm", "--json"])?)?;
    assert_eq!(
        tested["cases"][1]["lines"],
        json!([
            {"kind": "explained", "text": "contains: true"},
            {"kind": "explained", "text": "len: 1"},
        ])
    );
    Ok(())
}

#[test]
fn one_input_is_run_from_a_case_a_file_or_standard_input() -> Result<()> {
    let bench = Bench::new()?;
    fs::write(
        bench.path().join("p.wasm"),
        component::load("fixtures/picky")?,
    )?;
    fs::write(bench.path().join("c.wasm"), component::load("contacts")?)?;
    let case = "a user's contacts see the user";
    let page = bench.succeeds(&["run", "c.wasm", "--case", case])?;
    for words in [
        "answers",
        "{\"audience\":[",
        "fuel",
        " of 10,000,000",
        "memory",
        "time",
    ] {
        assert!(page.contains(words), "{page}");
    }
    let stderr = bench.fails(1, &["run", "c.wasm", "--case", "none"])?;
    assert_one_line(&stderr, &["no self-test `none`", case]);
    bench.fails(2, &["run", "c.wasm"])?;

    // `--event` replaces the case's event. The case's directory stays.
    let event = json!({"type": "user_online", "userId": "stranger", "timestamp": 7});
    fs::write(bench.path().join("event.json"), event.to_string())?;
    let page = bench.succeeds(&["run", "c.wasm", "--case", case, "--event", "event.json"])?;
    assert!(page.contains("{\"audience\":[]}"), "{page}");

    // An event by itself has no configuration, and a case has one.
    let event = json!({"type": "user_online", "userId": "22222", "timestamp": 7});
    let letter = json!({
        "subject": "presence.events.user_online", "reason": "plugin-failed", "error": "…",
        "payload": event.to_string(), "encoding": "utf8",
    });
    let input = json!({"config": {"user": "22222"}, "event": event});
    for (plugin, input, fails) in [("c.wasm", letter, false), ("p.wasm", input, true)] {
        let path = bench.path().join("input.json");
        fs::write(&path, input.to_string())?;
        let mut command = plugin_command(bench.path())?;
        let command = command.args(["run", plugin, "--event", "-", "--json"]);
        let output = command.stdin(fs::File::open(path)?).output()?;
        let run: Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!(output.status.success(), !fails, "{run}");
        let error = run["answer"]["error"].as_str().unwrap_or_default();
        assert_eq!(
            error.contains("plugin.rs:20:9: this user is the one"),
            fails,
            "{run}"
        );
        assert_eq!(run["fuel"].as_u64().is_some(), !fails, "{run}");
    }
    Ok(())
}

#[test]
fn what_is_measured_is_a_case_with_the_fuel_that_it_takes_in_a_test() -> Result<()> {
    let bench = Bench::new()?;
    fs::write(bench.path().join("b.wasm"), component::load("blocklist")?)?;
    let tested: Value = serde_json::from_str(&bench.succeeds(&["test", "b.wasm", "--json"])?)?;
    let cases = tested["cases"].as_array().context("cases")?;
    let case = &cases[1];
    let name = case["name"].as_str().context("name")?;
    let args = ["bench", "b.wasm", "--ms", "5", "--case", name];
    let measured = bench.succeeds(&[&args[..], &["--json"]].concat())?;
    let measured: Value = serde_json::from_str(&measured)?;
    let plugin = &measured["plugins"][0];
    assert_eq!(plugin["case"], name);
    assert_eq!(plugin["caseCall"]["fuel"], case["fuel"]);
    let page = bench.succeeds(&args)?;
    assert!(
        page.contains(&format!("blocklist: the case `{name}`")),
        "{page}"
    );
    assert!(page.contains("case: "), "{page}");
    let stderr = bench.fails(1, &["bench", "b.wasm", "--case", "none"])?;
    assert_one_line(&stderr, &["no self-test `none`"]);
    Ok(())
}

#[test]
fn a_plugin_is_measured_beside_the_built_in_one_of_its_role() -> Result<()> {
    let bench = Bench::new()?;
    for (name, counterpart) in [
        ("device-class", "device-class"),
        ("redact", "redact"),
        ("groups", "contacts"),
    ] {
        fs::write(bench.path().join("p.wasm"), component::load(name)?)?;
        let page = bench.succeeds(&["bench", "p.wasm", "--ms", "5"])?;
        assert!(
            page.contains("COMPILED IN") && page.contains("CALLS/S"),
            "{page}"
        );
        assert!(page.contains(name) && page.contains(counterpart), "{page}");
    }
    bench.fails(2, &["bench", "p.wasm", "--ms", "0"])?;
    Ok(())
}

#[test]
fn each_command_has_help_with_an_example() -> Result<()> {
    let bench = Bench::new()?;
    for command in ["new", "build", "inspect", "test", "run", "bench"] {
        let help = bench.succeeds(&[command, "--help"])?;
        assert!(
            help.contains(&format!("presence plugin {command}")),
            "{help}"
        );
        assert!(help.contains("Example"), "{help}");
    }
    assert!(bench.succeeds(&["--help"])?.contains("Example:"));
    Ok(())
}

#[test]
fn one_who_reads_no_further_is_no_error() -> Result<()> {
    let bench = Bench::new()?;
    let file = bench.path().join("contacts.wasm");
    fs::write(&file, component::load("contacts")?)?;
    for args in [["inspect"], ["test"]] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let mut command = plugin_command(bench.path())?;
        let output = command.args(args).arg(&file).stdout(writer).output()?;
        assert_eq!(String::from_utf8(output.stderr)?, "");
        assert!(output.status.success(), "{args:?}");
    }
    Ok(())
}
