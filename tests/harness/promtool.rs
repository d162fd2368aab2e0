//! Prometheus' own checker for rules.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::tools;

/// The path of `promtool`: `PROMTOOL`, one on the path, or Debian's, which is unpacked under
/// the target folder if there is none.
///
/// # Errors
/// When there is none and it can't be fetched; the error says what to do.
pub fn find() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("PROMTOOL") {
        return Ok(named.into());
    }
    if let Some(there) = tools::on_path("promtool") {
        return Ok(there);
    }
    // It isn't installed: the installed package would start a server.
    let folder = tools::debian("prometheus");
    let folder = folder.context(
        "no promtool: install it so that `promtool` is on the path (Debian's package is \
         `prometheus`), or name one in PROMTOOL",
    )?;
    Ok(folder.join("usr/bin/promtool"))
}
