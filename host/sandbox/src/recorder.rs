//! What a plugin writes while somebody tries it out: the lines that it logs, and the reasons
//! that it gives. A running node keeps none of it.

use std::sync::{Mutex, PoisonError};

/// How many lines are kept until they are taken.
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
    /// With `explain`.
    Explained,
    /// With `explain-for`: first whom it is about.
    ExplainedFor,
    /// With `log`, at this level.
    Error,
    /// As [`Self::Error`].
    Warn,
    /// As [`Self::Error`].
    Info,
    /// As [`Self::Error`].
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

/// Records what the instances of a plugin write, while they are called.
#[derive(Debug, Default)]
pub struct LineRecorder(Mutex<Vec<PluginLine>>);

impl LineRecorder {
    /// The lines since they were last taken.
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
