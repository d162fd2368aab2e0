//! A plugin author's folder: made by `presence plugin new`, and built with tools that are fetched
//! once, in the same way as an author fetches them.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::toolchain::Toolchain;
use crate::{host, node, tools};

/// The languages that there are templates for.
pub const LANGUAGES: [&str; 4] = ["rust", "typescript", "python", "c"];

/// A folder with one plugin in it.
#[derive(Debug)]
pub struct Kit {
    around: TempDir,
    name: String,
    variables: Vec<(&'static str, OsString)>,
    _turn: Option<File>,
}

impl Kit {
    /// Makes a plugin by `presence plugin new`, and provides what its language needs.
    ///
    /// # Errors
    /// When the tools can't be fetched, or `new` fails.
    pub fn new(name: &str, role: &str, language: &str) -> Result<Self> {
        let around = tempfile::Builder::new().prefix("presence-kit-").tempdir()?;
        let mut kit = Self {
            around,
            name: name.into(),
            variables: Vec::new(),
            _turn: (language == "rust").then(|| turn(name)).transpose()?,
        };
        kit.succeed(&["new", name, "--role", role, "--lang", language])?;
        if language == "typescript" {
            let modules = npm_packages()?;
            std::os::unix::fs::symlink(modules, kit.folder().join("node_modules"))?;
        }
        kit.variables = variables(language)?;
        Ok(kit)
    }

    /// The plugin's folder.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.around.path().join(&self.name)
    }

    /// The component that the folder is built to.
    #[must_use]
    pub fn plugin(&self) -> PathBuf {
        self.folder().join(format!("{}.wasm", self.name))
    }

    /// Runs `presence plugin` with arguments, in the folder around the plugin's.
    ///
    /// # Errors
    /// When it can't be run.
    pub fn run(&self, args: &[&str]) -> Result<Output> {
        let mut command = plugin_command(self.around.path())?;
        command.args(args).envs(self.variables.iter().cloned());
        command.output().context("running presence plugin")
    }

    /// As [`Self::run`], and returns what it printed.
    ///
    /// # Errors
    /// When it fails; the error has its output.
    pub fn succeed(&self, args: &[&str]) -> Result<String> {
        let output = self.run(args)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "presence plugin {args:?}: {stderr}"
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// As [`Self::succeed`], for a command that prints JSON.
    ///
    /// # Errors
    /// When it fails, or doesn't print JSON.
    pub fn json(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.succeed(args)?)?)
    }

    /// Runs the author's own tests, as the template's README says.
    ///
    /// # Errors
    /// When they fail; the error has their output.
    pub fn own_tests(&self, command: &str) -> Result<()> {
        let mut words = command.split(' ');
        let mut program = Command::new(words.next().unwrap_or_default());
        program
            .args(words)
            .envs(self.variables.iter().cloned())
            .current_dir(self.folder());
        tools::run(&mut program).map(drop)
    }
}

/// `presence plugin`, in a folder, without the settings in this process's environment.
///
/// # Errors
/// When there is no binary.
pub fn plugin_command(folder: &Path) -> Result<Command> {
    let mut command = Command::new(host::binary()?);
    command.arg("plugin").current_dir(folder);
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("PRESENCE_") || text.starts_with("CARGO_PKG_") {
            command.env_remove(name);
        }
    }
    command.env("PRESENCE_PLUGINS_CACHE", tools::compiled());
    command.env("XDG_STATE_HOME", tools::user_state());
    Ok(command)
}

/// Fetches what plugins are built with, for all languages.
///
/// # Errors
/// When something can't be fetched; says what has to be installed.
pub fn fetch() -> Result<()> {
    for language in LANGUAGES {
        variables(language).with_context(|| format!("for plugins in {language}"))?;
    }
    Ok(())
}

/// Waits until nobody else works on a Rust project of this name. Its turn lasts as long as the
/// returned file is kept. All Rust projects are built in one folder, where two of the same name
/// would overwrite each other.
///
/// # Errors
/// When the lock file can't be written.
pub fn turn(name: &str) -> Result<File> {
    let folder = tools::target().join("plugin-kit");
    fs::create_dir_all(&folder)?;
    let file = File::create(folder.join(format!("{name}.lock")))?;
    file.lock()?;
    Ok(file)
}

/// The environment variables that a language's tools need.
///
/// # Errors
/// When the tools can't be fetched.
pub fn variables(language: &str) -> Result<Vec<(&'static str, OsString)>> {
    match language {
        "rust" => {
            let mut variables = Toolchain::obtain(&tools::target())?.variables();
            // All plugins share what the SDK depends on.
            let target = tools::target().join("plugin-kit");
            variables.push(("CARGO_TARGET_DIR", target.into()));
            Ok(variables)
        }
        "python" | "c" => python_packages(),
        _ => npm_packages().map(|_| Vec::new()),
    }
}

/// npm's packages for plugins in TypeScript: one folder for all.
fn npm_packages() -> Result<PathBuf> {
    let package = template("typescript/all/package.json")?;
    let package = package.replace("{{package}}", "plugin-kit");
    let name = format!("plugin-npm-{:08x}", node::crc(package.as_bytes()));
    let fetched = tools::fetched(&name, |beside| {
        fs::write(beside.join("package.json"), &package)?;
        let mut npm = Command::new("npm");
        npm.args(["install", "--no-audit", "--no-fund"])
            .current_dir(beside);
        tools::run(&mut npm).map(drop)
    });
    let fetched =
        fetched.context("Node 20 or newer is needed, with npm, from https://nodejs.org")?;
    Ok(fetched.join("node_modules"))
}

/// PyPI's packages for plugins in Python and C. Not in a virtual environment,
/// which can't be moved to its place.
fn python_packages() -> Result<Vec<(&'static str, OsString)>> {
    let needed = template("python/all/requirements.txt")? + &template("c/all/requirements.txt")?;
    let name = format!("plugin-python-{:08x}", node::crc(needed.as_bytes()));
    let fetched = tools::fetched(&name, |beside| {
        let requirements = beside.join("requirements.txt");
        fs::write(&requirements, &needed)?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--target"])
            .arg(beside)
            .arg("-r")
            .arg(requirements);
        tools::run(&mut pip).map(drop)
    });
    let fetched = fetched.context("Python 3.10 or newer is needed, with pip")?;
    let path = env::var_os("PATH").unwrap_or_default();
    let places = std::iter::once(fetched.join("bin")).chain(env::split_paths(&path));
    let path = env::join_paths(places)?;
    Ok(vec![("PATH", path), ("PYTHONPATH", fetched.into())])
}

fn template(path: &str) -> Result<String> {
    let path = tools::root().join("plugins/templates").join(path);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}
