//! `presence replay --plugin`: which viewers would gain or lose sight of which users.

use std::fs;
use std::process::Output;

use anyhow::{Context, Result};
use presence_tests::site::Site;
use presence_tests::{component, host};
use serde_json::{Value, json};
use toml::Table;

use crate::inputs::{self, CONNECT, DISCONNECT, SEED_MS};

/// A site with a capture, and plugins beside it.
struct Bench(Site);

impl Bench {
    /// 12345 comes, then 22222, and 12345 goes.
    fn new() -> Result<Self> {
        let bench = Self(Site::new("nats://127.0.0.1:1")?);
        let goes = inputs::disconnect("12345", "a", SEED_MS + 2_000, "client_disconnect");
        let lines = [
            json!({"subject": CONNECT, "data": inputs::connect("12345", "a", SEED_MS)}),
            json!({"subject": CONNECT, "data": inputs::connect("22222", "b", SEED_MS + 1_000)}),
            json!({"subject": DISCONNECT, "data": goes}),
        ];
        let lines = lines.map(|line| format!("{line}\n"));
        fs::write(bench.path("capture.ndjson")?, lines.concat())?;
        Ok(bench)
    }

    fn path(&self, name: &str) -> Result<String> {
        let path = self.0.path().join(name);
        Ok(path.to_str().context("a temporary path is text")?.into())
    }

    /// Writes a component with this name in its manifest.
    fn plugin(&self, file: &str, from: &str, name: &str) -> Result<String> {
        let path = self.path(file)?;
        fs::write(&path, component::named(&component::load(from)?, name)?)?;
        Ok(path)
    }

    fn run(&self, args: &[&str]) -> Result<Output> {
        let capture = self.path("capture.ndjson")?;
        let all: Vec<_> = ["replay", &capture].iter().chain(args).copied().collect();
        host::run(&self.0, &all)
    }

    fn page(&self, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {stderr}");
        Ok(String::from_utf8(output.stdout)?)
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let all: Vec<_> = args.iter().chain(&["--json"]).copied().collect();
        Ok(serde_json::from_str(&self.page(&all)?)?)
    }

    fn fails(&self, args: &[&str], words: &[&str]) -> Result<()> {
        let output = self.run(args)?;
        let stderr = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        for word in words {
            assert!(stderr.contains(word), "{stderr} doesn't say {word}");
        }
        Ok(())
    }
}

