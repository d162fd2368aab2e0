//! `presence init`: makes a folder with all that a node needs to start with.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use presence_config::escape::{line, print};

/// The configuration, with the default pipeline spelled out.
const CONFIGURATION: &str = include_str!("init/presence.toml");

/// An example of who knows whom.
const DIRECTORY: &str = include_str!("init/directory.json");

const PLUGINS: &str = "plugins.d";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder, which is made if it does not exist.
    #[arg(default_value = ".")]
    dir: PathBuf,
}

/// Makes the folder, and says what is in it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    make(&args.dir)?;
    let path = |name: &str| line(args.dir.join(name).display());
    let folder = match args.dir == Path::new(".") {
        true => "this folder".into(),
        false => line(args.dir.display()),
    };
    Ok(print(format_args!(
        "{}  the configuration, with the default pipeline\n\
         {}  who knows whom: an example\n\
         {}  for plugins of your own\n\n\
         Start nats-server, and then `presence run` in {folder}.\n",
        path("presence.toml"),
        path("directory.json"),
        path(PLUGINS),
    ))?)
}

/// Writes all files, or none if one of them exists.
fn make(dir: &Path) -> anyhow::Result<()> {
    let files = [
        ("presence.toml", CONFIGURATION),
        ("directory.json", DIRECTORY),
    ];
    for (name, _) in files {
        let path = dir.join(name);
        ensure!(
            fs::symlink_metadata(&path).is_err(),
            "{} is there already, and is not overwritten: name another folder, or remove it",
            path.display()
        );
    }
    let plugins = dir.join(PLUGINS);
    let made = fs::create_dir_all(&plugins);
    made.with_context(|| format!("can't make the folder {}", plugins.display()))?;
    for (name, text) in files {
        let path = dir.join(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.with_context(|| format!("can't write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use presence_config::Config;
    use presence_config::directory;
    use presence_core::names::Names;

    use super::*;

    #[test]
    fn what_is_made_is_the_default_pipeline_and_a_directory_that_can_be_read() {
        let around = tempfile::tempdir().unwrap();
        let dir = around.path().join("a/site");
        make(&dir).unwrap();
        let path = dir.join("presence.toml");
        let config = Config::load(Some(&path), std::iter::empty()).unwrap();
        let default = Config::default();
        assert_eq!(config.pipeline, default.pipeline);
        assert_eq!(config.tracker, default.tracker);
        assert_eq!(config.nats, default.nats);
        assert!(dir.join(PLUGINS).is_dir());
        directory::load(&dir.join("directory.json"), true, &Names::new()).unwrap();
    }

    #[test]
    fn nothing_that_is_there_is_overwritten_and_nothing_else_is_written_then() {
        for there in ["presence.toml", "directory.json"] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(there), "mine").unwrap();
            let error = make(dir.path()).unwrap_err().to_string();
            assert!(error.contains("is not overwritten"), "{error}");
            assert_eq!(fs::read_to_string(dir.path().join(there)).unwrap(), "mine");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }
}
