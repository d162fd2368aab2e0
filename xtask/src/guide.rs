//! `cargo xtask guide`: writes the guide's API reference from the comments of the
//! WIT files, builds the guide as a book, and follows its links. What its blocks
//! of code do, the suites see to.

mod links;
mod reference;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use presence_tests::tools;

/// The release of mdBook that is fetched.
const MDBOOK: &str = "0.5.4";

/// Builds the guide.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fail unless docs/reference.md is what the WIT files say.
    #[arg(long)]
    check: bool,
}

/// Runs the task.
///
/// # Errors
/// When the guide can't be built, or has a link that leads nowhere.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = tools::root();
    let wit = root.join("wit/0.2.0/presence.wit");
    let wit = fs::read_to_string(&wit).with_context(|| format!("reading {}", wit.display()))?;
    let page = reference::page(&wit)?;
    let place = root.join("docs/reference.md");
    if args.check {
        ensure!(
            fs::read_to_string(&place).is_ok_and(|committed| committed == page),
            "docs/reference.md is not what the WIT files say; `cargo xtask guide` rewrites it"
        );
    } else {
        fs::write(&place, page).with_context(|| format!("writing {}", place.display()))?;
    }
    let book = tools::target().join("guide");
    tools::run(
        Command::new(mdbook()?)
            .arg("build")
            .arg(root.join("docs"))
            .arg("--dest-dir")
            .arg(&book),
    )?;
    let (pages, links) = links::check(&book)?;
    println!(
        "{pages} pages, {links} links among them: {}",
        book.join("index.html").display()
    );
    Ok(())
}

/// mdBook, built once without what serves and searches books.
fn mdbook() -> Result<PathBuf> {
    let folder = tools::fetched(&format!("mdbook-{MDBOOK}"), |beside| {
        let build = tempfile::tempdir_in(tools::target())?;
        let mut cargo = tools::cargo();
        cargo
            .args(["install", "mdbook", "--locked", "--version", MDBOOK])
            .args(["--no-default-features", "--debug", "--root"])
            .arg(beside)
            .arg("--target-dir")
            .arg(build.path())
            .env("CARGO_PROFILE_DEV_DEBUG", "0");
        tools::run(&mut cargo).map(drop)
    })?;
    Ok(folder.join("bin/mdbook"))
}
