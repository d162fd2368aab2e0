//! Measurements inside a process: benches of core and sandbox, which print their figures as JSON.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use presence_tests::tools;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// The cost of the ledger.
#[derive(Deserialize)]
pub(crate) struct Ledger {
    pub(crate) users: usize,
    pub(crate) contacts: usize,
    /// The time for an online event, after its decision.
    pub(crate) online_ns: f64,
    /// The time for the offline event that follows.
    pub(crate) offline_ns: f64,
    /// The ledger's memory for a user who is online, without directory and events.
    pub(crate) ledger_bytes: f64,
    /// The memory for the event with which the user came online.
    pub(crate) event_bytes: f64,
    /// A shard's whole memory for the user, these two included.
    pub(crate) shard_bytes: f64,
    /// The number of a tracker's connections, and its memory for each of them with its user.
    pub(crate) connections: usize,
    pub(crate) connection_bytes: f64,
}

/// What a swap of the pipeline costs a worker, by the changes that follow from it.
#[derive(Deserialize)]
pub(crate) struct Swaps {
    pub(crate) users: usize,
    pub(crate) contacts: usize,
    /// No decision changes.
    pub(crate) same: Swap,
    /// Every user loses a viewer.
    pub(crate) losses: Swap,
    /// Every user gains a viewer.
    pub(crate) gains: Swap,
}

/// The cost of one swap.
#[derive(Deserialize)]
pub(crate) struct Swap {
    /// How many users are decided on again in a second of processor time.
    pub(crate) a_second: f64,
    /// The longest that new events wait for it, in milliseconds of processor time.
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
