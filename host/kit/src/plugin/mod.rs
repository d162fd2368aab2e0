//! `presence plugin`: tools for authors of plugins. They work offline.

mod bench;
mod build;
mod embedded;
mod inspect;
mod language;
mod lines;
mod new;
mod run;
mod sdk;
mod sign;
mod test;
mod update;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::Subcommand;
use presence_sandbox::manifest::{Case, Role};
use presence_sandbox::{Engine, Plugin};

/// What authors of plugins can do.
#[derive(Subcommand)]
pub enum Command {
    /// Makes a folder with a plugin that builds: a rule, its configuration and its tests.
    #[command(
        after_help = "Example:\n  presence plugin new quiet --role filter --lang typescript\n\nThe folder is named like the plugin, and must not exist."
    )]
    New(new::Args),
    /// Builds a plugin's folder into one .wasm file.
    #[command(
        after_help = "Example:\n  presence plugin build quiet -o plugins.d/quiet.wasm\n\nThe language is told by the folder's files: Cargo.toml, plugin.ts or plugin.js, plugin.py, or plugin.c."
    )]
    Build(build::Args),
    /// Prints what a plugin is, what it asks for, and what it can read.
    #[command(after_help = "Example:\n  presence plugin inspect quiet/quiet.wasm")]
    Inspect(inspect::Args),
    /// Runs a plugin's self-tests, as a node does when it loads the plugin.
    #[command(
        after_help = "Example:\n  presence plugin test quiet\n\nA folder is built first. With --update, what came out becomes what is expected, in its plugin.json and in the .wasm file."
    )]
    Test(test::Args),
    /// Runs one input, and prints the answer, what the plugin logs and explains, and what it took.
    #[command(
        after_help = "Examples:\n  presence plugin run quiet --case 'only contacts stay while the user is quiet'\n  presence plugin run quiet.wasm --event - < event.json\n\nA folder is built first. The exit code is 1 if the call fails."
    )]
    Run(run::Args),
    /// Measures a plugin's calls, and those of the built-in plugin of the same role.
    #[command(
        after_help = "Example:\n  presence plugin bench quiet/quiet.wasm\n\nThe event and the configuration are those of a self-test: of --case, or of the first that expects no error. It is measured as it stands, and with so many contacts of the user as the audience."
    )]
    Bench(bench::Args),
    /// Makes a key that plugins are signed with.
    #[command(
        after_help = "Example:\n  presence plugin keygen team.key\n\nIt prints the public key, for [plugins] trusted_keys. A file that exists is not overwritten."
    )]
    Keygen(sign::KeygenArgs),
    /// Signs a plugin, so that nodes can tell who it is from.
    #[command(
        after_help = "Example:\n  presence plugin sign quiet.wasm --key team.key\n\nThe signature is in the file, in the format of the WebAssembly tool conventions. A plugin can\nhave several, each of another key."
    )]
    Sign(sign::SignArgs),
    /// Verifies with which trusted keys a plugin is signed.
    #[command(
        after_help = "Example:\n  presence plugin verify quiet.wasm --key ed25519:…\n\nThe exit code is 1 if it is signed with none of them, or was changed later."
    )]
    Verify(sign::VerifyArgs),
}

/// Runs a subcommand.
pub fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::New(args) => new::run(args),
        Command::Build(args) => build::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Test(args) => test::run(args),
        Command::Run(args) => run::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Keygen(args) => sign::keygen(args),
        Command::Sign(args) => sign::sign(args),
        Command::Verify(args) => sign::verify(args),
    }
}

/// The plugin's file: the given file, or the one that the given folder is built to.
pub(crate) fn file(path: &Path) -> anyhow::Result<PathBuf> {
    if path.is_dir() {
        build::build(path, None).map(|built| built.file)
    } else {
        Ok(path.to_owned())
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("can't read {}", path.display()))
}

/// Compiles a plugin. Errors name its file.
fn load(engine: &Engine, path: &Path, bytes: &[u8]) -> anyhow::Result<Arc<Plugin>> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let plugin = Plugin::load(engine, &name, bytes);
    let plugin = plugin.with_context(|| format!("{} can't be used", path.display()))?;
    Ok(Arc::new(plugin))
}

/// The plugin's self-test of this name.
fn case<'a>(plugin: &'a Plugin, name: &str) -> anyhow::Result<&'a Case> {
    let tests = &plugin.manifest.tests;
    tests
        .iter()
        .find(|case| case.name == name)
        .with_context(|| {
            let names: Vec<_> = tests
                .iter()
                .map(|case| format!("`{}`", case.name))
                .collect();
            format!(
                "`{}` has no self-test `{name}`; it has {}",
                plugin.manifest.name,
                match names.is_empty() {
                    true => "none".to_owned(),
                    false => names.join(", "),
                }
            )
        })
}

/// Writes a file atomically, so that nobody reads half of it, such as a host that watches it.
fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let place = || format!("can't write {}", path.display());
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut beside = tempfile::NamedTempFile::new_in(folder).with_context(place)?;
    std::io::Write::write_all(&mut beside, bytes).with_context(place)?;
    readable(beside.path()).with_context(place)?;
    beside.persist(path).with_context(place)?;
    Ok(())
}

/// Makes a file readable for everyone: a temporary file is only its owner's.
#[cfg(unix)]
fn readable(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
}

#[cfg(not(unix))]
fn readable(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// The built-in plugin that a plugin of this role is compared with.
fn counterpart(role: Role) -> &'static str {
    match role {
        Role::Enricher => "device-class",
        Role::Filter => "contacts",
        Role::Redactor => "redact",
    }
}
