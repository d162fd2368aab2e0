//! Why a plugin or a pipeline can't be loaded.

use std::fmt::Display;

/// Nothing that was running is touched by any of these.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No engine can be had.
    #[error("can't start the WebAssembly engine: {0}")]
    Engine(String),
    /// The file isn't a component with a manifest.
    #[error("`{plugin}` is not a presence plugin: {what}")]
    NotAPlugin {
        /// The plugin.
        plugin: String,
        /// What it is instead.
        what: String,
    },
    /// The component has more of something than a plugin may have.
    #[error("`{plugin}` is too large: {what}")]
    TooLarge {
        /// The plugin.
        plugin: String,
        /// What it has too much of, and how much it may have.
        what: String,
    },
    /// Compiling it takes too long.
    #[error(
        "`{plugin}` takes too long to compile: more than {seconds} s ([plugins] compile_timeout_ms)"
    )]
    TooSlow {
        /// The plugin.
        plugin: String,
        /// How long it may take.
        seconds: f32,
    },
    /// The component asks for something that no plugin is given.
    #[error("`{plugin}` can't be linked: {what}")]
    Link {
        /// The plugin.
        plugin: String,
        /// What it asks for.
        what: String,
    },
    /// The plugin wants a capability that it wasn't granted.
    #[error(
        "`{plugin}` asks for `{grant}`; to grant it, put \"{grant}\" into the grants of its [[pipeline]] entry"
    )]
    NotGranted {
        /// The plugin.
        plugin: String,
        /// What it wants.
        grant: &'static str,
    },
    /// The plugin wants a capability that none may have.
    #[error(
        "`{plugin}` asks for `{grant}`, which [plugins] grants allows to no plugin; to allow it, put \"{grant}\" into that list"
    )]
    NotAllowed {
        /// The plugin.
        plugin: String,
        /// What it wants.
        grant: &'static str,
    },
    /// The chain is not a pipeline.
    #[error("`{plugin}` {what}")]
    Chain {
        /// The plugin.
        plugin: String,
        /// What is wrong with its place.
        what: &'static str,
    },
    /// The plugin refuses its configuration, or fails in taking it.
    #[error("`{plugin}` refuses its configuration: {what}")]
    Configure {
        /// The plugin.
        plugin: String,
        /// Why.
        what: String,
    },
    /// A self-test came out wrong.
    #[error("`{plugin}` fails its self-test `{case}`: {what}")]
    SelfTest {
        /// The plugin.
        plugin: String,
        /// The case.
        case: String,
        /// What came out.
        what: String,
    },
}

/// How much of an error is said: a component names what it likes in it.
const ERROR_BYTES_MAX: usize = 1_024;

/// An error with its causes, in one line.
pub(crate) fn one_line(error: impl Display) -> String {
    let text = format!("{error:#}");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    shortened(text)
}

/// How wasmtime begins to say where in a component an error happened.
const BACKTRACE: &str = "error while executing at wasm backtrace";

/// The error of a call with its causes, in one line, without where in the component it
/// happened: that is addresses.
pub(crate) fn causes(error: &wasmtime::Error) -> String {
    let causes = error.chain().map(ToString::to_string);
    let causes: Vec<_> = causes
        .filter(|cause| !cause.starts_with(BACKTRACE))
        .collect();
    one_line(causes.join(": "))
}

/// As much of an error's text as is said.
pub(crate) fn shortened(mut text: String) -> String {
    if text.len() > ERROR_BYTES_MAX {
        text.truncate(text.floor_char_boundary(ERROR_BYTES_MAX));
        text.push('…');
    }
    text
}
