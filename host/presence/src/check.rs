//! `presence check`: finds all that is wrong before a node runs.

use presence_config::causes::Causes;
use presence_config::directory;
use presence_config::escape::{eprint_line, line, print, print_json};
use presence_config::log_filter as log;
use presence_config::{self as config, Config, Effect, LoadedConfig, TenantSection, effect_of};
use presence_core::names::Names;
use presence_kit::ConfigArg;
use presence_kit::figures;
use presence_kit::text::table;
use presence_node::link::probe;
use presence_node::{state, telemetry};
use presence_rules::in_force::InForce;
use presence_rules::loader::{self, Loader, ResolvedPlugin};
use presence_rules::store_cache::without_store;
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
    pipeline: Option<(String, Vec<ResolvedPlugin>)>,
    /// Where the pipeline comes from: in words, and as one word for `--json`.
    source: Option<(String, &'static str)>,
    /// The names of plugins in the folder that no stage names.
    unused: Vec<String>,
    /// The keys that are set and take effect only at the next start.
    restart: Vec<String>,
    broker: Option<probe::Found>,
    /// With several tenants: a line for each, with its name and pipeline.
    tenants: Vec<String>,
}

/// Messages, each with the names of the tenants that it is about. A message that several tenants
/// have in common is kept once.
struct MessagesByTenant<T>(Vec<(T, Vec<String>)>);

impl<T: PartialEq> MessagesByTenant<T> {
    fn add(&mut self, tenant: &str, message: T) {
        match self.0.iter_mut().find(|(known, _)| *known == message) {
            Some((_, tenants)) => tenants.push(tenant.to_owned()),
            None => self.0.push((message, vec![tenant.to_owned()])),
        }
    }

    /// Each message, with its tenants in words.
    fn with_tenants(self) -> impl Iterator<Item = (T, String)> {
        self.0.into_iter().map(|(message, tenants)| {
            let named = match &*tenants {
                [one, other] => format!("tenants `{one}` and `{other}`"),
                [first, others @ ..] if !others.is_empty() => {
                    format!("tenant `{first}` and {} others", others.len())
                }
                few => format!("tenant `{}`", few.concat()),
            };
            (message, named)
        })
    }
}

