//! A Rust toolchain that builds for wasm32-unknown-unknown.
//!
//! The toolchain that runs this task is used if it has this target, or if rustup can add it. If
//! rustup can't (no access to static.rust-lang.org, or no rustup), Debian's packages are unpacked
//! under the target folder. This needs no root.

mod debian;

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

/// The target of plugins: Wasm without an operating system, so that nothing in a component can ask
/// for one.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// A `rustc` that has the target, and the `cargo` that runs it.
#[derive(Debug)]
pub struct Toolchain {
    rustc: OsString,
    /// The folder of the libraries that `rustc` is linked with. `None`: the system's linker finds
    /// them.
    libraries: Option<PathBuf>,
}

impl Toolchain {
    /// Finds a toolchain, or gets one. `target_dir`: the folder in which one may be kept.
    ///
    /// # Errors
    /// When there is none and none can be fetched; says each thing that was tried. When the lock file
    /// in `target_dir` can't be written.
    pub fn obtain(target_dir: &Path) -> Result<Self> {
        let own = Self {
            rustc: env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()),
            libraries: None,
        };
        if own.has_target() {
            return Ok(own);
        }
        // Several programs and threads may begin at once, and rustup fails if another one adds the
        // same target.
        fs::create_dir_all(target_dir)?;
        let turn = File::create(target_dir.join("wasm-toolchain.lock"))?;
        turn.lock()?;
        if own.has_target() {
            return Ok(own);
        }
        let kept = target_dir.join("wasm-toolchain");
        if kept.exists() {
            return Ok(debian::at(&kept));
        }
        let Err(rustup) = run(Command::new("rustup").args(["target", "add", TARGET])) else {
            return Ok(own);
        };
        eprintln!(
            "rustup can't add {TARGET}; unpacking Debian's Rust into {}",
            kept.display()
        );
        debian::unpack(&kept).map_err(|debian| {
            anyhow!(
                "no Rust toolchain builds for {TARGET}. rustup: {}. Debian's packages: {debian:#}",
                one_line(&rustup)
            )
        })?;
        Ok(debian::at(&kept))
    }

    /// `rustc --version`.
    ///
    /// # Errors
    /// When it can't be run.
    pub fn rustc_version(&self) -> Result<String> {
        run(self.command(&self.rustc).arg("--version"))
    }

    /// `cargo --version`.
    ///
    /// # Errors
    /// When it can't be run.
    pub fn cargo_version(&self) -> Result<String> {
        run(self.cargo().arg("--version"))
    }

    /// The folder of this toolchain's standard library.
    ///
    /// # Errors
    /// When `rustc` can't be run.
    pub fn sysroot(&self) -> Result<PathBuf> {
        run(self.command(&self.rustc).args(["--print", "sysroot"])).map(PathBuf::from)
    }

    /// The environment variables with which a program that runs `cargo` and `rustc` itself uses
    /// this toolchain.
    #[must_use]
    pub fn variables(&self) -> Vec<(&'static str, OsString)> {
        let mut variables = vec![("RUSTC", self.rustc.clone())];
        if let Some(libraries) = &self.libraries {
            variables.push(("LD_LIBRARY_PATH", libraries.clone().into()));
        }
        variables
    }

    /// The `cargo` that runs this task, with this `rustc`. Variables of the caller that would
    /// change the result are removed.
    #[must_use]
    pub fn cargo(&self) -> Command {
        let mut cargo = self.command(&env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .env("RUSTC", &self.rustc)
            .env("CARGO_INCREMENTAL", "0");
        for name in [
            "RUSTFLAGS",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_BUILD_TARGET",
        ] {
            cargo.env_remove(name);
        }
        cargo
    }

    fn command(&self, program: &OsString) -> Command {
        let mut command = Command::new(program);
        if let Some(libraries) = &self.libraries {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        command
    }

    fn has_target(&self) -> bool {
        self.sysroot().is_ok_and(|sysroot| {
            sysroot
                .join("lib/rustlib")
                .join(TARGET)
                .join("lib")
                .is_dir()
        })
    }
}

/// Runs a command to its end, and returns what it printed.
///
/// # Errors
/// When it can't be run or fails; the error has its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("running {program}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{program}: {}: {}", output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// An error's text in one line: its last line that begins with `error` or `E:`, or else its last
/// line. That is where tools give the cause.
fn one_line(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let cause = lines().rfind(|line| line.starts_with("error") || line.starts_with("E: "));
    cause
        .or_else(|| lines().next_back())
        .unwrap_or_default()
        .to_owned()
}
