//! Node with npm's clients of NATS, installed once from the lock file under `tests/node`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::Process;
use crate::tools;

/// Starts a script of this repository (a path from its top) with arguments.
///
/// # Errors
/// When there is no Node, or npm's packages can't be installed.
pub fn spawn(script: &str, args: &[&str]) -> Result<Process> {
    let mut command = command()?;
    command.arg(tools::root().join(script)).args(args);
    start(script, &mut command)
}

/// Runs files of this repository (paths from its top) with Node's own test runner, which get a
/// broker's address.
///
/// # Errors
/// As [`spawn`].
pub fn test(files: &[&str], nats_url: &str) -> Result<Process> {
    let mut command = command()?;
    let files = files.iter().map(|file| tools::root().join(file));
    command
        .env("PRESENCE_NATS_URL", nats_url)
        .arg("--test")
        .args(files);
    start("node --test", &mut command)
}

/// Node, with the path of npm's packages.
fn command() -> Result<Command> {
    let mut command = Command::new("node");
    command.env("NODE_PATH", modules()?);
    Ok(command)
}

fn start(name: &str, command: &mut Command) -> Result<Process> {
    Process::spawn(name, command)
        .context("Node is needed: install Node 20 or newer so that `node` is on the path")
}

/// The folder of the installed packages.
///
/// # Errors
/// When npm is missing or can't install them.
pub fn modules() -> Result<PathBuf> {
    let manifests = tools::root().join("tests/node");
    let lock = fs::read(manifests.join("package-lock.json"))?;
    // Each lock file has a folder of its own, so that a changed one is installed anew.
    let folder = tools::fetched(&format!("node-{:08x}", crc(&lock)), |folder| {
        install(&manifests, folder)
    })
    .context("installing npm's packages (npm is needed beside Node)")?;
    Ok(folder.join("node_modules"))
}

fn install(manifests: &Path, folder: &Path) -> Result<()> {
    for name in ["package.json", "package-lock.json"] {
        fs::copy(manifests.join(name), folder.join(name))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"])
        .current_dir(folder);
    tools::run(&mut npm).map(drop)
}

/// CRC-32, bit by bit. It only names what is installed, and protects nothing: npm itself checks the
/// packages by the hashes in the lock file.
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| {
        if crc & 1 == 1 {
            (crc >> 1) ^ 0xEDB8_8320
        } else {
            crc >> 1
        }
    };
    !bytes
        .iter()
        .fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}
