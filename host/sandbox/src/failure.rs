//! Why a call failed, in one line: the limit that it exceeded, the part of WASI that it wanted, or
//! the message of an error that wasn't caught in the plugin's language.
//!
//! A trap carries no message. So the code around a rule (the SDK's panic hook, the code that
//! `presence plugin build` adds) logs the error before it traps.

use wasmtime::{Trap, WasmBacktrace};

use crate::call::Call;
use crate::error::{causes, one_line};
use crate::{Limits, wasi};

/// How many bytes a component may pass to the host at once, as arguments or as its answer: enough
/// for the ids of 100,000 users.
pub(crate) const LIFTED_BYTES_MAX: usize = 8 << 20;

/// How many handles of resources a component may hold.
pub(crate) const HANDLES_MAX: usize = 1_024;

/// A call that failed.
pub(crate) struct CallFailure {
    /// The error, in one line.
    pub(crate) error: String,
    /// Whether the call ran past its deadline.
    pub(crate) is_late: bool,
}

impl CallFailure {
    /// Describes a failed call.
    pub(crate) fn of(error: &wasmtime::Error, call: &Call, limits: Limits) -> Self {
        let refused = match call.memory.refused_by_budget {
            Some(bytes) => format!(
                ", after it was refused memory (quota-exceeded): all plugins together may have {bytes} bytes \
                 ([limits] plugin_memory_bytes_max)"
            ),
            None if call.memory.refused => {
                let bytes = limits.memory_bytes_max;
                format!(", after it was refused more than {bytes} bytes of memory")
            }
            None => String::new(),
        };
        let trap = error.downcast_ref::<Trap>();
        let reason = match trap {
            Some(Trap::UnreachableCodeReached) => call.last_error(),
            _ => None,
        };
        if reason.is_none() {
            call.log_error();
        }
        let error = match trap {
            Some(Trap::OutOfFuel) => format!("used up its fuel of {}", limits.fuel),
            Some(Trap::Interrupt) => {
                let ms = limits.deadline_ms.unwrap_or_default();
                format!("took longer than {ms} ms")
            }
            Some(Trap::StackOverflow) => "recursed until its stack was used up".into(),
            Some(trap) => match (denied(error), reason) {
                (Some(denied), _) => denied,
                (None, Some(line)) => format!("trapped: {}{refused}", one_line(line)),
                (None, None) => format!("trapped: {trap}{refused}"),
            },
            None => limit_passed(error).unwrap_or_else(|| format!("{}{refused}", causes(error))),
        };
        let is_late = matches!(trap, Some(Trap::Interrupt));
        Self { error, is_late }
    }
}

/// What the component wanted of WASI, if it trapped in a stub of a WASI function. `presence plugin
/// build` adds these stubs, and gives them their names.
fn denied(error: &wasmtime::Error) -> Option<String> {
    let place = error.downcast_ref::<WasmBacktrace>()?.frames().first()?;
    let function = place.func_name()?.strip_prefix(wasi::STUB_PREFIX)?;
    Some(wasi::denied(function))
}

/// The limit that the call exceeded, if it is one of these two. Their errors have no type of their
/// own in wasmtime, so the text is matched.
fn limit_passed(error: &wasmtime::Error) -> Option<String> {
    let text = error.root_cause().to_string();
    if text.contains("fuel allocated for hostcalls has been exhausted") {
        return Some(format!(
            "handed over more than {LIFTED_BYTES_MAX} bytes at once"
        ));
    }
    let is_of_handles = text.contains("handle limit exceeded");
    is_of_handles.then(|| format!("holds more than {HANDLES_MAX} resources"))
}
