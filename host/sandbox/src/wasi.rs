//! WASI for plugins whose language imports it in everything that it builds: each imported function
//! exists, and is denied.

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, ResourceType};
use wasmtime::{Result, bail};

use crate::call::Call;

/// How the names of the stubs begin that replace WASI's functions in a plugin without WASI imports.
pub(crate) const STUB_PREFIX: &str = "wasi#";

/// What a plugin wants of WASI, by parts of the names of the functions, in the first version of
/// WASI and in later ones. The first entry with a matching part counts.
const WANTED: [(&str, &[&str]); 10] = [
    (
        "tried to write an error: plugins log instead; an interpreter writes one if a rule hands \
         the host a value of the wrong type",
        &["stderr"],
    ),
    (
        "tried to write output: plugins have none; log instead",
        &["fd_write", "stdout", "output-stream"],
    ),
    (
        "tried to read input: plugins have none",
        &["stdin", "input-stream"],
    ),
    (
        "tried to read the clock: plugins have none; ask the host with `now`",
        &["clock", "resolution", "now"],
    ),
    (
        "tried to get random numbers: plugins have none",
        &["random"],
    ),
    (
        "tried to read the environment: plugins have none",
        &["environ", "args_", "arguments", "initial-cwd"],
    ),
    (
        "tried to use the network: plugins have none",
        &["sock", "tcp", "udp", "network", "http", "resolve-address"],
    ),
    ("tried to wait: plugins can't", &["poll", "subscribe"]),
    ("tried to exit: plugins can't", &["exit", "proc_"]),
    (
        "tried to open a file: plugins have none",
        &[
            "path_",
            "fd_",
            "filesystem",
            "descriptor",
            "preopens",
            "directories",
        ],
    ),
];

/// Describes what a plugin wants that calls this function of WASI: "tried to …".
pub fn denied(function: &str) -> String {
    let is_meant = |parts: &[&str]| parts.iter().any(|part| function.contains(part));
    let wanted = WANTED.iter().find(|(_, parts)| is_meant(parts));
    let wanted = wanted.map_or("tried to use WASI", |(words, _)| *words);
    format!("{wanted} ({function} is denied)")
}

/// Whether an import belongs to WASI.
pub(crate) fn offers(import: &str) -> bool {
    import.starts_with("wasi:")
}

/// Links the functions of WASI that a component imports. Calling one ends the plugin's call with an
/// error: there are no files, no network, no environment, no clock.
pub(crate) fn deny(linker: &mut Linker<Call>, component: &Component) -> Result<()> {
    let engine = component.engine();
    let component = component.component_type();
    for (interface, import) in component.imports(engine) {
        let ComponentItem::ComponentInstance(instance) = import.ty else {
            continue;
        };
        if !offers(interface) {
            continue;
        }
        let mut denied = linker.instance(interface)?;
        for (name, export) in instance.exports(engine) {
            match export.ty {
                ComponentItem::ComponentFunc(_) => {
                    let function = format!("{interface}#{name}");
                    denied
                        .func_new(name, move |_, _, _, _| bail!("{}", self::denied(&function)))?;
                }
                ComponentItem::Resource(_) => {
                    denied.resource(name, ResourceType::host::<()>(), |_, _| Ok(()))?;
                }
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_denied_is_said_in_words_whatever_the_version_of_wasi() {
        for (function, words) in [
            ("path_open", "tried to open a file"),
            ("fd_prestat_get", "tried to open a file"),
            (
                "wasi:filesystem/preopens@0.2.0#get-directories",
                "tried to open a file",
            ),
            ("fd_write", "tried to write output"),
            ("wasi:cli/stdout@0.2.0#get-stdout", "tried to write output"),
            ("get-terminal-stderr", "tried to write an error"),
            ("clock_time_get", "tried to read the clock"),
            (
                "wasi:clocks/wall-clock@0.2.0#now",
                "tried to read the clock",
            ),
            ("now", "tried to read the clock"),
            ("subscribe-duration", "tried to wait"),
            ("get-directories", "tried to open a file"),
            (
                "[method]output-stream.blocking-write-and-flush",
                "tried to write output",
            ),
            ("random_get", "tried to get random numbers"),
            ("environ_sizes_get", "tried to read the environment"),
            (
                "wasi:cli/environment@0.2.0#get-environment",
                "tried to read the environment",
            ),
            (
                "[method]tcp-socket.start-connect",
                "tried to use the network",
            ),
            ("poll_oneoff", "tried to wait"),
            ("proc_exit", "tried to exit"),
            (
                "something-else",
                "tried to use WASI (something-else is denied)",
            ),
        ] {
            let said = denied(function);
            assert!(said.starts_with(words), "{said}");
            assert!(said.ends_with(&format!("({function} is denied)")), "{said}");
        }
    }
}
