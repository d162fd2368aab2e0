//! Paths, and tools. Each tool is fetched once into `target/tools`: it is prepared in another
//! folder and renamed, so that processes that fetch at the same time don't disturb each other.

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

/// The cache of compiled plugins, which all hosts and commands share.
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

/// Makes the folder `target/tools/<name>` once. `prepare` fills another folder, which is then
/// renamed.
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
        // Another process was faster. Its folder is as good.
        Err(_) if place.is_dir() => Ok(place),
        Err(error) => Err(error).with_context(|| format!("moving to {}", place.display())),
        Ok(()) => Ok(place),
    }
}

/// The files of one of Debian's packages. It isn't installed, since an installed package might
/// start a server.
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
/// When it can't be run or fails; the error has its standard error.
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

/// The path of a program in `PATH`.
#[must_use]
pub fn on_path(name: &str) -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&folders).map(|folder| folder.join(name));
    places.find(|place| place.is_file())
}

/// Builds one of the workspace's binaries and returns its path.
///
/// # Errors
/// When Cargo fails; its messages go to standard error.
pub fn build(binary: &str, flags: &[&str]) -> Result<PathBuf> {
    // All builds select the whole workspace, so there is no `--package`.
    build_as(binary, &[&["--bin", binary], flags].concat())
}

/// Builds everything, tests and benches too, and returns the path of one of the binaries.
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

/// Cargo, as if it were called from a shell. `cargo run` sets variables about the package in a
/// program's environment. A build script that depends on them (ring's does) would run again
/// whenever Cargo is called from here after a shell, or the other way round, and most of the host
/// would be built again.
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

/// A command as it is typed.
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
/// The port is below the range from which the kernel takes ports for outgoing connections, so that
/// none of these takes it before it is used. Each process begins at another port.
///
/// # Errors
/// When every port in the range is taken.
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

/// Writes a file so that readers never see half of it: to another file, which is then renamed.
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
