//! `cargo xtask test`: gets what the tests need, and runs every one of them.

use anyhow::{Context, Result, ensure};
use presence_tests::{browser, kit, nats, node, tools};

/// What is asked of the task.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// Runs the task.
///
/// # Errors
/// If something can't be had, or a test fails.
pub(crate) fn run(_: &Args) -> Result<()> {
    let server = nats::find()?;
    println!("nats-server: {}", server.display());
    println!("npm's packages: {}", node::modules()?.display());
    println!("chromium: {}", browser::find()?.display());
    kit::fetch()?;
    let presence = tools::build_all("presence")?;
    println!("presence: {}", presence.display());
    // Most of the long ones wait for something, rather than compute.
    let threads = std::thread::available_parallelism()?.get() * 2;
    let threads = std::env::var("RUST_TEST_THREADS").unwrap_or_else(|_| threads.to_string());
    let tested = tools::cargo()
        .args(["test", "--workspace"])
        .env("RUST_TEST_THREADS", threads)
        .env("NATS_SERVER", &server)
        .env("PRESENCE_BIN", &presence)
        .current_dir(tools::root())
        .status()
        .context("can't run cargo")?;
    ensure!(tested.success(), "tests of the workspace failed");
    let tested = tools::cargo()
        .args(["test"])
        .current_dir(tools::root().join("plugins"))
        .status()
        .context("can't run cargo")?;
    ensure!(tested.success(), "tests of the plugins failed");
    Ok(())
}
