//! The configuration: `presence.toml` and `PRESENCE_…` variables, read once into types that only
//! hold valid values.
//!
//! Every section is read key by key, so that all problems are reported at once, each with its line.
//! The names, defaults and limits of a section's keys are in the section's `read`, and nowhere
//! else. The file `presence.toml` at the top of the repository documents them, and a test checks
//! that both agree.

mod basics;
mod changes;
mod checks;
mod directory;
mod engine;
mod environment;
mod file;
mod fleet;
mod input;
mod limits;
mod nats;
mod overlaps;
mod pipeline;
mod problem;
mod section;
mod settings;
mod similar;
mod state;
mod stored;
mod syntax;
mod telemetry;
mod tenants;
#[cfg(test)]
mod tests;
mod tracker;
mod value;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use toml::de::DeTable;

pub use basics::{
    Correction, DeadLetters, Explain, Http, Inbox, Log, LogFormat, Node, PluginSource, Plugins,
    Query, Status, Tenant, own_state,
};
pub use changes::{Change, Effect, effect_of};
pub use checks::name;
pub use directory::{Directory, Request};
pub use engine::{Engine, Queues};
pub use environment::variables;
pub use file::Text;
pub use fleet::Fleet;
pub use input::Input;
pub use limits::Limits;
pub use nats::{Auth, Nats};
pub use pipeline::{Grant, OnFailure, Source, Stage, StagePlace};
use problem::Lines;
pub use problem::{Place, Problem, Problems};
pub use settings::LoadedConfig;
pub use state::State;
pub use stored::{StoredEntry, StoredTenant, TENANTS_BUCKET};
pub use telemetry::Telemetry;
pub use tenants::TenantSection;
pub use tracker::Tracker;

pub(crate) use pipeline::STAGES_MAX;
pub use section::CLOCK_OFFSET_FILE;
use section::{ConfigReader, Outcome, Section};

/// The file that is read from the working folder when none is named.
pub const FILE_NAME: &str = "presence.toml";

/// All that an operator can set. Paths are resolved against the folder of the
/// configuration file.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Who this node is.
    pub node: Node,
    /// The broker, and how to reach it.
    pub nats: Nats,
    /// The tenant that this node serves.
    pub tenant: Tenant,
    /// When a user is online.
    pub tracker: Tracker,
    /// What is kept over a restart.
    pub state: State,
    /// Several nodes that share the tenant's users.
    pub fleet: Fleet,
    /// Where connects and disconnects are taken from.
    pub input: Input,
    /// Where contacts, groups and blocks come from.
    pub directory: Directory,
    /// Where plugins come from.
    pub plugins: Plugins,
    /// The chain of plugins that decides who may see whom, in order.
    pub pipeline: Vec<Stage>,
    /// How plugins are run.
    pub engine: Engine,
    /// How much of the node the tenant may use.
    pub limits: Limits,
    /// How fast viewers are told of corrections.
    pub correction: Correction,
    /// What is kept for answering queries.
    pub query: Query,
    /// Explanations of decisions.
    pub explain: Explain,
    /// Delivery per viewer.
    pub inbox: Inbox,
    /// Users' statuses.
    pub status: Status,
    /// How many dead letters may be published.
    pub dead_letters: DeadLetters,
    /// The HTTP endpoint for health and metrics.
    pub http: Http,
    /// Metrics and traces for an OpenTelemetry collector.
    pub telemetry: Telemetry,
    /// The node's own log.
    pub log: Log,
    /// A line for each variable that looks like a key's, and is ignored.
    pub ignored_variables: Vec<String>,
    /// The `[[tenant]]` sections. `None` if the node has one tenant.
    pub tenants: Option<Arc<[TenantSection]>>,
}

/// What a node knows of its tenants besides the file.
#[derive(Clone, Copy, Debug, Default)]
pub struct NodeTenants<'a> {
    /// The tenants of the store. If several claim the same subjects, the first one gets them.
    pub stored: &'a [StoredEntry],
    /// The configurations of the running tenants, which keep their subjects.
    pub serving: &'a [Arc<Config>],
}

impl Config {
    /// Reads the file at `path`, or `presence.toml` in the working folder if
    /// there is one, and then the variables in `env`, which win over the file.
    ///
    /// # Errors
    /// All problems, in the order of the file and then of the variables. A file that can't be read,
    /// or that isn't TOML, is one problem.
    pub fn load(
        path: Option<&Path>,
        env: impl Iterator<Item = (String, OsString)>,
    ) -> Result<Self, Problems> {
        Self::load_in(Path::new(""), path, env)
    }

    /// As [`Config::load`], for a caller that goes on in spite of problems. These are returned with
    /// the configuration, which has the default in place of a value that is wrong.
    ///
    /// # Errors
    /// A file that can't be read, or that isn't TOML.
    pub fn load_with_problems(
        path: Option<&Path>,
        env: impl Iterator<Item = (String, OsString)>,
    ) -> Result<LoadedConfig, Problems> {
        Self::read_in(Path::new(""), path, env)
    }

    /// As [`Config::load`], with the working folder given.
    fn load_in(
        working: &Path,
        path: Option<&Path>,
        env: impl Iterator<Item = (String, OsString)>,
    ) -> Result<Self, Problems> {
        Self::read_in(working, path, env)?.into_result()
    }

