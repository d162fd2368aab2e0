//! The configuration reference: a table for each section. The configuration reader says which keys
//! there are, and when a change of one takes effect (`presence config --json`). `presence.toml`
//! says what each key means, and its default. A key that only one of the two knows is an error.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The beginning of the page.
const HEAD: &str = "<!-- Written by `cargo xtask guide`, from presence.toml and the reader's keys. -->\n\n\
                    # Configuration reference\n";

/// The header of a stage. Stages are shown as they are in the file.
const STAGES: &str = "[[pipeline]]";

/// The page, from the reference file and from the reader's output in a folder without a file.
///
/// # Errors
/// When the two don't have the same keys.
pub(super) fn page(file: &str, reader: &Value) -> Result<String> {
    let mut known = BTreeMap::new();
    for setting in reader["settings"].as_array().context("settings")? {
        let key = setting["key"].as_str().context("key")?;
        let restart = setting["restart"].as_bool().context("restart")?;
        known.insert(key, (&setting["value"], restart));
    }
    let (file, stages) = split(file)?;
    let (intro, sections) = read(file)?;
    let mut text = format!("{HEAD}\n{intro}\n");
    for section in &sections {
        write!(text, "\n## `{}`\n", section.name)?;
        if !section.about.is_empty() {
            write!(text, "\n{}\n", linked(&section.about))?;
        }
        table(&mut text, section, &mut known)?;
    }
    write!(text, "\n## `{STAGES}`\n\n```toml\n{stages}```\n")?;
    let undocumented: Vec<_> = known.into_keys().collect();
    ensure!(
        undocumented.is_empty(),
        "presence.toml doesn't have these keys: {}",
        undocumented.join(", ")
    );
    Ok(text)
}

/// Writes the table of a section's keys, and removes them from `known`.
fn table(
    text: &mut String,
    section: &Section<'_>,
    known: &mut BTreeMap<&str, (&Value, bool)>,
) -> Result<()> {
    text.push_str("\n| key | default | a change takes effect | |\n|---|---|---|---|\n");
    let within = section.name.trim_matches(['[', ']']);
    for key in &section.keys {
        let name = format!("{within}.{}", key.name);
        let (value, restart) = known
            .remove(&*name)
            .with_context(|| format!("presence.toml has `{name}`, which nothing reads"))?;
        // A key that is commented out has no default, a default that depends on the machine, or the
        // one that is shown.
        let default = match value {
            Value::Null => "none".to_owned(),
            Value::String(value) if key.is_example && !key.value.contains(&**value) => {
                "see the text".to_owned()
            }
            _ => format!("`{}`", key.value),
        };
        let effect = if restart {
            "at the next start"
        } else {
            "at once"
        };
        let about = cell(&key.about);
        writeln!(text, "| `{}` | {default} | {effect} | {about} |", key.name)?;
    }
    Ok(())
}

/// A section of the file.
struct Section<'a> {
    /// Its header in the file, with the brackets.
    name: &'a str,
    about: String,
    keys: Vec<Key<'a>>,
}

struct Key<'a> {
    name: &'a str,
    value: &'a str,
    about: String,
    /// Whether it is commented out.
    is_example: bool,
}

/// The file up to the comment before the first stage, and the rest.
fn split(file: &str) -> Result<(&str, &str)> {
    let stage = file.find(&format!("\n{STAGES}\n"));
    let stage = stage.context("there is a stage")?;
    let (before, _) = file.split_at(stage);
    let end = before.rfind("\n\n").context("there is a section before")?;
    let (before, rest) = file.split_at(end);
    Ok((before, rest.trim_start()))
}

