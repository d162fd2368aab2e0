//! What is measured inside of a process: benches of core and sandbox that print
//! their figures as JSON.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use presence_tests::tools;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// What the ledger takes.
#[derive(Deserialize)]
pub(crate) struct Ledger {
    pub(crate) users: usize,
    pub(crate) contacts: usize,
    /// Of an online event, once it is decided.
    pub(crate) online_ns: f64,
    /// Of the offline that follows it.
    pub(crate) offline_ns: f64,
    /// Of memory, beside directory and events, for a user who is online.
    pub(crate) ledger_bytes: f64,
    /// What is known of them: the event with which they came online.
    pub(crate) event_bytes: f64,
    /// All that a shard holds of them, these two among it.
    pub(crate) shard_bytes: f64,
    /// How many connections a tracker has, and what it takes for each with its user.
    pub(crate) connections: usize,
    pub(crate) connection_bytes: f64,
}

/// What a swap of the pipeline takes from a worker, by what changes with it.
#[derive(Deserialize)]
pub(crate) struct Swaps {
    pub(crate) users: usize,
    pub(crate) contacts: usize,
    /// Nothing.
    pub(crate) same: Swap,
    /// Everyone is lost sight of by a viewer.
    pub(crate) losses: Swap,
    /// Everyone is seen by one more.
    pub(crate) gains: Swap,
}

/// What one swap takes.
#[derive(Deserialize)]
pub(crate) struct Swap {
    /// How many users are decided on again in a second of one core's time.
    pub(crate) a_second: f64,
    /// The longest that new events wait for it, in milliseconds of that.
    pub(crate) longest_ms: f64,
}

impl Ledger {
    const BENCH: &str = "ledger";

    pub(crate) fn measure() -> Result<Self> {
        figures(Self::BENCH, &[])
    }
}

impl Swaps {
    const BENCH: &str = "swap";

    pub(crate) fn measure() -> Result<Self> {
        figures(Self::BENCH, &[])
    }
}

/// Builds the benches, so that nothing is built while others are measured.
pub(crate) fn build() -> Result<()> {
    for bench in [Ledger::BENCH, Swaps::BENCH] {
        cargo_bench(bench, &["--no-run"])?;
    }
    Ok(())
}

/// The figures that a bench prints.
///
/// # Errors
/// If it fails.
pub(crate) fn figures<T: DeserializeOwned>(bench: &str, flags: &[&str]) -> Result<T> {
    let printed = cargo_bench(bench, flags)?;
    serde_json::from_slice(&printed).with_context(|| format!("reading the figures of `{bench}`"))
}

/// What a bench prints.
fn cargo_bench(bench: &str, flags: &[&str]) -> Result<Vec<u8>> {
    let mut command = tools::cargo();
    command
        .args(["bench", "--bench", bench])
        .args(flags)
        .current_dir(tools::root())
        .stderr(Stdio::inherit());
    let output = command.output().context("running cargo")?;
    if !output.status.success() {
        bail!("`{}` failed ({})", tools::line(&command), output.status);
    }
    Ok(output.stdout)
}