    fn read_in(
        working: &Path,
        path: Option<&Path>,
        env: impl Iterator<Item = (String, OsString)>,
    ) -> Result<LoadedConfig, Problems> {
        let text = Text::read_in(working, path)?;
        Self::parse_in(working, path, text.as_ref(), env, NodeTenants::default())
    }

    /// Parses the text that [`Text::read`] has returned for the file at `path`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(
        path: Option<&Path>,
        text: Option<&Text>,
        env: impl Iterator<Item = (String, OsString)>,
    ) -> Result<Self, Problems> {
        Self::parse_with(path, text, env, NodeTenants::default())
    }

    /// As [`Config::parse`], on a node whose store has further tenants, and that serves some
    /// already. In a file without `[[tenant]]` sections, the tenants of the store have no effect.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse_with(
        path: Option<&Path>,
        text: Option<&Text>,
        env: impl Iterator<Item = (String, OsString)>,
        node: NodeTenants<'_>,
    ) -> Result<Self, Problems> {
        Self::parse_in(Path::new(""), path, text, env, node)?.into_result()
    }

    fn parse_in(
        working: &Path,
        path: Option<&Path>,
        text: Option<&Text>,
        env: impl Iterator<Item = (String, OsString)>,
        node: NodeTenants<'_>,
    ) -> Result<LoadedConfig, Problems> {
        let usual = working.join(FILE_NAME);
        let file = path.unwrap_or(&usual);
        let file_exists = text.is_some();
        let text = text.map_or("", Text::as_str);
        let document = DeTable::parse(text)
            .map_err(|error| Problems::from(syntax::problem(file, text, &error)))?;
        let env: BTreeMap<_, _> = env.collect();
        let sections = tenants::sections(document.get_ref());
        let rest = tenants::without_tenants(document.get_ref());
        let root = match sections {
            Some(_) => &rest,
            None => document.get_ref(),
        };
        let text = Lines::of(text);
        let mut reader = ConfigReader::new(file, text.clone(), env.clone());
        if sections.is_some() {
            reader.refuse_all(tenants::refused_variables(&env));
        }
        let Outcome {
            value,
            problems,
            ignored_variables,
            settings,
        } = reader.read(root, Self::read);
        let tenants = sections.map(|items| tenants::read(file, &text, &env, &rest, &items, node));
        let (tenants, tenant_settings) = tenants.unzip();
        let ignored_variables = ignored_variables.iter().map(ToString::to_string).collect();
        Ok(LoadedConfig {
            file: file_exists.then(|| file.to_owned()),
            config: Self {
                ignored_variables,
                tenants,
                ..value
            },
            problems,
            settings,
            tenant_settings: tenant_settings.unwrap_or_default(),
        })
    }

    /// Whether the pipeline comes from the plugin store.
    pub fn follows_store(&self) -> bool {
        self.plugins.source == PluginSource::Store
    }

    /// Into how many shards the tenant's users are divided, at least one.
    pub fn shard_count(&self) -> usize {
        match self.tenant.shards {
            _ if self.fleet.enabled => self.fleet.shards as usize,
            0 => self.engine.thread_count().next_power_of_two(),
            shards => shards,
        }
    }

    /// The pipeline in one line: its plugins, in order.
    pub fn pipeline_line(&self) -> String {
        let plugins: Vec<_> = self.pipeline.iter().map(|stage| &*stage.plugin).collect();
        plugins.join(" → ")
    }

    fn read(root: &mut Section<'_, '_>) -> Self {
        Self::read_for(root, fleet::SHARDS)
    }

    /// `fleet_shards`: the default number of shards of a fleet.
    fn read_for(root: &mut Section<'_, '_>, fleet_shards: u32) -> Self {
        let (node, nats) = (
            root.section("node", Node::read),
            root.section("nats", Nats::read),
        );
        let tenant = root.section("tenant", Tenant::read);
        let tracker = root.section("tracker", Tracker::read);
        let state = root.section("state", State::read);
        let fleet = root.section("fleet", |section| {
            Fleet::read(section, fleet_shards, &tenant, &tracker)
        });
        let input = root.section("input", |section| Input::read(section, &state, &fleet));
        Self {
            node,
            nats,
            tenant,
            tracker,
            state,
            fleet,
            input,
            directory: root.section("directory", Directory::read),
            plugins: root.section("plugins", Plugins::read),
            pipeline: root
                .sections("pipeline", STAGES_MAX, Stage::read)
                .unwrap_or_else(pipeline::default),
            engine: root.section("engine", Engine::read),
            limits: root.section("limits", Limits::read),
            correction: root.section("correction", Correction::read),
            query: root.section("query", Query::read),
            explain: root.section("explain", Explain::read),
            inbox: root.section("inbox", Inbox::read),
            status: root.section("status", Status::read),
            dead_letters: root.section("dead_letters", DeadLetters::read),
            http: root.section("http", Http::read),
            telemetry: root.section("telemetry", Telemetry::read),
            log: root.section("log", Log::read),
            ignored_variables: Vec::new(),
            tenants: None,
        }
    }
}

/// The configuration without a file and without variables, in the working folder.
impl Default for Config {
    fn default() -> Self {
        let reader = ConfigReader::new(Path::new(FILE_NAME), Lines::of(""), BTreeMap::new());
        reader.read_defaults(Self::read)
    }
}
