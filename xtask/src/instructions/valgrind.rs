//! valgrind: the one on the path, or Debian's, unpacked under the target folder, which
//! needs no root.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use presence_tests::tools;

/// A valgrind that runs here.
pub(super) struct Valgrind {
    program: OsString,
    /// The folder of its tools. `None`: the one that it was built for.
    tools: Option<PathBuf>,
}

impl Valgrind {
    /// Finds one, or fetches one.
    ///
    /// # Errors
    /// When there is none, and none can be fetched.
    pub(super) fn find() -> Result<Self> {
        let installed = Self {
            program: "valgrind".into(),
            tools: None,
        };
        if installed.runs().is_ok() {
            return Ok(installed);
        }
        let folder = tools::fetched("valgrind", unpack)
            .context("no valgrind: install it so that `valgrind` is on the path")?;
        let unpacked = Self {
            program: folder.join("usr/bin/valgrind.bin").into(),
            tools: Some(folder.join("usr/libexec/valgrind")),
        };
        unpacked.runs()?;
        Ok(unpacked)
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(tools) = &self.tools {
            command.env("VALGRIND_LIB", tools);
        }
        command
    }

    fn runs(&self) -> Result<()> {
        tools::run(self.command().args(["--tool=callgrind", "--version"])).map(drop)
    }
}

/// Unpacks Debian's package.
fn unpack(folder: &Path) -> Result<()> {
    let download = || {
        let mut apt = Command::new("apt-get");
        tools::run(apt.args(["download", "valgrind"]).current_dir(folder))
    };
    download().or_else(|_| {
        tools::run(Command::new("apt-get").args(["-qq", "update"]))?;
        download()
    })?;
    let packages: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    for package in packages {
        let package = package.path();
        tools::run(Command::new("dpkg").arg("-x").arg(&package).arg(folder))?;
        fs::remove_file(package)?;
    }
    Ok(())
}
