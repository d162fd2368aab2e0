//! `presence check`: all that is wrong, before it is run.

use presence_config::causes::Causes;
use presence_config::directory;
use presence_config::escape::{line, print, print_json, say};
use presence_config::log_filter as log;
use presence_config::{self as config, Config, Effect, Read, effect_of};
use presence_core::names::Names;
use presence_kit::ConfigArg;
use presence_kit::figures;
use presence_kit::text::table;
use presence_node::link::probe;
use presence_node::state;
use presence_rules::in_force::InForce;
use presence_rules::loader::{self, FoundPlugin, Loader};
use serde_json::{Value, json};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Also connects to the broker, and tries every permission that the node needs.
    #[arg(long)]
    connect: bool,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArg,
}

/// What has been found.
#[derive(Default)]
struct Report {
    problems: Vec<Problem>,
    warnings: Vec<String>,
    /// The pipeline in a line, and what each of its stages is loaded from.
    pipeline: Option<(String, Vec<FoundPlugin>)>,
    /// The names of plugins in the folder that no stage names.
    unused: Vec<String>,
    /// The keys that something sets and that take effect at the next start only.
    restart: Vec<String>,
    broker: Option<probe::Found>,
}

/// One thing that is wrong.
struct Problem {
    text: String,
    /// Where in the configuration, if it is there.
    place: Option<String>,
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        let place: Option<&config::Place> = error.downcast_ref();
        Self {
            text: line(Causes(&error)),
            place: place.map(line),
        }
    }
}

impl From<&config::Problem> for Problem {
    fn from(problem: &config::Problem) -> Self {
        Self {
            text: problem.to_string(),
            place: Some(line(&problem.place)),
        }
    }
}

/// Checks the configuration, the directory and the plugins; and the broker, if it is to.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let report =
        match Config::load_with_problems(args.config.config.as_deref(), config::variables()) {
            Ok(read) => Report::of(&read, args.connect)?,
            Err(problems) => Report {
                problems: problems.iter().map(Problem::from).collect(),
                ..Report::default()
            },
        };
    if args.json {
        print_json(report.object())?;
    } else {
        report.tell()?;
    }
    let found = report.problems.len();
    anyhow::ensure!(
        found == 0,
        "{found} problem{} found",
        if found == 1 { "" } else { "s" }
    );
    Ok(())
}

impl Report {
    fn of(read: &Read, connect: bool) -> anyhow::Result<Self> {
        let config = &read.config;
        let wrong = read.problems.iter().flat_map(|problems| problems.iter());
        let mut problems: Vec<_> = wrong.map(Problem::from).collect();
        let mut found: Vec<anyhow::Error> = Vec::new();
        found.extend(log::level(&config.log).err());
        found.extend(config.nats.unreadable());
        if let config::Directory::File { path, is_named } = &config.directory {
            found.extend(directory::load(path, *is_named, &Names::new()).err());
        }
        found.extend(state::problem(&config.state));
        let mut loader = Loader::new(config)?;
        match InForce::read(config) {
            Ok(in_force) => loader = loader.knowing(in_force),
            Err(problem) => found.push(problem),
        }
        found.extend(loader.load(config, true).err().into_iter().flatten());
        found.extend(loader.problems_beside(config));
        let mut broker = None;
        if connect {
            match probe::connect(config) {
                Ok(mut tried) => {
                    found.append(&mut tried.problems);
                    broker = Some(tried);
                }
                Err(error) => found.push(error),
            }
        }
        problems.extend(found.into_iter().map(Problem::from));
        let stages = loader::found_plugins(config);
        let may_redact = stages.iter().any(FoundPlugin::may_redact);
        let unused = loader::unused_files(config);
        let warnings = config.passed_over.iter().cloned();
        let warnings = warnings
            .chain(loader::misnamed_files(config))
            .chain(loader::folder_warning(config))
            .chain(unused.iter().map(|it| loader::unused_warning(config, it)))
            .chain((!may_redact).then(|| loader::NO_REDACTOR.to_owned()));
        let warnings = warnings.collect();
        let set = read.settings.iter().filter(|it| it.place.is_some());
        let restart = set.filter(|it| effect_of(&it.key) == Effect::Restart);
        Ok(Self {
            problems,
            warnings,
            pipeline: Some((loader::survey(config), stages)),
            unused,
            restart: restart.map(|it| it.key.clone()).collect(),
            broker,
        })
    }

    fn tell(&self) -> anyhow::Result<()> {
        for warning in &self.warnings {
            say(format_args!("warning: {warning}"));
        }
        for problem in &self.problems {
            say(format_args!("error: {}", problem.text));
        }
        if let Some(probe::Found {
            unknown, server, ..
        }) = &self.broker
        {
            let (name, version, max_payload) = server;
            let max_payload = figures::bytes(*max_payload as u64);
            print(format_args!(
                "NATS: {}, nats-server {}, messages of at most {max_payload}\n",
                line(name),
                line(version)
            ))?;
            for right in unknown {
                print(format_args!(
                    "can't be found out: whether NATS permits this node {right}\n"
                ))?;
            }
        }
        if !self.restart.is_empty() {
            let keys = self.restart.join(", ");
            print(format_args!(
                "a change takes effect at the next start only: {keys}\n"
            ))?;
        }
        if let Some((_, stages)) = &self.pipeline {
            let stages = stages.iter().map(row);
            let unused = self.unused.iter().map(|name| {
                let [version, role] = [String::new(), String::new()];
                [line(name), version, role, "not used".into()]
            });
            let rows: Vec<_> = stages.chain(unused).collect();
            print(table(["PLUGIN", "VERSION", "ROLE", "FROM"], &rows))?;
        }
        if self.problems.is_empty() {
            print("ok\n")?;
        }
        Ok(())
    }

    fn object(&self) -> Value {
        let problems = self.problems.iter();
        let problems: Vec<_> = problems
            .map(|problem| json!({"text": problem.text, "place": problem.place}))
            .collect();
        let broker = self.broker.as_ref().map(|found| {
            let (name, version, max_payload) = &found.server;
            json!({
                "server": name,
                "version": version,
                "maxPayload": max_payload,
                "unknown": found.unknown,
            })
        });
        json!({
            "ok": problems.is_empty(),
            "problems": problems,
            "warnings": self.warnings,
            "pipeline": self.pipeline.as_ref().map(|(line, _)| line),
            "plugins": self.pipeline.iter().flat_map(|(_, stages)| stages).map(plugin).collect::<Vec<_>>(),
            "unused": self.unused,
            "restart": self.restart,
            "nats": broker,
        })
    }
}

/// What is printed of a stage.
fn row(stage: &FoundPlugin) -> [String; 4] {
    let (version, role) = match &stage.manifest {
        Some((version, role)) => (line(version), (*role).to_owned()),
        None => Default::default(),
    };
    let from = match &stage.source {
        Ok(from) => from,
        Err(why) => why,
    };
    [line(&stage.name), version, role, line(from)]
}

fn plugin(stage: &FoundPlugin) -> Value {
    let manifest = stage.manifest.as_ref();
    json!({
        "plugin": stage.name,
        "version": manifest.map(|(version, _)| version),
        "role": manifest.map(|(_, role)| role),
        "source": stage.source.as_ref().ok(),
        "sha256": (!stage.sha256.is_empty()).then_some(&stage.sha256),
    })
}
