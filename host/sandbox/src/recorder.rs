//! Records what a plugin writes while an author tries it with `presence plugin test` or `run`: log
//! lines and reasons. A running node records nothing.

use std::sync::{Mutex, PoisonError};

/// How many lines are kept until they are taken. Further ones are dropped.
const LINES_MAX: usize = 256;

/// A line that a plugin wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginLine {
    /// How it was written.
    pub kind: LineKind,
    /// What it says.
    pub text: String,
}

/// How a plugin writes a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineKind {
    /// Written with `explain`.
    Explained,
    /// Written with `explain-for`. The text begins with the viewers that it is about.
    ExplainedFor,
    /// Written with `log`, at level `error`.
    Error,
    /// Written with `log`, at level `warn`.
    Warn,
    /// Written with `log`, at level `info`.
    Info,
    /// Written with `log`, at level `debug`.
    Debug,
}

impl LineKind {
    /// The kind in one word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Explained => "explained",
            Self::ExplainedFor => "explained-for",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
        }
    }
}

/// Records what the instances of a plugin write.
#[derive(Debug, Default)]
pub struct LineRecorder(Mutex<Vec<PluginLine>>);

impl LineRecorder {
    /// Takes the lines that were recorded since the last call.
    pub fn take(&self) -> Vec<PluginLine> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut lines)
    }

    pub(crate) fn note(&self, kind: LineKind, text: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() < LINES_MAX {
            let text = text.to_owned();
            lines.push(PluginLine { kind, text });
        }
    }
}
