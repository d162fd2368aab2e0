//! The cookbook: each rule's files are put into a plugin's folder, built, tested with the
//! language's tests and with its cases, and run by a host with the configuration on the page.

use std::fs;

use anyhow::{Context, Result, ensure};
use presence_tests::host;
use presence_tests::kit::Kit;
use presence_tests::site::Site;
use serde_json::Value;

use super::page::{Block, Page};
use super::pages;

/// Whether a page is one of the cookbook's rules.
pub(super) fn has(page: &str) -> bool {
    page.starts_with("rules/cookbook/")
}

#[test]
fn its_rules_hold_in_rust() -> Result<()> {
    hold("rust", "src/lib.rs", "cargo test --quiet")
}

#[test]
fn its_rules_hold_in_typescript() -> Result<()> {
    hold("typescript", "plugin.ts", "npm test")
}

#[test]
fn its_rules_hold_in_python() -> Result<()> {
    hold("python", "plugin.py", "python3 -m unittest")
}

#[test]
fn its_rules_hold_in_c() -> Result<()> {
    hold("c", "plugin.c", "make test")
}

fn hold(language: &str, file: &str, own_tests: &str) -> Result<()> {
    let kit = Kit::new("rule", "filter", language)?;
    let mut count = 0;
    for page in pages()?.iter().filter(|page| has(page)) {
        let blocks = Page::read(page)?.blocks;
        for block in &blocks {
            ensure!(
                ["json", "toml", "rust", "typescript", "python", "c"].contains(&&*block.language),
                "{}: nobody checks a block of `{}`",
                block.place,
                block.language
            );
        }
        if let Some(rule) = one(&blocks, language)? {
            let manifest = one(&blocks, "json")?.context("a rule has a manifest")?;
            let stage = one(&blocks, "toml")?.context("a rule has a stage")?;
            fs::write(kit.folder().join(file), &rule.code)?;
            fs::write(kit.folder().join("plugin.json"), &manifest.code)?;
            holds(&kit, own_tests, &manifest.code).with_context(|| rule.place.clone())?;
            // This is the same for all languages, and takes long for plugins that contain an
            // engine.
            if language == "rust" {
                is_taken(&kit, &manifest.code, stage).with_context(|| stage.place.clone())?;
            }
            count += 1;
        }
    }
    ensure!(count > 0, "there is no rule in {language}");
    Ok(())
}

fn holds(kit: &Kit, own_tests: &str, manifest: &str) -> Result<()> {
    kit.own_tests(own_tests)?;
    let manifest: Value = serde_json::from_str(manifest)?;
    let tested = kit.json(&["test", "rule", "--json"])?;
    let count = |object: &Value, key: &str| object[key].as_array().map_or(0, Vec::len);
    ensure!(
        count(&manifest, "tests") > 0 && count(&manifest, "tests") == count(&tested, "cases"),
        "a rule has cases"
    );
    Ok(())
}

fn is_taken(kit: &Kit, manifest: &str, stage: &Block) -> Result<()> {
    let manifest: Value = serde_json::from_str(manifest)?;
    let name = manifest["name"].as_str().context("name")?;
    let plugin = fs::read(kit.folder().join(format!("{name}.wasm")))?;
    let site = Site::new("nats://127.0.0.1:4222")?;
    fs::write(site.config_path(), &stage.code)?;
    site.write_plugin(name, plugin)?;
    let checked = host::run(&site, &["check"])?;
    ensure!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
    Ok(())
}

/// The only block of a language. `None` if there is none.
fn one<'a>(blocks: &'a [Block], language: &str) -> Result<Option<&'a Block>> {
    let mut of = blocks.iter().filter(|block| block.language == language);
    let one = of.next();
    match of.next() {
        Some(second) => anyhow::bail!("{}: it is the second", second.place),
        None => Ok(one),
    }
}
