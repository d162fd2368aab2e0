//! Runs the compilers and interpreters of a build.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use presence_config::escape::{eprint_line, line};

use super::Source;

/// The folders in which a virtual environment of Python keeps its programs.
const VENV: [&str; 2] = [".venv/bin", ".venv/Scripts"];

/// Finds a program in the folder's virtual environment or, failing that, on the path.
pub(super) fn find(folder: &Path, program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let own = VENV.iter().map(|bin| folder.join(bin));
    let mut places = own.chain(env::split_paths(&path));
    let found = places.find_map(|place| {
        let file = place.join(format!("{program}{}", env::consts::EXE_SUFFIX));
        file.is_file().then_some(file)
    });
    // Absolute, since tools run in the plugin's folder.
    found.and_then(|file| std::path::absolute(file).ok())
}

/// Runs a tool to its end. Its error output is shown to the author.
///
/// # Errors
/// When it can't be run, or fails.
pub(super) fn run(command: &mut Command) -> anyhow::Result<()> {
    output(command.stdout(Stdio::null())).map(drop)
}

/// Like [`run`], but first says that it takes a while.
///
/// # Errors
/// As [`run`].
pub(super) fn run_long(command: &mut Command, source: &Source<'_>) -> anyhow::Result<()> {
    eprint_line(format_args!(
        "building {}, which takes up to a minute if it has changed",
        line(&source.manifest.name)
    ));
    run(command)
}

/// Like [`run`], but returns what the tool prints.
///
/// # Errors
/// As [`run`].
pub(super) fn output(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let program = Path::new(command.get_program());
    let program = program.file_name().unwrap_or(OsStr::new("the tool"));
    let program = program.to_string_lossy().into_owned();
    let output = command
        // Without backtraces, a tool's error is one readable line.
        .env_remove("RUST_BACKTRACE")
        .stderr(Stdio::inherit())
        .spawn()
        .and_then(std::process::Child::wait_with_output)
        .with_context(|| format!("can't run {program}"))?;
    if !output.status.success() {
        bail!("{program} failed ({}), as said above", output.status);
    }
    Ok(output.stdout)
}
