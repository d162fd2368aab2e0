//! `presence plugin bench`: measures how fast a plugin is, and what its calls cost.

mod measure;
mod world;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::builder::RangedU64ValueParser;
use presence_config::escape::{line, print, print_json};
use presence_rules::limits::limits;
use presence_rules::loader;
use presence_sandbox::manifest::{Case, Role};
use presence_sandbox::{Engine, Limits, Plugin, TestInstance, self_test};
use serde_json::{Value, json};

use crate::ConfigArg;
use crate::figures;
use crate::text;
use measure::Measured;
use world::World;

/// The sizes of the audiences.
const VIEWERS: [u32; 4] = [10, 100, 1_000, 10_000];

/// The arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The plugin: a .wasm file, or a folder, which is built first.
    file: PathBuf,
    /// The self-test whose event and configuration are measured; by default, the first that
    /// expects no error.
    #[arg(long, value_name = "NAME")]
    case: Option<String>,
    /// How long to measure each audience.
    #[arg(long, default_value_t = 1_000, value_parser = RangedU64ValueParser::<u64>::new().range(1..=60_000))]
    ms: u64,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
    // Its limits apply to the calls.
    #[command(flatten)]
    config: ConfigArg,
}

/// The results for a plugin.
struct Contender {
    name: String,
    role: Role,
    size_bytes: usize,
    compiling: Duration,
    instantiating: Duration,
    /// The case whose event and configuration are measured.
    case: Option<String>,
    /// The case itself, with its own audience and directory.
    own: Option<Measured>,
    rows: Vec<Measured>,
}

/// Measures the plugin and the built-in plugin of the same role.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config.load()?;
    // No deadline: slow calls are to be measured, and not ended.
    let limits = limits(&config, false);
    let path = super::file(&args.file)?;
    let bytes = super::read(&path)?;
    let engine = Engine::new()?;
    let time = Duration::from_millis(args.ms);
    let contender = contend(&engine, &path, &bytes, args.case.as_deref(), limits, time)?;
    let counterpart = super::counterpart(contender.role);
    let mut contenders = vec![contender];
    let built_in = loader::built_in(counterpart).context("it isn't built in")?;
    let name = Path::new(counterpart);
    contenders.push(contend(&engine, name, built_in, None, limits, time)?);
    if args.json {
        let plugins = contenders.iter().map(object);
        print_json(json!({"plugins": plugins.collect::<Vec<_>>()}))?;
    } else {
        print(page(&contenders))?;
    }
    Ok(())
}

fn contend(
    engine: &Engine,
    path: &Path,
    bytes: &[u8],
    case: Option<&str>,
    limits: Limits,
    time: Duration,
) -> anyhow::Result<Contender> {
    let begin = Instant::now();
    let plugin = super::load(engine, path, bytes)?;
    let compiling = begin.elapsed();
    let limits = limits.capped_by(plugin.manifest.limits);
    let case = match case {
        Some(name) => Some(super::case(&plugin, name)?),
        None => first_case(&plugin),
    };
    let config = case.map_or(json!({}), |case| case.config.clone());
    let begin = Instant::now();
    let mut trial = TestInstance::new(&plugin, &config, limits)?;
    let instantiating = begin.elapsed();
    let own = case.map(|case| {
        let world = self_test::World::of(case);
        let measured = measure::measure(&mut trial, world.context(), &world.audience, time);
        measured.with_context(|| format!("in the case `{}`", case.name))
    });
    let own = own.transpose()?;
    let mut rows = Vec::new();
    for viewers in VIEWERS {
        let world = World::new(viewers, case);
        let measured = measure::measure(&mut trial, world.context(), &world.audience, time);
        rows.push(measured.with_context(|| format!("at {viewers} viewers"))?);
    }
    Ok(Contender {
        case: case.map(|case| case.name.clone()),
        own,
        name: plugin.manifest.name.clone(),
        role: plugin.manifest.role,
        size_bytes: bytes.len(),
        compiling,
        instantiating,
        rows,
    })
}

/// The first case that expects no error.
fn first_case(plugin: &Arc<Plugin>) -> Option<&Case> {
    let mut cases = plugin.manifest.tests.iter();
    cases.find(|case| case.expect.get("error").is_none())
}

fn object(contender: &Contender) -> Value {
    let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let row = |row: &Measured| {
        json!({
            "viewers": row.viewers,
            "callsPerS": row.calls_per_s,
            "p50Ns": ns(row.p50),
            "p99Ns": ns(row.p99),
            "fuel": row.spent.fuel,
            "memoryBytes": row.spent.memory_bytes,
        })
    };
    json!({
        "plugin": contender.name,
        "sizeBytes": contender.size_bytes,
        "compileNs": ns(contender.compiling),
        "instantiateNs": ns(contender.instantiating),
        "case": contender.case,
        "caseCall": contender.own.as_ref().map(row),
        "calls": contender.rows.iter().map(row).collect::<Vec<_>>(),
    })
}

fn page(contenders: &[Contender]) -> String {
    let mut page = String::new();
    let rows = contenders.iter().map(|contender| {
        [
            line(&contender.name),
            figures::bytes(contender.size_bytes as u64),
            figures::time(contender.compiling),
            figures::time(contender.instantiating),
        ]
    });
    page.push_str(&text::table(
        ["PLUGIN", "SIZE", "COMPILED IN", "INSTANTIATED IN"],
        &rows.collect::<Vec<_>>(),
    ));
    page.push('\n');
    let own = contenders.iter();
    let own = own.filter_map(|contender| Some(cells(contender, contender.own.as_ref()?, "case: ")));
    // The rows of all plugins for one audience stand together.
    let rows = (0..VIEWERS.len()).flat_map(|place| {
        let of = contenders.iter();
        of.filter_map(move |contender| Some(cells(contender, contender.rows.get(place)?, "")))
    });
    page.push_str(&text::table(
        [
            "VIEWERS", "PLUGIN", "CALLS/S", "P50", "P99", "FUEL", "MEMORY",
        ],
        &own.chain(rows).collect::<Vec<_>>(),
    ));
    page.push('\n');
    for contender in contenders {
        if let Some(case) = &contender.case {
            let _ = writeln!(
                page,
                "{}: the case `{}`, as it stands, and with so many contacts as the audience",
                line(&contender.name),
                line(case)
            );
        }
    }
    page
}

/// A row of the table.
fn cells(contender: &Contender, row: &Measured, which: &str) -> [String; 7] {
    [
        format!("{which}{}", figures::grouped(row.viewers)),
        line(&contender.name),
        figures::grouped(row.calls_per_s),
        figures::time(row.p50),
        figures::time(row.p99),
        figures::grouped(row.spent.fuel),
        figures::bytes(row.spent.memory_bytes as u64),
    ]
}
