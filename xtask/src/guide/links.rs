//! Checks links. A link in the built book has to lead to a file of the book, and to an id in this
//! file if it names one. A link in a page outside the book has to lead to a file.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};
use walkdir::WalkDir;

/// Follows all links, and says how many pages and links there are.
///
/// # Errors
/// If links lead nowhere: lists them.
pub(super) fn check(book: &Path) -> Result<(usize, usize)> {
    let pages = read(book)?;
    let places: BTreeMap<_, _> = pages
        .iter()
        .map(|(path, html)| (path, values(html, "id").collect::<BTreeSet<_>>()))
        .collect();
    let mut count = 0;
    let mut dead = Vec::new();
    for (page, html) in &pages {
        // The rest is the same on every page of mdBook.
        let (_, main) = html.split_once("<main>").unwrap_or_default();
        let (main, _) = main.split_once("</main>").unwrap_or_default();
        for link in values(main, "href").filter(|link| !link.contains("://")) {
            count += 1;
            let (path, place) = link.split_once('#').unwrap_or((link, ""));
            let path = match path {
                "" => page.clone(),
                path => beside(page, path),
            };
            let leads = match places.get(&path) {
                Some(places) => place.is_empty() || places.contains(place),
                None => book.join(&path).is_file(),
            };
            if !leads {
                dead.push(format!("{}: {link}", page.display()));
            }
        }
    }
    ensure!(
        dead.is_empty(),
        "these links of the guide lead nowhere in it:\n  {}",
        dead.join("\n  ")
    );
    Ok((pages.len(), count))
}

/// Follows the links of pages that are read as Markdown.
///
/// # Errors
/// If links lead to no file: lists them.
pub(super) fn check_pages(root: &Path, pages: &[&str]) -> Result<()> {
    let mut dead = Vec::new();
    for page in pages {
        let path = root.join(page);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        // Every other part is a block of code.
        for text in text.split("```").step_by(2) {
            let links = text.split("](").skip(1);
            let links = links.filter_map(|rest| Some(rest.split_once(')')?.0));
            for link in links.filter(|link| !link.contains("://")) {
                let file = link.split_once('#').map_or(link, |(file, _)| file);
                if !file.is_empty() && !path.with_file_name(file).exists() {
                    dead.push(format!("{page}: {link}"));
                }
            }
        }
    }
    ensure!(
        dead.is_empty(),
        "these links lead to no file:\n  {}",
        dead.join("\n  ")
    );
    Ok(())
}

/// The pages of a book, by their paths in it.
fn read(book: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut pages = BTreeMap::new();
    for file in WalkDir::new(book) {
        let file = file?.into_path();
        if file.extension().is_some_and(|ending| ending == "html") {
            let html = fs::read_to_string(&file).context(file.display().to_string())?;
            pages.insert(file.strip_prefix(book)?.to_owned(), html);
        }
    }
    Ok(pages)
}

/// The values of an attribute.
fn values<'a>(html: &'a str, attribute: &str) -> impl Iterator<Item = &'a str> {
    let begin = format!(" {attribute}=\"");
    let parts: Vec<_> = html.split(begin.as_str()).skip(1).collect();
    parts
        .into_iter()
        .filter_map(|part| Some(part.split_once('"')?.0))
}

/// Where a link of a page leads.
fn beside(page: &Path, link: &str) -> PathBuf {
    let mut path = page.parent().unwrap_or(page).to_owned();
    for part in Path::new(link).components() {
        match part {
            // A path that leads out of the book is kept: no file is found there.
            Component::ParentDir if path.file_name().is_some() => drop(path.pop()),
            part => path.push(part),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_of_a_page_outside_the_book_leads_to_a_file() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("there.md"), "").unwrap();
        for (text, leads) in [
            (
                "[a](there.md) [b](there.md#x) [c](#y) [d](https://example.com)",
                true,
            ),
            ("[a](there.md) [b](gone.md)", false),
            ("```\n[a](gone.md)\n```\n", true),
        ] {
            fs::write(root.path().join("page.md"), text).unwrap();
            assert_eq!(
                check_pages(root.path(), &["page.md"]).is_ok(),
                leads,
                "{text}"
            );
        }
    }

    #[test]
    fn a_link_leads_to_a_page_of_the_book_and_a_place_in_it() {
        let book = tempfile::tempdir().unwrap();
        let put = |path: &str, main: &str| {
            let path = book.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("<a href=\"gone\"><main>{main}</main>")).unwrap();
        };
        put("a/b.html", "<h1 id=\"top\">");
        fs::write(book.path().join("c.conf"), "").unwrap();
        for (link, leads) in [
            ("b.html", true),
            ("#here", true),
            ("#there", false),
            ("b.html#top", true),
            ("b.html#bottom", false),
            ("../c.conf", true),
            ("../d.conf", false),
            ("../../Cargo.toml", false),
            ("https://example.com/x#y", true),
        ] {
            put("a/x.html", &format!("<p id=\"here\"><a href=\"{link}\">"));
            assert_eq!(check(book.path()).is_ok(), leads, "{link}");
        }
    }
}
