//! Why a plugin or a pipeline can't be loaded.

use std::fmt::Display;

/// Why a plugin or a pipeline can't be loaded. The running pipeline stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The WebAssembly engine can't be started.
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
    /// The plugin is at a wrong place in the chain.
    #[error("`{plugin}` {what}")]
    Chain {
        /// The plugin.
        plugin: String,
        /// What is wrong with its place.
        what: &'static str,
    },
    /// The plugin refuses its configuration, or fails while it is configured.
    #[error("`{plugin}` refuses its configuration: {what}")]
    Configure {
        /// The plugin.
        plugin: String,
        /// Why.
        what: String,
    },
    /// A self-test failed.
    #[error("`{plugin}` fails its self-test `{case}`: {what}")]
    SelfTest {
        /// The plugin.
        plugin: String,
        /// The case.
        case: String,
        /// What was expected, and what came out.
        what: String,
    },
}

/// How many bytes of an error are kept: a component can put any text into it.
const ERROR_BYTES_MAX: usize = 1_024;

/// An error with its causes, in one line.
pub(crate) fn one_line(error: impl Display) -> String {
    let text = format!("{error:#}");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    shortened(text)
}

/// The beginning of the message with which wasmtime locates an error in a component.
const BACKTRACE: &str = "error while executing at wasm backtrace";

/// The error of a call with its causes, in one line. The location in the component is left out,
/// since it is only addresses.
pub(crate) fn causes(error: &wasmtime::Error) -> String {
    let causes = error.chain().map(ToString::to_string);
    let causes: Vec<_> = causes
        .filter(|cause| !cause.starts_with(BACKTRACE))
        .collect();
    one_line(causes.join(": "))
}

/// The text of an error, cut at `ERROR_BYTES_MAX`.
pub(crate) fn shortened(mut text: String) -> String {
    if text.len() > ERROR_BYTES_MAX {
        text.truncate(text.floor_char_boundary(ERROR_BYTES_MAX));
        text.push('…');
    }
    text
}
