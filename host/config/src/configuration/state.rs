//! `[state]`: what is kept over a restart, and where.

use std::path::PathBuf;

use super::checks::within;
use super::section::Section;

/// `[state]`: what is kept over a restart, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct State {
    /// The folder. `None` if nothing is kept.
    pub dir: Option<PathBuf>,
    /// Whether the folder is the default one. If it can't be written, the node can then do without
    /// it.
    pub dir_is_default: bool,
    /// How long changes are gathered before they are written, in milliseconds.
    pub flush_ms: u64,
}

impl State {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let dir = section.get("dir", |text: String| Ok((!text.is_empty()).then_some(text)));
        let dir_is_default = dir.is_none();
        let dir = dir.unwrap_or_else(|| Some("presence-state".into()));
        Self {
            dir: dir.map(|dir| section.resolve(&dir)),
            dir_is_default,
            flush_ms: section.get("flush_ms", within(1..=60_000)).unwrap_or(100),
        }
    }
}