/// The comment at the top, and the sections. A comment belongs to what follows it; an empty line
/// ends a paragraph.
fn read(file: &str) -> Result<(String, Vec<Section<'_>>)> {
    let mut intro = None;
    let mut sections: Vec<Section<'_>> = Vec::new();
    let mut comment = String::new();
    // The last key that had a comment of its own. The keys right after it share the comment.
    let mut above: Option<&str> = None;
    for (number, line) in file.lines().enumerate() {
        let (is_example, code) = match line.strip_prefix('#') {
            Some(text) if text.contains(" = ") => (true, text.trim_start()),
            Some(text) => {
                match text.trim() {
                    "" => comment.push('\n'),
                    text => {
                        comment.push_str(text);
                        comment.push('\n');
                    }
                }
                continue;
            }
            None => (false, line),
        };
        if code.is_empty() {
            // A comment that stands alone at the top is about the file.
            if intro.is_none() {
                intro = Some(std::mem::take(&mut comment));
            }
            above = None;
        } else if code.starts_with('[') {
            let about = std::mem::take(&mut comment).trim().to_owned();
            above = None;
            sections.push(Section {
                name: code,
                about,
                keys: Vec::new(),
            });
        } else {
            let (name, value) = code
                .split_once(" = ")
                .with_context(|| format!("presence.toml:{}: no key", number + 1))?;
            let section = sections.last_mut().context("a key has a section")?;
            let about = match (comment.trim(), above) {
                ("", Some(above)) => format!("See `{above}`."),
                ("", None) => bail!("presence.toml:{}: `{name}` isn't explained", number + 1),
                (text, _) => {
                    above = Some(name);
                    text.to_owned()
                }
            };
            comment.clear();
            section.keys.push(Key {
                name,
                value,
                about,
                is_example,
            });
        }
    }
    Ok((intro.unwrap_or_default().trim().to_owned(), sections))
}

/// A text in one line, for a cell of a table.
fn cell(text: &str) -> String {
    linked(&text.split_whitespace().collect::<Vec<_>>().join(" ")).replace('|', "\\|")
}

/// A text with links to the pages and files of the guide that it names.
fn linked(text: &str) -> String {
    let words = text.split_inclusive([' ', '\n']).map(|word| {
        let name = word.trim_end_matches([' ', '\n', '.', ',', ';', ':']);
        match name.strip_prefix("docs/") {
            Some(page) => word.replacen(name, &format!("[{name}](../{page})"), 1),
            None => word.to_owned(),
        }
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const FILE: &str = "# The file.\n\n[a]\n# One: docs/use/x.md.\none = 1\ntwo = \"x | y\"\n# Three.\n# three = \"t\"\n\n\
                        # Stages.\n[[pipeline]]\nplugin = \"p\"\n# Why.\n# source = \"s\"\n\n# Last.\n[[pipeline]]\nplugin = \"q\"\n";

    fn reader(keys: &[&str]) -> Value {
        let settings = keys
            .iter()
            .map(|key| json!({"key": key, "value": null, "restart": key.ends_with("two")}));
        json!({"settings": settings.collect::<Vec<_>>()})
    }

    #[test]
    fn every_key_has_its_default_its_meaning_and_when_a_change_takes_effect() {
        let page = page(FILE, &reader(&["a.one", "a.two", "a.three"])).unwrap();
        for part in [
            "# Configuration reference\n\nThe file.\n\n## `[a]`\n",
            "| `one` | none | at once | One: [docs/use/x.md](../use/x.md). |\n",
            "| `two` | none | at the next start | See `one`. |\n",
            "| `three` | none | at once | Three. |\n",
            "## `[[pipeline]]`\n\n```toml\n# Stages.\n[[pipeline]]\nplugin = \"p\"\n# Why.\n# source = \"s\"\n\n# Last.\n[[pipeline]]\nplugin = \"q\"\n```\n",
        ] {
            assert!(page.contains(part), "{page}\nhas no\n{part}");
        }
    }

    #[test]
    fn a_key_that_one_side_alone_has_is_an_error() {
        for keys in [
            &["a.one", "a.two"][..],
            &["a.one", "a.two", "a.three", "a.four"],
        ] {
            assert!(page(FILE, &reader(keys)).is_err(), "{keys:?}");
        }
        let unexplained = FILE.replace("# One: docs/use/x.md.\n", "");
        assert!(page(&unexplained, &reader(&["a.one", "a.two", "a.three"])).is_err());
    }
}
