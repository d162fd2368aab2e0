//! A real browser: Chromium, without a window.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process::Process;
use crate::tools;

/// The program's names: Debian's, and others.
const NAMES: [&str; 3] = ["chromium", "chromium-browser", "google-chrome"];

/// No window, and no requests of its own on the network.
const FLAGS: [&str; 11] = [
    "--headless",
    // As root, as in CI, it has no sandbox.
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--proxy-server=direct://",
];

/// A running browser on one page. It ends when dropped.
#[derive(Debug)]
pub struct Browser {
    /// The process, with its log.
    pub process: Process,
    _profile: TempDir,
}

impl Browser {
    /// Opens a page.
    ///
    /// # Errors
    /// When there is no browser and none can be installed, or it can't be started.
    pub fn open(url: &str) -> Result<Self> {
        let profile = tempfile::Builder::new()
            .prefix("presence-browser-")
            .tempdir()?;
        let mut command = Command::new(find()?);
        command
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("--enable-logging=stderr")
            .arg(url);
        Ok(Self {
            process: Process::spawn("chromium", &mut command)?,
            _profile: profile,
        })
    }
}

/// The path of a browser: `CHROMIUM`, one on the path, or Debian's, which is installed if
/// there is none.
///
/// # Errors
/// When there is none and it can't be installed; the error says what to do.
pub fn find() -> Result<PathBuf> {
    static FOUND: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    match &*found {
        Some(path) => Ok(path.clone()),
        None => Ok(found.insert(look()?).clone()),
    }
}

fn look() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("CHROMIUM") {
        return Ok(named.into());
    }
    if let Some(there) = on_path() {
        return Ok(there);
    }
    eprintln!("there is no Chromium; installing Debian's");
    install().context(
        "no Chromium: install it so that `chromium` is on the path (as root, `apt-get install \
         chromium`), or name one in CHROMIUM",
    )?;
    on_path().context("Debian's package `chromium` put no `chromium` on the path")
}

fn on_path() -> Option<PathBuf> {
    NAMES.iter().find_map(|name| tools::on_path(name))
}

fn install() -> Result<()> {
    let apt = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        command.args(args).env("DEBIAN_FRONTEND", "noninteractive");
        tools::run(&mut command).map(drop)
    };
    let package = ["install", "--yes", "--no-install-recommends", "chromium"];
    // Another test process may be installing, too.
    let package = [&["-o", "DPkg::Lock::Timeout=600"], &package[..]].concat();
    apt(&package).or_else(|_| {
        apt(&["-qq", "update"])?;
        apt(&package)
    })
}
