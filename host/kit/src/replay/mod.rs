//! `presence replay`: reads recorded input, and prints the publications, in virtual time; or, given
//! another plugin, prints how it would change who sees whom.

mod diff;
mod printer;
mod replayer;

use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::ensure;
use presence_config::capture::Capture;
use presence_config::escape::{self, join_problems, json_output, print_json};
use presence_config::subjects::Subjects;
use presence_config::{self as config, Config};
use presence_rules::loader::Loader;
use presence_rules::store_cache::without_store;

use crate::ConfigArg;
use crate::plugin;
use diff::Diff;
use printer::Printer;
use replayer::{ReplayInputs, Replayer};

/// The arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The recorded input: a file of JSON lines.
    file: PathBuf,
    /// A directory file to use instead of the configured directory.
    #[arg(long, value_name = "FILE")]
    directory: Option<PathBuf>,
    /// Prints which viewers would gain and lose sight of which users if this plugin replaced the
    /// one of its name: a .wasm file, or a folder, which is built first.
    #[arg(long)]
    plugin: Option<PathBuf>,
    /// The plugin to compare it with. By default, the configured one of its name or, if there is
    /// none, the pipeline without it.
    #[arg(long, value_name = "PLUGIN", requires = "plugin")]
    against: Option<PathBuf>,
    /// How many differences to show as examples.
    #[arg(long, value_name = "N", default_value_t = 10, requires = "plugin")]
    examples: usize,
    /// Prints the comparison as one JSON object.
    #[arg(long, requires = "plugin")]
    json: bool,
    #[command(flatten)]
    config: ConfigArg,
}

/// Replays a recording, and prints the result.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config.load()?;
    let mut config = without_store(config)?;
    // Opened first, so that a missing file is reported before anything is compiled.
    let capture = Capture::open(&args.file)?;
    if let Some(path) = &args.directory {
        ensure!(path.exists(), "{} does not exist", path.display());
        let path = path.clone();
        config.directory = config::Directory::File {
            path,
            is_named: true,
        };
    }
    let inputs = ReplayInputs::read(&config)?;
    match &args.plugin {
        None => print(capture, &config, &inputs),
        Some(new) => compare(args, &plugin::file(new)?, capture, &config, &inputs),
    }
}

fn print(capture: Capture<'_>, config: &Config, inputs: &ReplayInputs) -> anyhow::Result<()> {
    let blueprint = Loader::new(config)?.load(config, false);
    let mut replayer = Replayer::new(config, &blueprint.map_err(join_problems)?, inputs)?;
    let subjects = Subjects::new(config.tenant.prefix.as_deref());
    let mut printer = Printer::new(
        subjects,
        config.nats.message_ids,
        BufWriter::new(json_output().lock()),
    );
    capture.read(|recorded| {
        printer.begin(recorded.at);
        replayer.play(&recorded, |at, outputs| printer.print(at, outputs))
    })?;
    replayer.settle(|at, outputs| printer.print(at, outputs))?;
    printer.finish()
}

fn compare(
    args: &Args,
    new: &Path,
    capture: Capture<'_>,
    config: &Config,
    inputs: &ReplayInputs,
) -> anyhow::Result<()> {
    let mut loader = Loader::new(config)?;
    let against = args.against.as_deref().map(plugin::file).transpose()?;
    let (new, name) = (loader.plugin_file(new)?, new.display());
    ensure!(
        config
            .pipeline
            .iter()
            .any(|stage| *stage.plugin == *new.name),
        "{name} is the plugin `{}`, and the pipeline has no such stage: {}",
        new.name,
        config.pipeline_line()
    );
    if let Some(path) = against {
        let old = loader.plugin_file(&path)?;
        ensure!(
            old.name == new.name,
            "{name} is the plugin `{}`, and {} is `{}`: only plugins of one name can be compared",
            new.name,
            path.display(),
            old.name
        );
        loader.override_plugin(old);
    }
    let plugin = Arc::clone(&new.name);
    let mut before = config.clone();
    if !loader.has(config, &plugin) {
        // The plugin is new: the pipeline before had no such stage.
        before.pipeline.retain(|stage| *stage.plugin != *plugin);
    }
    let old = loader.load(&before, false);
    let old = old.map_err(join_problems)?;
    loader.override_plugin(new);
    let new = loader.load(config, false).map_err(join_problems)?;
    let mut diff = Diff::new(config, &plugin, [&old, &new], inputs, args.examples)?;
    capture.read(|recorded| diff.play(&recorded))?;
    let report = diff.finish()?;
    if args.json {
        print_json(report.object())?;
    } else {
        escape::print(report.page())?;
    }
    Ok(())
}
