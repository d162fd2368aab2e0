//! The README and the guide under docs/, as a reader would follow them: every block of code is run,
//! built or read, in order, and the output has to be what the text says.

mod cookbook;
mod page;
mod reference;
mod script;

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, ensure};
use presence_tests::kit::LANGUAGES;
use presence_tests::tools;

use page::Page;
use script::Script;

const README: &str = "../README.md";
const TUTORIAL: &str = "rules/tutorial.md";

/// It is written from the WIT files. `cargo xtask guide --check` checks it.
const API: &str = "reference/api.md";

#[tokio::test]
async fn the_readme_leads_to_a_running_node_and_a_rule() -> Result<()> {
    let mut script = Script::new("rust")?;
    for block in &Page::read(README)?.blocks {
        script.run(block).await?;
    }
    script.end()
}

#[tokio::test]
async fn the_tutorial_leads_to_a_running_filter_in_rust() -> Result<()> {
    tutorial("rust").await
}

#[tokio::test]
async fn the_tutorial_leads_to_a_running_filter_in_typescript() -> Result<()> {
    tutorial("typescript").await
}

#[tokio::test]
async fn the_tutorial_leads_to_a_running_filter_in_python() -> Result<()> {
    tutorial("python").await
}

#[tokio::test]
async fn the_tutorial_leads_to_a_running_filter_in_c() -> Result<()> {
    tutorial("c").await
}

/// Follows the tutorial. There is no `presence` at first: the tutorial installs it.
async fn tutorial(language: &str) -> Result<()> {
    let page = Page::read(TUTORIAL)?;
    let of_another = |only: &str| only != language;
    for block in &page.blocks {
        let only = block.orders.only.as_deref();
        ensure!(
            only.is_none_or(|only| LANGUAGES.contains(&only)),
            "{}: there is no such language",
            block.place
        );
    }
    let mut script = Script::new(language)?;
    for block in &page.blocks {
        if !block.orders.only.as_deref().is_some_and(of_another) {
            script.run(block).await?;
        }
    }
    script.end()
}

#[tokio::test]
async fn what_the_other_pages_say_is_so() -> Result<()> {
    for name in pages()? {
        if [TUTORIAL, API].contains(&&*name) || cookbook::has(&name) {
            continue;
        }
        let mut script = Script::new("rust")?;
        script.install()?;
        for block in &Page::read(&name)?.blocks {
            ensure!(
                block.orders.only.is_none(),
                "{}: the page is for all languages",
                block.place
            );
            script.run(block).await?;
        }
        script.end().with_context(|| name.clone())?;
    }
    Ok(())
}

#[test]
fn every_page_is_in_the_summary() -> Result<()> {
    let listed: BTreeSet<_> = pages()?.into_iter().collect();
    let mut there = BTreeSet::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(tools::root().join("docs").join(&folder))? {
            let entry = entry?;
            let name = format!("{folder}{}", entry.file_name().to_string_lossy());
            if entry.file_type()?.is_dir() {
                folders.push(format!("{name}/"));
            } else if name.ends_with(".md") && name != "SUMMARY.md" {
                there.insert(name);
            }
        }
    }
    assert_eq!(listed, there);
    let rules = listed.iter().filter(|name| cookbook::has(name)).count();
    assert_eq!(rules, 11, "eleven rules");
    Ok(())
}

/// The pages that the summary lists, by their paths in docs/.
fn pages() -> Result<Vec<String>> {
    let summary = fs::read_to_string(tools::root().join("docs/SUMMARY.md"))?;
    let links = summary.split("](").skip(1);
    let pages = links.filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()));
    Ok(pages.collect())
}
