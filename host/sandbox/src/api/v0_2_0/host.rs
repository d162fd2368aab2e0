//! The interface `host`: reasons, the time, and log lines.

use presence_core::audience::Audience;
use wasmtime::Result;
use wasmtime::component::{ComponentType, Lift, LinkerInstance, Lower, WasmStr};

use super::{Calling, charge};
use crate::call::{self, Call};
use crate::capability::{Capabilities, Capability};
use crate::recorder::LineKind;
use crate::zones;

/// How much fuel it costs to look up a time zone.
const ZONE_FUEL: u64 = 1_000;

#[derive(Clone, Copy, ComponentType, Lift, Lower)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "values come out of components")]
enum Level {
    #[component(name = "error")]
    Error,
    #[component(name = "warn")]
    Warn,
    #[component(name = "info")]
    Info,
    #[component(name = "debug")]
    Debug,
}

impl From<Level> for LineKind {
    fn from(level: Level) -> Self {
        match level {
            Level::Error => Self::Error,
            Level::Warn => Self::Warn,
            Level::Info => Self::Info,
            Level::Debug => Self::Debug,
        }
    }
}

/// Links the granted functions that all versions of the API have.
pub(in crate::api) fn host(
    host: &mut LinkerInstance<'_, Call>,
    granted: Capabilities,
) -> Result<()> {
    host.func_wrap("explain", |store: Calling<'_>, (text,): (WasmStr,)| {
        explain(store, None, &text)
    })?;
    host.func_wrap("now", |mut store: Calling<'_>, (): ()| {
        store.data_mut().observed.reads.time = true;
        Ok((store.data().context()?.now,))
    })?;
    host.func_wrap("reconsider-at", |mut store: Calling<'_>, (at,): (u64,)| {
        let reads = &mut store.data_mut().observed.reads;
        reads.reconsider_at = Some(reads.reconsider_at.map_or(at, |before| before.min(at)));
        Ok(())
    })?;
    if granted.has(Capability::Log) {
        host.func_wrap("log", log)?;
    }
    Ok(())
}

/// Links the functions that 0.2.0 added.
pub(super) fn link_added_in_0_2_0(host: &mut LinkerInstance<'_, Call>) -> Result<()> {
    host.func_wrap(
        "explain-for",
        |store: Calling<'_>, (viewers, text): (u32, WasmStr)| {
            let viewers = store.data().audience(viewers)?.clone();
            explain(store, Some(&viewers), &text)
        },
    )?;
    host.func_wrap(
        "local-time",
        |mut store: Calling<'_>, (zone, at): (WasmStr, u64)| {
            let bytes = zone.to_str(&store)?.len();
            charge(&mut store, ZONE_FUEL + bytes as u64)?;
            let time = zones::local_time(&zone.to_str(&store)?, at);
            Ok((time,))
        },
    )
}

/// Records a reason for the verdict. It is about these viewers alone, or about the event if
/// `viewers` is `None`.
fn explain(mut store: Calling<'_>, viewers: Option<&Audience>, text: &WasmStr) -> Result<()> {
    if !store.data_mut().admit_line() {
        return Ok(());
    }
    let bytes = text.to_str(&store)?.len();
    charge(&mut store, bytes as u64)?;
    let text = text.to_str(&store)?;
    let explanation = call::cut(&text).to_owned();
    drop(text);
    store.data().record_reason(viewers, &explanation);
    let plugin = &*store.data().plugin;
    if tracing::enabled!(target: "plugin", tracing::Level::DEBUG) && store.data().has_room_in_log()
    {
        tracing::debug!(target: "plugin", plugin, explanation);
    }
    store.data_mut().give_reason(viewers, explanation);
    Ok(())
}

/// Writes a line to the host's log. A line of level `error` is kept until the call ends: if the
/// call traps, the line is the reason, and is logged with the failure.
fn log(mut store: Calling<'_>, (level, text): (Level, WasmStr)) -> Result<()> {
    let is_taken = store.data_mut().admit_line();
    let is_error = matches!(level, Level::Error);
    if !is_taken && !is_error {
        return Ok(());
    }
    let bytes = text.to_str(&store)?.len();
    charge(&mut store, bytes as u64)?;
    let text = text.to_str(&store)?;
    let line = call::cut(&text);
    if is_taken {
        store.data().record(level.into(), line);
    }
    if is_error {
        let line = line.to_owned();
        drop(text);
        store.data_mut().note_error(line, is_taken);
        return Ok(());
    }
    let plugin = &*store.data().plugin;
    let is_logged = match level {
        Level::Error => true,
        Level::Warn => tracing::enabled!(target: "plugin", tracing::Level::WARN),
        Level::Info => tracing::enabled!(target: "plugin", tracing::Level::INFO),
        Level::Debug => tracing::enabled!(target: "plugin", tracing::Level::DEBUG),
    };
    if !is_logged || !store.data().has_room_in_log() {
        return Ok(());
    }
    match level {
        Level::Error => tracing::error!(target: "plugin", plugin, "{line}"),
        Level::Warn => tracing::warn!(target: "plugin", plugin, "{line}"),
        Level::Info => tracing::info!(target: "plugin", plugin, "{line}"),
        Level::Debug => tracing::debug!(target: "plugin", plugin, "{line}"),
    }
    Ok(())
}