/// A page without the digests of its plugins' files.
fn without_digests(page: &str) -> String {
    let lines = page.lines().enumerate().map(|(number, line)| match number {
        0 | 1 => line.rsplit_once("  ").map_or(line, |(rest, _)| rest),
        _ => line,
    });
    lines.map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_changed_rule_is_shown_by_whom_it_shows_and_hides() -> Result<()> {
    let mut bench = Bench::new()?;
    bench
        .0
        .set_pipeline(&[("rule", None), ("blocklist", None), ("redact", None)])?;
    bench.0.set_stage("rule", "grants", vec!["widen"])?;
    let old = bench.plugin("old.wasm", "groups", "rule")?;
    let new = bench.plugin("new.wasm", "contacts", "rule")?;
    let args = ["--plugin", &new, "--against", &old];
    let page = bench.page(&args)?;
    let expected = "\
old  rule 0.1.0
new  rule 0.1.0

3 messages, 2023-10-22 18:40:00 UTC to 2023-10-22 18:40:02 UTC
2 stays from online to offline, 2 of them different

VIEWERS WHO         PAIRS  USERS  VIEWERS
lose sight          2      2      2
gain sight          1      1      1
are told otherwise  0      0      0

1. 12345 came online, 2023-10-22 18:40:00 UTC
   lose sight: 22222
   gain sight: 67890
   old: rule 0.1.0 (filter) admits 22222
   new: rule 0.1.0 (filter) does not admit 22222
   old: rule 0.1.0 (filter) does not admit 67890
   new: rule 0.1.0 (filter) admits 67890

2. 22222 came online, 2023-10-22 18:40:01 UTC
   lose sight: 12345
   old: rule 0.1.0 (filter) admits 12345
   new: rule 0.1.0 (filter) does not admit 12345
";
    assert_eq!(without_digests(&page), expected);
    assert_eq!(bench.page(&args)?, page, "the same, to the byte");

    let object = bench.json(&args)?;
    assert_eq!(object["stays"], json!({"same": 0, "different": 2}));
    assert_eq!(object["examples"][0]["gained"], json!(["67890"]));
    // The number of examples doesn't change the figures.
    let few = bench.json(&["--plugin", &new, "--against", &old, "--examples", "0"])?;
    assert_eq!(few["examples"], json!([]));
    for figure in ["stays", "lost", "gained", "otherwise", "pluginFailed"] {
        assert_eq!(few[figure], object[figure]);
    }
    let one = bench.page(&["--plugin", &new, "--against", &old, "--examples", "1"])?;
    assert!(one.ends_with("\nand 1 more: see --examples\n"), "{one}");
    Ok(())
}

#[test]
fn the_same_rule_changes_nothing() -> Result<()> {
    let bench = Bench::new()?;
    let new = bench.plugin("new.wasm", "contacts", "contacts")?;
    let page = bench.page(&["--plugin", &new])?;
    assert!(
        page.contains("2 stays from online to offline, 0 of them different\n\nnobody gains"),
        "{page}"
    );
    Ok(())
}

#[test]
fn a_rule_that_is_new_altogether_is_compared_with_the_pipeline_without_it() -> Result<()> {
    let mut bench = Bench::new()?;
    let steps: Table = toml::from_str(
        r#"steps = [{ get = "device" }, { only_if = { key = "device", text = "mobile" } }]"#,
    )?;
    bench
        .0
        .set_pipeline(&[("groups", None), ("rule", Some(steps)), ("redact", None)])?;
    let new = bench.plugin("new.wasm", "fixtures/reader", "rule")?;
    bench.0.set_stage("rule", "grants", vec!["widen"])?;
    let page = bench.page(&["--plugin", &new, "--examples", "1"])?;
    for words in [
        "old  without rule\n",
        "   lose sight: 22222\n",
        "   new: rule 0.1.0 (filter) removes 22222\n        says of 12345: get: Some(Value::Text(\"web\"))\n",
    ] {
        assert!(page.contains(words), "{page}");
    }
    let object = bench.json(&["--plugin", &new])?;
    assert_eq!(object["old"], json!(null));
    assert_eq!(object["examples"][0]["why"][0]["old"], json!(null));
    assert_eq!(object["examples"][0]["why"][0]["new"]["turn"], "removed");
    Ok(())
}

#[test]
fn who_is_shown_something_else_is_told_otherwise() -> Result<()> {
    let mut bench = Bench::new()?;
    let keys: Table = toml::from_str(r#"keys = ["n", "contacts"]"#)?;
    bench
        .0
        .set_pipeline(&[("more", None), ("groups", None), ("redact", Some(keys))])?;
    let old = bench.plugin("old.wasm", "fixtures/counter", "more")?;
    let new = bench.plugin("new.wasm", "fixtures/contact-count", "more")?;
    let object = bench.json(&["--plugin", &new, "--against", &old])?;
    assert_eq!(object["otherwise"]["pairs"], 2, "{object}");
    assert_eq!(object["lost"]["pairs"], 0);
    let told =
        |metadata: Value| json!({"at": SEED_MS, "type": "user_online", "metadata": metadata});
    let expected = json!({
        "viewerId": "22222",
        "old": told(json!({"n": 1})),
        "new": told(json!({"contacts": 2})),
    });
    assert_eq!(object["examples"][0]["sample"], expected);
    let page = bench.page(&["--plugin", &new, "--against", &old])?;
    let words = format!(
        "   told otherwise: 22222\n   22222 is told, old: {}\n   22222 is told, new: {}\n",
        expected["old"], expected["new"]
    );
    assert!(page.contains(&words), "{page}");
    Ok(())
}

#[test]
fn a_rule_that_fails_is_seen_to_hide() -> Result<()> {
    let bench = Bench::new()?;
    let new = bench.plugin("new.wasm", "fixtures/trap", "contacts")?;
    let page = bench.page(&["--plugin", &new])?;
    for words in [
        "events on which a plugin failed: 0 with the old, 2 with the new\n",
        "   lose sight: 67890, 22222\n",
        "   new: contacts 0.1.0 (filter) failed: trapped",
    ] {
        assert!(page.contains(words), "{page}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_compared_is_said_in_one_line() -> Result<()> {
    let bench = Bench::new()?;
    let rule = bench.plugin("rule.wasm", "contacts", "contacts")?;
    let other = bench.plugin("other.wasm", "groups", "groups")?;
    let alien = bench.plugin("alien.wasm", "groups", "alien")?;
    let failing = bench.plugin("failing.wasm", "fixtures/failing-self-test", "contacts")?;
    let (core, none) = (bench.path("core.wasm")?, bench.path("none.wasm")?);
    fs::write(&core, b"\0asm\x01\0\0\0")?;
    bench.fails(
        &["--plugin", &alien],
        &["`alien`", "no such stage", "contacts → groups"],
    )?;
    bench.fails(
        &["--plugin", &rule, "--against", &other],
        &["`contacts`", "`groups`"],
    )?;
    bench.fails(&["--plugin", &failing], &["self-test"])?;
    bench.fails(&["--plugin", &rule, "--against", &failing], &["self-test"])?;
    bench.fails(&["--plugin", &core], &["core.wasm", "core module"])?;
    bench.fails(&["--plugin", &none], &["can't read", "none.wasm"])?;
    bench.fails(&["--directory", &none], &["none.wasm does not exist"])?;
    for usage in [&["--against", &rule][..], &["--json"], &["--examples", "1"]] {
        assert_eq!(bench.run(usage)?.status.code(), Some(2));
    }
    Ok(())
}