/// One thing that is wrong.
#[derive(PartialEq)]
struct Problem {
    text: String,
    /// Where in the configuration it is. `None`: it is elsewhere.
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

/// Checks the configuration, the directory and the plugins; with `--connect`, also the broker.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let report = match args.config.read_all() {
        Ok(read) => Report::check_all(read, args)?,
        Err(problems) => Report {
            problems: problems.iter().map(Problem::from).collect(),
            ..Report::default()
        },
    };
    if args.json {
        print_json(report.to_json())?;
    } else {
        report.print()?;
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
    /// Checks the one tenant, or each of several; with `--tenant`, only the one of this name.
    fn check_all(read: LoadedConfig, args: &Args) -> anyhow::Result<Self> {
        let wanted = args.config.tenant.as_deref();
        if let Some(name) = wanted {
            read.config.tenant_section(name)?;
        }
        let Some(tenants) = read.config.tenants.clone() else {
            return Self::check_one(&read, args.connect);
        };
        let mut all = Self {
            problems: read
                .problems
                .iter()
                .flat_map(|it| it.iter())
                .map(Problem::from)
                .collect(),
            ..Self::default()
        };
        let (mut problems, mut warnings) =
            (MessagesByTenant(Vec::new()), MessagesByTenant(Vec::new()));
        let is_wanted = |tenant: &&TenantSection| wanted.is_none_or(|name| tenant.name == name);
        let several = wanted.is_none();
        for tenant in tenants.iter().filter(is_wanted) {
            if let Err(problems) = &tenant.config {
                all.problems.extend(problems.iter().map(Problem::from));
                continue;
            }
            let own = read.of_tenant(&tenant.name)?;
            let mut report = Self::check_one(&own, args.connect)?;
            if several {
                let name = &tenant.name;
                for problem in report.problems.drain(..) {
                    problems.add(name, problem);
                }
                for warning in report.warnings.drain(..) {
                    warnings.add(name, warning);
                }
                all.tenants.push(format!(
                    "{name}: {}",
                    report.pipeline.map(|(line, _)| line).unwrap_or_default()
                ));
            } else {
                report.problems.extend(all.problems);
                return Ok(report);
            }
        }
        let labelled = problems.with_tenants().map(|(problem, of)| Problem {
            text: format!("{of}: {}", problem.text),
            ..problem
        });
        all.problems.extend(labelled);
        let labelled = warnings
            .with_tenants()
            .map(|(text, of)| format!("{of}: {text}"));
        all.warnings.extend(labelled);
        Ok(all)
    }

    fn check_one(read: &LoadedConfig, connect: bool) -> anyhow::Result<Self> {
        let (config, source, beside) = pipeline_of(&read.config);
        let config = &config;
        let wrong = read.problems.iter().flat_map(|problems| problems.iter());
        let mut problems: Vec<_> = wrong.map(Problem::from).collect();
        let mut found: Vec<anyhow::Error> = Vec::new();
        found.extend(log::level(&config.log).err());
        found.extend(config.nats.unreadable_files());
        found.extend(telemetry::config_problem(config));
        if let config::Directory::File { path, is_named } = &config.directory {
            found.extend(directory::load(path, *is_named, &Names::new()).err());
        }
        found.extend(state::problem(&config.state));
        let mut loader = Loader::new(config)?;
        match InForce::read(config) {
            Ok(in_force) => loader = loader.with_in_force(in_force),
            Err(problem) => found.push(problem),
        }
        found.extend(loader.load(config, true).err().into_iter().flatten());
        if !config.follows_store() {
            found.extend(loader.check_unused_files(config));
        }
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
        let stages = loader::resolve_plugins(config);
        let may_redact = stages.iter().any(ResolvedPlugin::may_redact);
        let mut warnings = config.ignored_variables.clone();
        warnings.extend(beside);
        let mut unused = Vec::new();
        if !config.follows_store() {
            unused = loader::unused_files(config);
            warnings.extend(loader::misnamed_files(config));
            warnings.extend(loader::folder_warning(config));
            let not_used = unused.iter().map(|it| loader::unused_warning(config, it));
            warnings.extend(not_used);
        }
        if !may_redact && !stages.is_empty() {
            warnings.push(loader::NO_REDACTOR.to_owned());
        }
        let set = read.settings.iter().filter(|it| it.place.is_some());
        let restart = set.filter(|it| effect_of(&it.key) == Effect::Restart);
        Ok(Self {
            problems,
            warnings,
            pipeline: Some((loader::describe_sources(config), stages)),
            source: Some(source),
            unused,
            restart: restart.map(|it| it.key.clone()).collect(),
            broker,
            tenants: Vec::new(),
        })
    }

    fn print(&self) -> anyhow::Result<()> {
        for warning in &self.warnings {
            eprint_line(format_args!("warning: {warning}"));
        }
        for problem in &self.problems {
            eprint_line(format_args!("error: {}", problem.text));
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
                "a later change of these takes effect at the next start: {keys}\n"
            ))?;
        }
        for tenant in &self.tenants {
            print(format_args!("tenant {tenant}\n"))?;
        }
        if let Some((source, _)) = &self.source {
            print(format_args!("pipeline: {source}\n"))?;
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

    fn to_json(&self) -> Value {
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
            "source": self.source.as_ref().map(|(_, source)| source),
            "pipeline": self.pipeline.as_ref().map(|(line, _)| line),
            "plugins": self.pipeline.iter().flat_map(|(_, stages)| stages).map(plugin).collect::<Vec<_>>(),
            "unused": self.unused,
            "restart": self.restart,
            "nats": broker,
            "tenants": self.tenants,
        })
    }
}

/// A configuration with the pipeline that can be checked here, the source of this pipeline, and
/// warnings about it. If the pipeline comes from the plugin store, it is read from the copy that
/// this node keeps; without a copy, it is empty.
fn pipeline_of(config: &Config) -> (Config, (String, &'static str), Vec<String>) {
    if !config.follows_store() {
        let dir = config.plugins.dir.display();
        let source = format!("of the configuration, with plugins from {dir}");
        return (config.clone(), (source, "folder"), Vec::new());
    }
    let is_written = config.pipeline.iter().any(|it| it.place.0.is_some());
    let mut warnings = Vec::new();
    if is_written {
        warnings.push(
            "the [[pipeline]] sections are of no effect, since the pipeline comes from the plugin \
             store ([plugins] source): `presence pipeline apply` makes them a revision of it"
                .to_owned(),
        );
    }
    let (config, source) = match without_store(config.clone()) {
        Ok(known) => (
            known,
            "of the plugin store, as this node has kept it".to_owned(),
        ),
        Err(error) => {
            warnings.push(format!("{}, so it is not checked", Causes(&error)));
            let pipeline = Vec::new();
            let config = Config {
                pipeline,
                ..config.clone()
            };
            (config, "of the plugin store".to_owned())
        }
    };
    (config, (source, "store"), warnings)
}

/// The row of a stage in the table.
fn row(stage: &ResolvedPlugin) -> [String; 4] {
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

fn plugin(stage: &ResolvedPlugin) -> Value {
    let manifest = stage.manifest.as_ref();
    json!({
        "plugin": stage.name,
        "version": manifest.map(|(version, _)| version),
        "role": manifest.map(|(_, role)| role),
        "source": stage.source.as_ref().ok(),
        "sha256": (!stage.sha256.is_empty()).then_some(&stage.sha256),
    })
}
