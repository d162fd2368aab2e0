//! Builds Rust: Cargo makes a core module.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use serde_json::Value;

use super::{Source, tool};

/// Wasm without an operating system, so that nothing in it can ask for one.
const TARGET: &str = "wasm32-unknown-unknown";

pub(super) fn compile(source: &Source<'_>) -> anyhow::Result<Vec<u8>> {
    require_target(source.folder)?;
    let mut cargo = Command::new(program("CARGO", "cargo"));
    cargo
        .args(["build", "--release", "--lib", "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics"])
        .current_dir(source.folder)
        .stdout(Stdio::piped());
    let messages = tool::output(&mut cargo)?;
    let module = String::from_utf8_lossy(&messages)
        .lines()
        .filter_map(module)
        // The plugin is built last, after its dependencies.
        .next_back();
    let module = module.with_context(|| {
        format!(
            "{} builds no module: it needs crate-type = [\"cdylib\"] under [lib]",
            source.folder.join(source.entry).display()
        )
    })?;
    super::super::read(&module)
}

/// The Wasm module that a message of Cargo reports, if any.
fn module(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    let mut files = message.get("filenames")?.as_array()?.iter();
    let file = files.find_map(|file| file.as_str().filter(|file| file.ends_with(".wasm")))?;
    Some(file.into())
}

/// # Errors
/// When Rust is missing, or can't build for Wasm. Checked first, since rustc's own messages are
/// long.
fn require_target(folder: &Path) -> anyhow::Result<()> {
    let mut rustc = Command::new(program("RUSTC", "rustc"));
    rustc.args(["--print", "sysroot"]).current_dir(folder);
    let sysroot = rustc
        .stdout(Stdio::piped())
        .output()
        .context("Rust is needed, from https://rustup.rs: can't run rustc")?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
    if !sysroot.join("lib/rustlib").join(TARGET).is_dir() {
        bail!("this Rust doesn't build for {TARGET}: run `rustup target add {TARGET}`");
    }
    Ok(())
}

fn program(variable: &str, usual: &str) -> OsString {
    env::var_os(variable).unwrap_or_else(|| usual.into())
}
