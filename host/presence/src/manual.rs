//! `presence man`: the manual pages, made from what `--help` says.

use std::path::{Path, PathBuf};
use std::{fs, io};

use anyhow::Context as _;
use clap_mangen::Man;
use presence_config::escape::{line, print};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The folder for the pages, which is made if it does not exist.
    dir: PathBuf,
}

/// Writes the pages, and says how many there are.
pub(crate) fn run(args: &Args, program: clap::Command) -> anyhow::Result<()> {
    let pages = write(&args.dir, program)?;
    Ok(print(format_args!(
        "{} manual pages in {}\n",
        pages,
        line(args.dir.display())
    ))?)
}

/// Writes a page for the program and for each of its commands, over those of an earlier
/// version; returns how many.
fn write(dir: &Path, program: clap::Command) -> anyhow::Result<usize> {
    let made = fs::create_dir_all(dir);
    made.with_context(|| format!("can't make the folder {}", dir.display()))?;
    // The `help` subcommands would have pages that say the same again.
    let mut program = program.disable_help_subcommand(true);
    program.build();
    let mut left = vec![program];
    let mut pages = 0;
    while let Some(command) = left.pop() {
        left.extend(command.get_subcommands().cloned());
        let page = Man::new(command).source(concat!("presence ", env!("CARGO_PKG_VERSION")));
        let path = dir.join(page.get_filename());
        let written = text(&page).and_then(|text| fs::write(&path, text));
        written.with_context(|| format!("can't write {}", path.display()))?;
        pages += 1;
    }
    Ok(pages)
}

/// The text of a page. What `--help` prints after the options is examples, so this section is
/// renamed.
fn text(page: &Man) -> io::Result<String> {
    let mut text = Vec::new();
    page.render(&mut text)?;
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    Ok(text.replacen(".SH EXTRA\n", ".SH EXAMPLES\n", 1))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::Cli;

    #[test]
    fn every_command_has_a_page_with_its_options_and_example() {
        let dir = tempfile::tempdir().unwrap();
        let pages = write(&dir.path().join("man1"), Cli::command()).unwrap();
        let names = fs::read_dir(dir.path().join("man1")).unwrap();
        let names: Vec<_> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert_eq!(names.len(), pages, "{names:?}");
        for name in ["presence.1", "presence-run.1", "presence-dlq-redrive.1"] {
            assert!(names.iter().any(|it| it == name), "{name} in {names:?}");
        }
        assert!(!names.iter().any(|it| it.contains("help")), "{names:?}");
        let page = fs::read_to_string(dir.path().join("man1/presence-check.1")).unwrap();
        for words in [
            "\\-\\-connect",
            "\\-\\-json",
            "presence check \\-\\-connect",
            "SH EXAMPLES",
        ] {
            assert!(page.contains(words), "{words} is not in:\n{page}");
        }
    }

    #[test]
    fn pages_of_an_earlier_version_are_replaced_and_a_file_in_the_way_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let page = dir.path().join("presence.1");
        fs::write(&page, "old").unwrap();
        write(dir.path(), Cli::command()).unwrap();
        assert_ne!(fs::read_to_string(&page).unwrap(), "old");
        let error = write(&page, Cli::command()).unwrap_err().to_string();
        assert!(error.contains("can't make the folder"), "{error}");
    }
}
