//! `cargo xtask test`: gets what the tests need, and runs every one of them.
//!
//! The tests of what plugin authors do need the processors: they run compilers, and compile the
//! engines of other languages. Most other tests wait for something. So both run at the same time,
//! the former at a lower priority.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use presence_tests::{browser, kit, nats, node, promtool, tools};

/// The suites that need the processors, by the beginnings of their tests' names.
const AUTHORS: [&str; 3] = ["guide::cookbook::", "guide::the_tutorial_", "plugin_kit::"];

/// The suites that run alone, at the end, and their numbers of threads. A browser that draws
/// without a graphics card takes a minute for what takes it a second when it runs alone. Nodes that
/// are held up for longer than a lease show nothing of what is promised; three of them, with their
/// brokers and users, take most of a processor.
const ALONE: [(&str, usize); 2] = [("page::", 1), ("fleet_faults::", 2)];

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
    let presence = fetch_and_build()?;
    println!("presence: {}", presence.display());

    let cores = thread::available_parallelism()?.get();
    let cargo_test = |threads: usize| {
        let threads = std::env::var("RUST_TEST_THREADS").unwrap_or_else(|_| threads.to_string());
        let mut cargo = tools::cargo();
        cargo
            .args(["test", "--workspace"])
            .env("RUST_TEST_THREADS", threads)
            .env("NATS_SERVER", &server)
            .env("PRESENCE_BIN", &presence)
            .current_dir(tools::root());
        cargo
    };
    let mut authors = cargo_test(cores);
    authors.args(["--test", "suites", "--"]).args(AUTHORS);
    let authors = BackgroundCommand::start(&authors)?;

    let mut others = cargo_test(2 * cores);
    others.arg("--");
    for name in AUTHORS.into_iter().chain(ALONE.map(|(name, _)| name)) {
        others.args(["--skip", name]);
    }
    let others = others.status();
    let plugins = tools::cargo()
        .arg("test")
        .current_dir(tools::root().join("plugins"))
        .status();
    // The background command is waited for, whether the others have failed or not.
    let authors = authors.end();
    let alone = ALONE.map(|(name, threads)| {
        cargo_test(threads)
            .args(["--test", "suites", "--", name])
            .status()
    });
    ensure!(
        others.context("running cargo")?.success(),
        "tests of the workspace failed"
    );
    ensure!(
        plugins.context("running cargo")?.success(),
        "tests of the plugins failed"
    );
    ensure!(authors?.success(), "tests of what plugin authors do failed");
    for alone in alone {
        ensure!(
            alone.context("running cargo")?.success(),
            "tests that run alone failed"
        );
    }
    Ok(())
}

/// Fetches what the tests need, and builds everything at the same time: fetching waits for the
/// network, and building for the processors. Returns the host's binary.
fn fetch_and_build() -> Result<PathBuf> {
    thread::scope(|scope| {
        let fetching = scope.spawn(|| {
            println!("npm's packages: {}", node::modules()?.display());
            println!("chromium: {}", browser::find()?.display());
            println!("promtool: {}", promtool::find()?.display());
            kit::fetch()
        });
        let presence = tools::build_all("presence");
        let fetched = fetching.join();
        fetched.map_err(|_| anyhow!("fetching what the tests need panicked"))??;
        presence
    })
}

/// A command that runs beside others, at a lower priority. Its output goes to a file, and is
/// printed when it has ended.
struct BackgroundCommand {
    child: Child,
    log: PathBuf,
}

impl BackgroundCommand {
    fn start(command: &Command) -> Result<Self> {
        let log = tools::target().join("tests-of-authors.log");
        let file = File::create(&log).with_context(|| format!("writing {}", log.display()))?;
        let mut nice = Command::new("nice");
        nice.args(["-n", "10"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdout(file.try_clone()?)
            .stderr(file);
        if let Some(folder) = command.get_current_dir() {
            nice.current_dir(folder);
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => nice.env(name, value),
                None => nice.env_remove(name),
            };
        }
        let child = nice.spawn().context("running nice")?;
        println!("{} (beside: {})", tools::line(command), log.display());
        Ok(Self { child, log })
    }

    /// Waits until it has ended, and prints its output.
    fn end(mut self) -> Result<ExitStatus> {
        let status = self.child.wait()?;
        print!("{}", String::from_utf8_lossy(&fs::read(&self.log)?));
        Ok(status)
    }
}
