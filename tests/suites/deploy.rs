//! The examples under `deploy/`: each is tested with the program that it is for.

mod containers;
mod exposition;
mod monitoring;
mod promql;
mod service;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use presence_tests::{host, tools};
use serde_json::Value;

fn path(name: &str) -> PathBuf {
    tools::root().join("deploy").join(name)
}

fn read(name: &str) -> Result<String> {
    fs::read_to_string(path(name)).with_context(|| format!("reading deploy/{name}"))
}

/// The documents of a YAML file.
fn documents(name: &str) -> Result<Vec<Value>> {
    let text = read(name)?;
    let documents = serde_norway::Deserializer::from_str(&text);
    let documents = documents.map(serde::Deserialize::deserialize);
    let documents: Result<_, _> = documents.collect();
    documents.with_context(|| format!("reading deploy/{name}"))
}

/// A YAML file of one document.
fn document(name: &str) -> Result<Value> {
    let mut documents = documents(name)?;
    ensure!(documents.len() == 1, "deploy/{name} should be one document");
    Ok(documents.remove(0))
}

/// Has the program read a configuration with these variables. Each has to set a key. Returns how
/// long a stop may take, in milliseconds.
fn configured<'a>(
    config: &Path,
    variables: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<u64> {
    let mut command = Command::new(host::binary()?);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PRESENCE_") {
            command.env_remove(name);
        }
    }
    command
        .args(["config", "--json", "--config"])
        .arg(config)
        .envs(variables);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    // A variable that sets no key causes a warning.
    ensure!(output.status.success() && said.is_empty(), "{said}");
    let configuration: Value = serde_json::from_slice(&output.stdout)?;
    let settings = configuration["settings"].as_array().context("settings")?;
    let stop = settings
        .iter()
        .find(|it| it["key"] == "node.stop_timeout_ms");
    stop.and_then(|it| it["value"].as_u64())
        .with_context(|| format!("{stop:?} is no time"))
}
