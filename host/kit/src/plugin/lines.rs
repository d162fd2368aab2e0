//! Formats what a plugin logs and explains in a call.

use presence_config::escape::line;
use presence_sandbox::{LineKind, PluginLine};
use serde_json::{Value, json};

/// A line as text.
pub(super) fn words(written: &PluginLine) -> String {
    let text = line(&written.text);
    match written.kind {
        LineKind::Explained => format!("explains: {text}"),
        LineKind::ExplainedFor => format!("explains of {text}"),
        level => format!("logs, {}: {text}", level.as_str()),
    }
}

/// A line as text, indented below its case.
pub(super) fn indented(written: &PluginLine) -> String {
    format!("        {}\n", words(written))
}

/// Lines as JSON.
pub(super) fn objects(lines: &[PluginLine]) -> Value {
    let lines = lines.iter();
    lines
        .map(|line| json!({"kind": line.kind.as_str(), "text": line.text}))
        .collect()
}
