//! `cargo xtask plugins`: builds the components under `plugins/` into `plugins/dist`. With
//! `--check`, it proves that the files there are what the sources build to.

mod build;
mod check;
mod record;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use record::Record;

/// Builds the plugins' components into plugins/dist.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build elsewhere, and fail unless plugins/dist holds just that.
    #[arg(long)]
    check: bool,
}

/// Runs the task.
///
/// # Errors
/// When the plugins can't be built, or plugins/dist isn't what they build to.
pub(crate) fn run(args: &Args) -> Result<()> {
    let dist = root().join("plugins/dist");
    let build = build::build(root(), args.check)?;
    if args.check {
        return check::check(&dist, &build);
    }
    if dist.exists() {
        fs::remove_dir_all(&dist).with_context(|| format!("removing {}", dist.display()))?;
    }
    for (name, component) in &build.components {
        write(&dist.join(name), component)?;
        println!("{:>7} bytes  plugins/dist/{name}", component.len());
    }
    write(
        &dist.join(record::FILE),
        Record::of(&build).to_json()?.as_bytes(),
    )
}

/// The workspace's folder.
fn root() -> &'static Path {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask)
}

fn write(path: &PathBuf, content: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}
