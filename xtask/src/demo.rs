//! `cargo xtask demo`: presence at work on a real nats-server, told in steps.
//!
//! Everything that is printed has happened: what the host publishes is read back over NATS and
//! compared with what the directory says. The demo fails if the two differ.

mod cast;
mod crowd;
mod delivery_state;
mod expected;
mod filtered_event;
mod latency;
mod observer;
mod page;
mod stay;
mod story;
mod summary;
mod transport;
mod world;

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use presence_tests::{host, nats, tools};
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

use page::Page;
use world::World;

/// The environment variable that names the host's binary to the harness.
const BINARY: &str = "PRESENCE_BIN";

/// How long the host may take to end after a signal. A Ctrl-C also ends the broker, and without a
/// broker the host can't deliver its last messages.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// The arguments of `cargo xtask demo`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leaves it running after the story, and says what to try next.
    #[arg(long)]
    stay: bool,
    /// Builds presence for release: slower to build, faster to run.
    #[arg(long)]
    release: bool,
}

/// Gets what is needed, and tells the story.
pub(crate) fn run(args: &Args) -> Result<()> {
    let page = Page::open();
    match (env::var_os(BINARY), args.release) {
        (Some(named), _) => page.print_line(&format!("Using {}", named.display())),
        (None, true) => {
            page.print_line("Building presence for release (the first time takes many minutes)…");
            return again_for_release(args);
        }
        (None, false) => page.print_line("Building presence (the first time takes some minutes)…"),
    }
    host::binary()?;
    page.print_line("Looking for a nats-server (one is fetched if there is none)…");
    let version = tools::run(Command::new(nats::find()?).arg("--version"))?;
    page.print_line(&format!("Starting {} and presence…", version.trim()));
    Runtime::new()?.block_on(play(args, page))
}

/// Builds for release, and begins anew with that binary in this very process, so
/// that a Ctrl-C finds one demo and not two.
fn again_for_release(args: &Args) -> Result<()> {
    let presence = tools::build("presence", &["--release"])?;
    let mut command = Command::new(env::current_exe()?);
    command.arg("demo").env(BINARY, presence);
    if args.stay {
        command.arg("--stay");
    }
    Err(command.exec()).context("starting the demo anew")
}

async fn play(args: &Args, page: Page) -> Result<()> {
    let finished = tokio::select! {
        finished = run_story(page) => finished?,
        interrupted = interrupted() => {
            interrupted?;
            bail!("interrupted before the end; everything has been stopped");
        }
    };
    let (mut world, page) = finished;
    if !args.stay {
        page.print_line("\n`cargo xtask demo --stay` leaves it running, to play with. The README says how to write a rule.");
        return world.stop().await;
    }
    tokio::select! {
        ended = stay::stay(&mut world, &page) => match ended? {},
        interrupted = interrupted() => interrupted?,
    }
    println!();
    page.print_line("Stopping…");
    if let Ok(stopped) = tokio::time::timeout(STOP_TIMEOUT, world.stop()).await {
        stopped?;
    }
    page.print_line("Stopped; nothing is left behind.");
    Ok(())
}

/// Runs the whole story. The world goes on running afterwards.
async fn run_story(mut page: Page) -> Result<(World, Page)> {
    let mut world = World::start().await?;
    let story = async {
        story::run(&mut world, &mut page).await?;
        let latencies = crowd::come_and_go(&mut world, &mut page).await?;
        summary::sum_up(&mut world, &page, &latencies).await
    };
    if let Err(error) = story.await {
        eprintln!("\n{}\n", world.log_tail());
        return Err(error);
    }
    Ok((world, page))
}

/// Waits until a signal asks the demo to end.
async fn interrupted() -> Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}
