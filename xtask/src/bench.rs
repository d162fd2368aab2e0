//! `cargo xtask bench`: measures presence and its alternatives, on a real nats-server, in one run.
//!
//! Each contender runs as a process of its own, built for release, on the same broker. All get the
//! same messages, in turns, so that the machine's noise affects them alike.

pub(crate) mod contender;
mod cpu;
mod density;
mod entrants;
mod fairness;
mod fan_out;
mod fleet;
mod generator;
mod heartbeats;
pub(crate) mod in_process;
mod load;
mod memory;
mod operating;
mod queries;
mod storm;
mod table;
mod times;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use presence_tests::nats::{self, NatsServer, Options};
use presence_tests::tools;
use tokio::runtime::Runtime;

/// The arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How often each contender is measured; the median counts.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// The most messages under way at a time.
    #[arg(long, default_value_t = 512)]
    window: usize,
    /// The sizes of the audience.
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1_000])]
    viewers: Vec<usize>,
    /// How many swaps of the pipeline are measured.
    #[arg(long, default_value_t = 10_000)]
    swaps: u64,
    /// How many of them there are in a second.
    #[arg(long, default_value_t = 25)]
    swaps_per_s: u32,
    /// How many tenants a node has whose density is measured.
    #[arg(long, default_value_t = 1_000)]
    tenants: usize,
    /// How many connections are lost in a storm, and come back; how many a fleet's shard has.
    #[arg(long, default_value_t = 100_000)]
    connections: usize,
    /// How many messages a second a fleet's nodes get whose processor time is measured.
    #[arg(long, default_value_t = 20_000)]
    fleet_per_s: u32,
    /// How many connections a node has whose memory is measured.
    #[arg(long, default_value_t = 1_000_000)]
    resident_connections: usize,
    /// The binary of an earlier `presence`, which is measured beside this one.
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Measures only the contenders that need no host.
    #[arg(long)]
    without_presence: bool,
    /// Measures only these parts.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Runs the Criterion benches of core and sandbox as well.
    #[arg(long)]
    criterion: bool,
    /// Set by the task itself: this is the build for release.
    #[arg(long, hide = true)]
    measure: bool,
}

/// What can be measured alone.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// An event in, a filtered event out, at each size of the audience.
    Events,
    /// Heartbeats taken in.
    Heartbeats,
    /// Queries and their answers.
    Queries,
    /// The ledger, and swaps of the pipeline.
    InProcess,
    /// Swaps of the pipeline while events come: latency and memory.
    Swaps,
    /// What a shadow, and scrapes of the metrics, take from the active path.
    Beside,
    /// A quiet tenant beside a hostile one of each kind.
    Fairness,
    /// Many tenants on one node: time to start, memory, threads, subscriptions.
    Density,
    /// All connections of a tenant are lost at once and come back, beside a quiet one.
    Storm,
    /// A fleet: takeover, hand-over, what a standby and a router take.
    Fleet,
    /// What connections take of a node's memory.
    Memory,
    /// Instructions for an event in the core.
    Instructions,
}

impl Args {
    fn measures(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// Builds xtask and presence for release, and measures with this xtask: the load generator must not
/// be the limit.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args.measure {
        return measure(args);
    }
    eprintln!("Building for release: xtask and presence");
    let xtask = tools::build("xtask", &["--release"])?;
    let mut command = Command::new(xtask);
    command.args(std::env::args_os().skip(1)).arg("--measure");
    if !args.without_presence {
        command.env("PRESENCE_BIN", tools::build("presence", &["--release"])?);
        if args.measures(Part::InProcess) {
            in_process::build()?;
        }
    }
    succeed(&mut command)?;
    if args.criterion {
        let benches = [
            "bench", "--bench", "filter", "--bench", "shard", "--bench", "tracker",
        ];
        succeed(
            Command::new(env!("CARGO"))
                .args(benches)
                .current_dir(tools::root()),
        )?;
    }
    Ok(())
}

fn measure(args: &Args) -> Result<()> {
    let runtime = Runtime::new()?;
    let monitoring_port = tools::free_port()?;
    let options = Options {
        monitoring_port: Some(monitoring_port),
        ..Options::default()
    };
    let broker = Broker {
        server: runtime.block_on(NatsServer::start_with(options))?,
        monitoring_port,
        runtime,
    };
    let version = tools::run(Command::new(nats::find()?).arg("--version"))?;
    let cores = std::thread::available_parallelism()?;
    println!(
        "{}, {cores} cores, {} messages under way at most",
        version.trim(),
        args.window
    );

    let mut figures = Vec::new();
    if args.measures(Part::Events) {
        for viewers in &args.viewers {
            eprintln!("Measuring with {viewers} viewers");
            figures.push(fan_out::measure(&broker, args, *viewers)?);
        }
        println!("\n{}", table::fan_out(&figures));
    }
    if args.measures(Part::Heartbeats) {
        eprintln!("Measuring heartbeats");
        let heartbeats = heartbeats::measure(&broker, args)?;
        println!("{}", table::heartbeats(&heartbeats));
    }
    if args.without_presence {
        return Ok(());
    }
    if args.measures(Part::Queries) {
        eprintln!("Measuring queries");
        println!("{}", table::queries(&queries::measure(&broker, args)?));
    }
    if args.measures(Part::InProcess) {
        eprintln!("Measuring the ledger and swaps");
        let ledger = in_process::Ledger::measure()?;
        println!("{}", table::ledger(&ledger, &figures));
        println!("{}", table::swaps(&in_process::Swaps::measure()?));
    }
    if args.measures(Part::Beside) {
        eprintln!("Measuring a shadow, and scrapes of the metrics");
        println!(
            "{}",
            table::side_loads(&operating::side_loads(&broker, args)?)
        );
    }
    if args.measures(Part::Swaps) {
        eprintln!(
            "Measuring {} swaps under load, {} a second",
            args.swaps, args.swaps_per_s
        );
        println!("{}", table::under_load(&operating::swaps(&broker, args)?));
    }
    if args.measures(Part::Fairness) {
        println!("{}", table::fairness(&fairness::measure(&broker, args)?));
    }
    if args.measures(Part::Density) {
        eprintln!("Measuring a node with {} tenants", args.tenants);
        println!("{}", table::density(&density::measure(&broker, args)?));
    }
    if args.measures(Part::Storm) {
        println!("{}", table::storm(&storm::measure(&broker, args)?));
    }
    if args.measures(Part::Fleet) {
        println!("{}", table::fleet(&fleet::measure(&broker, args)?));
    }
    if args.measures(Part::Memory) {
        println!("{}", table::memory(&memory::measure(&broker, args)?));
    }
    if args.measures(Part::Instructions) {
        println!("{}", crate::instructions::counted()?);
    }
    Ok(())
}

/// The broker that everything measured runs on.
struct Broker {
    server: NatsServer,
    monitoring_port: u16,
    runtime: Runtime,
}

impl Broker {
    /// How many messages clients have published on it so far.
    fn messages_in(&self) -> Result<u64> {
        let varz = presence_tests::http::get(self.monitoring_port, "/varz");
        let varz: serde_json::Value = serde_json::from_str(&self.runtime.block_on(varz)?.body)?;
        varz.get("in_msgs")
            .and_then(serde_json::Value::as_u64)
            .context("varz has in_msgs")
    }

    fn pid(&self) -> Result<u32> {
        self.server.id().context("the broker runs")
    }
}

fn succeed(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("running `{}`", tools::line(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", tools::line(command));
    }
    Ok(())
}
