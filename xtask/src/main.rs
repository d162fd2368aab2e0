//! The project's own tasks: `cargo xtask demo`, `test`, `bench`, `instructions`,
//! `simulate`, `scale`, `plugins` and `guide`.
//! Each does all of its own set-up.

mod bench;
mod demo;
mod guide;
mod instructions;
mod plugins;
mod scale;
mod simulate;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The project's own tasks.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Shows presence at work on a real nats-server, step by step.
    Demo(demo::Args),
    /// Gets what the tests need and runs every one of them.
    Test(test::Args),
    /// Builds the plugins' components into plugins/dist.
    Plugins(plugins::Args),
    /// Builds the guide under docs/ as a book.
    Guide(guide::Args),
    /// Measures presence beside a raw relay, a native filter and Node.
    Bench(bench::Args),
    /// Counts the instructions of an event in the core.
    Instructions(instructions::Args),
    /// Runs the simulator of a fleet over more seeds than the tests do.
    Simulate(simulate::Args),
    /// Simulates what users cost, and carries it over to many millions.
    Scale(scale::Args),
    /// One process of the benchmark.
    #[command(hide = true)]
    BenchContender(bench::contender::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Plugins(args) => plugins::run(&args),
        Task::Guide(args) => guide::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Instructions(args) => instructions::run(&args),
        Task::Simulate(args) => simulate::run(&args),
        Task::Scale(args) => scale::run(&args),
        Task::BenchContender(args) => bench::contender::run(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
