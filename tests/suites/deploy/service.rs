//! The systemd unit is valid, and denies the node what it doesn't need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use presence_tests::{host, tools};

const UNIT: &str = "systemd/presence.service";

/// Tenths of what `systemd-analyze security` calls exposure, from 0 to 100.
const EXPOSURE_MAX: &str = "15";

/// The unit with the binary under test in place of the installed one.
fn unit(folder: &Path) -> Result<PathBuf> {
    let text = super::read(UNIT)?;
    let installed = "/usr/local/bin/presence";
    ensure!(
        text.contains(&format!("ExecStart={installed} run")),
        "{text}"
    );
    let binary = host::binary()?;
    let text = text.replace(installed, &binary.to_string_lossy());
    let path = folder.join("presence.service");
    fs::write(&path, text)?;
    Ok(path)
}

/// Not every machine has systemd.
#[test]
fn systemd_takes_the_unit_and_calls_it_well_protected() -> Result<()> {
    let Some(systemd) = tools::on_path("systemd-analyze") else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let unit = unit(folder.path())?;
    let mut verify = Command::new(&systemd);
    verify
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(&unit);
    let output = verify.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && !said.contains("presence.service"),
        "{said}"
    );
    let mut security = Command::new(&systemd);
    security
        .args(["security", "--offline=true", "--threshold", EXPOSURE_MAX])
        .arg(&unit);
    tools::run(&mut security).map(drop)
}

#[test]
fn the_unit_sets_keys_that_the_program_has_and_outlasts_its_stop() -> Result<()> {
    let text = super::read(UNIT)?;
    let values = |key: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.strip_prefix(key));
        let values = lines.flat_map(str::split_whitespace);
        values.map(str::to_owned).collect()
    };
    let site = tempfile::tempdir()?;
    let config = site.path().join("presence.toml");
    fs::write(&config, "[nats]\n")?;
    let variables = values("Environment=");
    ensure!(!variables.is_empty(), "{text}");
    let variables = variables.iter().filter_map(|it| it.split_once('='));
    let stop_ms = super::configured(&config, variables)?;
    let seconds = values("TimeoutStopSec=");
    let seconds: u64 = seconds.first().context("TimeoutStopSec")?.parse()?;
    ensure!(seconds * 1_000 > stop_ms, "{seconds} s");
    Ok(())
}
