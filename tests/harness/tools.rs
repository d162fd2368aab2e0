//! Where things are, and how tools come to be there: each is fetched once into
//! `target/tools`, prepared beside its place and renamed into it, so that
//! processes that fetch at the same time don't disturb each other.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result, bail};

/// The top of the repository.
#[must_use]
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_owned()
}

/// Cargo's target folder.
#[must_use]
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => root().join(folder),
        None => root().join("target"),
    }
}

/// Where plugins are kept as one host or command has compiled them, for all others.
#[must_use]
pub fn compiled() -> PathBuf {
    target().join("presence-cache")
}

/// The folder for state of the user who runs the tests: it holds the key of
/// [`compiled`] plugins.
#[must_use]
pub fn user_state() -> PathBuf {
    target().join("presence-user-state")
}

/// Makes the folder `target/tools/<name>` once: `prepare` fills a folder beside
/// it, which then takes its place.
///
/// # Errors
/// When `prepare` fails, or the folder can't be written.
pub fn fetched(name: &str, prepare: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let tools = target().join("tools");
    let place = tools.join(name);
    if place.is_dir() {
        return Ok(place);
    }
    fs::create_dir_all(&tools).with_context(|| format!("creating {}", tools.display()))?;
    let beside = tempfile::Builder::new()
        .prefix(&format!(".{name}-"))
        .tempdir_in(&tools)?;
    prepare(beside.path())?;
    match fs::rename(beside.path(), &place) {
        // Another process was faster, and what it made is as good.
        Err(_) if place.is_dir() => Ok(place),
        Err(error) => Err(error).with_context(|| format!("moving to {}", place.display())),
        Ok(()) => Ok(place),
    }
}

/// The files of one of Debian's packages, which is not installed: that might start a server.
///
/// # Errors
/// When it can't be downloaded, or unpacked.
pub fn debian(package: &str) -> Result<PathBuf> {
    let download = |folder: &Path| {
        let mut apt = Command::new("apt-get");
        apt.args(["download", package]).current_dir(folder);
        run(&mut apt).map(drop)
    };
    fetched(&format!("{package}-debian"), |folder| {
        download(folder).or_else(|_| {
            run(Command::new("apt-get").args(["-qq", "update"]))?;
            download(folder)
        })?;
        for entry in fs::read_dir(folder)? {
            let package = entry?.path();
            run(Command::new("dpkg").arg("-x").arg(&package).arg(folder))?;
            fs::remove_file(package)?;
        }
        Ok(())
    })
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// When it can't be run or fails; the error carries what it wrote.
pub fn run(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command
        .output()
        .with_context(|| format!("running `{line}`"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{line}` failed ({}):\n{}",
            output.status,
            stderr.trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A program on the path.
#[must_use]
pub fn on_path(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&folders).map(|folder| folder.join(name));
    places.find(|place| place.is_file())
}

/// Builds one of the workspace's binaries and returns its path.
///
/// # Errors
/// When Cargo fails; what it says goes to standard error.
pub fn build(binary: &str, flags: &[&str]) -> Result<PathBuf> {
    // Not by its package: all builds select the whole workspace.
    build_as(binary, &[&["--bin", binary], flags].concat())
}

/// Builds all there is, tests and benches too, and returns the path of one of the
/// binaries.
///
/// # Errors
/// As [`build`].
pub fn build_all(binary: &str) -> Result<PathBuf> {
    build_as(binary, &["--workspace", "--all-targets"])
}

fn build_as(binary: &str, flags: &[&str]) -> Result<PathBuf> {
    let mut command = cargo();
    command
        .args(["build", "--message-format", "json-render-diagnostics"])
        .args(flags)
        .current_dir(root())
        .stderr(Stdio::inherit());
    let output = command.output().context("running cargo")?;
    if !output.status.success() {
        bail!("`{}` failed", line(&command));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let mut executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message.get("executable")?.as_str().map(PathBuf::from)
    });
    let built = executables.find(|path| path.file_stem() == Some(OsStr::new(binary)));
    built.with_context(|| format!("cargo built no executable `{binary}`"))
}

/// Cargo, as if it were called from a shell. `cargo run` tells a program of the
/// package it is from; a build script that looks at that (ring's does) would be
/// run anew whenever Cargo is called from here after a shell, or the other way
/// round, and with it most of the host built again.
#[must_use]
pub fn cargo() -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command
}

/// A command as one would type it.
#[must_use]
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}

/// A TCP port on loopback that nobody listens on.
///
/// It lies below the range from which the kernel picks ports for outgoing
/// connections, so nothing takes it by chance before it is used; processes
/// begin at different places.
///
/// # Errors
/// When every port of the range is taken.
pub fn free_port() -> Result<u16> {
    const FIRST: u16 = 15_000;
    const COUNT: u16 = 15_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_mul(97).wrapping_add(step)) % COUNT;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port between {FIRST} and {}", FIRST + COUNT)
}

/// Writes a file the way that readers never see half of it: beside its place,
/// then renamed.
///
/// # Errors
/// When it can't be written.
pub fn write_atomically(path: &Path, bytes: impl AsRef<[u8]>) -> Result<()> {
    let folder = path.parent().context("a file has a folder")?;
    let mut beside = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("writing beside {}", path.display()))?;
    std::io::Write::write_all(&mut beside, bytes.as_ref())?;
    beside
        .persist(path)
        .with_context(|| format!("renaming to {}", path.display()))?;
    Ok(())
}
