//! `cargo xtask guide`: writes the guide's API reference from the comments of the WIT files, and
//! its configuration reference from `presence.toml` and the configuration reader; builds the guide
//! as a book, and follows its links. The suites run its blocks of code.

mod configuration;
mod links;
mod reference;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use presence_tests::tools;
use serde_json::Value;

/// The release of mdBook that is fetched.
const MDBOOK: &str = "0.5.4";

/// Pages outside the book, whose links are followed as well.
const PAGES: [&str; 3] = ["README.md", "ARCHITECTURE.md", "clients/js/README.md"];

/// Builds the guide.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Fail unless the pages of docs/reference are what their sources say.
    #[arg(long)]
    check: bool,
}

/// Runs the task.
///
/// # Errors
/// When the guide can't be built, or has a link that leads nowhere.
pub(crate) fn run(args: &Args) -> Result<()> {
    let wit = read("wit/0.2.0/presence.wit")?;
    keep("docs/reference/api.md", &reference::page(&wit)?, args.check)?;
    let page = configuration::page(&read("presence.toml")?, &settings()?)?;
    keep("docs/reference/configuration.md", &page, args.check)?;
    let root = tools::root();
    let book = tools::target().join("guide");
    tools::run(
        Command::new(mdbook()?)
            .arg("build")
            .arg(root.join("docs"))
            .arg("--dest-dir")
            .arg(&book),
    )?;
    links::check_pages(&root, &PAGES)?;
    let (pages, links) = links::check(&book)?;
    println!(
        "{pages} pages, {links} links among them: {}",
        book.join("index.html").display()
    );
    Ok(())
}

fn read(path: &str) -> Result<String> {
    let path = tools::root().join(path);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// Writes a page. With `check`, fails unless the file has this content already.
fn keep(path: &str, page: &str, check: bool) -> Result<()> {
    let place = tools::root().join(path);
    if check {
        ensure!(
            fs::read_to_string(&place).is_ok_and(|committed| committed == page),
            "{path} is not what its sources say; `cargo xtask guide` rewrites it"
        );
        return Ok(());
    }
    fs::write(&place, page).with_context(|| format!("writing {}", place.display()))
}

/// All keys, as the configuration reader prints them when nothing is configured.
fn settings() -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let presence = match std::env::var_os("PRESENCE_BIN") {
        Some(named) => named.into(),
        None => tools::build_all("presence")?,
    };
    let mut config = Command::new(presence);
    config.args(["config", "--json"]).current_dir(folder.path());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PRESENCE_") {
            config.env_remove(name);
        }
    }
    Ok(serde_json::from_str(&tools::run(&mut config)?)?)
}

/// mdBook, built once, without its server and its search.
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
