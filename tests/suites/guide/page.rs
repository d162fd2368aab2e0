//! A page's blocks of code, and what is to be done with each. Comments right before a block say it,
//! which readers don't see:
//!
//! | comment | the block |
//! |---|---|
//! | `file: PATH` | is the content of this file |
//! | `only: LANGUAGE` | is for readers who write their rule in this language |
//! | `clone` | is run in a clone of this repository |
//! | `terminal: WORDS` | is run in a terminal of its own, until it says the words, and goes on; each line in one of its own, if there are words for several: `WORDS \| WORDS` |
//! | `printed: COMMAND` | is printed by this command, which still runs |
//! | `logged: COMMAND: WORDS` | is run after this command, which still runs, has logged the words |
//! | `stop` | is run after the newest terminal's command was told to end, and has ended |
//! | `fails` | is a command that fails |
//! | `last` | is the end of the output, and not all of it |
//! | `figures` | is the output, and its figures may differ |
//! | `part: PATH` | is a part of this file |
//! | `picture` | is a drawing |
//! | `elsewhere` | is a command of `cargo xtask`, whose tasks have tests of their own |
//!
//! A block that a reader has from elsewhere is itself in a comment: between `<!--` and `-->` on
//! lines of their own, with its orders on lines before it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use presence_tests::tools;

/// A page.
pub(super) struct Page {
    pub(super) blocks: Vec<Block>,
}

/// A block of code.
pub(super) struct Block {
    /// Its place in the page, for errors.
    pub(super) place: String,
    /// The language that it is written in.
    pub(super) language: String,
    pub(super) code: String,
    pub(super) orders: Orders,
}

/// What is to be done with a block.
#[derive(Default)]
pub(super) struct Orders {
    pub(super) file: Option<String>,
    pub(super) only: Option<String>,
    pub(super) terminal: Option<String>,
    pub(super) printed: Option<String>,
    pub(super) logged: Option<String>,
    pub(super) clone: bool,
    pub(super) stop: bool,
    pub(super) fails: bool,
    pub(super) last: bool,
    pub(super) figures: bool,
    pub(super) part: Option<String>,
    pub(super) picture: bool,
    pub(super) elsewhere: bool,
}

impl Page {
    /// Reads a page, by its path in docs/.
    pub(super) fn read(name: &str) -> Result<Self> {
        let path = tools::root().join("docs").join(name);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut blocks = Vec::new();
        let mut orders = Orders::default();
        let mut in_comment = false;
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            let place = format!("docs/{name}:{}", number + 1);
            if let Some(language) = line.strip_prefix("```") {
                let body = lines.by_ref().map(|(_, line)| line);
                let body: Vec<_> = body.take_while(|line| *line != "```").collect();
                blocks.push(Block {
                    place,
                    language: language.into(),
                    code: include(&path, &body)?,
                    orders: std::mem::take(&mut orders),
                });
                continue;
            }
            match line {
                "<!--" => in_comment = true,
                "-->" => in_comment = false,
                "" => {}
                order if in_comment => orders.add(order).with_context(|| place)?,
                _ => {
                    if let Some(order) = order(line) {
                        orders.add(order).with_context(|| place)?;
                    } else if line.contains("```") {
                        bail!("{place}: a block of code begins at the line's beginning");
                    }
                }
            }
        }
        Ok(Self { blocks })
    }
}

/// The order in a comment of one line. `None` for a sentence, which is a note for those who change
/// the page.
fn order(line: &str) -> Option<&str> {
    let order = line.strip_prefix("<!-- ")?.strip_suffix(" -->")?;
    (!order.ends_with('.')).then_some(order)
}

impl Orders {
    fn add(&mut self, order: &str) -> Result<()> {
        match order.split_once(": ") {
            Some(("file", path)) => self.file = Some(path.into()),
            Some(("part", path)) => self.part = Some(path.into()),
            Some(("only", language)) => self.only = Some(language.into()),
            Some(("terminal", words)) => self.terminal = Some(words.into()),
            Some(("printed", command)) => self.printed = Some(command.into()),
            Some(("logged", words)) => self.logged = Some(words.into()),
            _ => match order {
                "clone" => self.clone = true,
                "stop" => self.stop = true,
                "fails" => self.fails = true,
                "last" => self.last = true,
                "figures" => self.figures = true,
                "picture" => self.picture = true,
                "elsewhere" => self.elsewhere = true,
                _ => bail!("`{order}` is nothing that can be done with a block"),
            },
        }
        Ok(())
    }
}

/// A block's text, with the files that mdBook includes in it.
fn include(page: &Path, body: &[&str]) -> Result<String> {
    let mut text = String::new();
    for line in body {
        let file = line.strip_prefix("{{#include ");
        match file.and_then(|file| file.strip_suffix("}}")) {
            Some(file) => {
                let file = page.with_file_name(file);
                let content = fs::read_to_string(&file);
                text += &content.with_context(|| format!("reading {}", file.display()))?;
            }
            None => {
                text += line;
                text.push('\n');
            }
        }
    }
    Ok(text)
}
