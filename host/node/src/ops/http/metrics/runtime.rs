//! The metrics that any service has: its build, its process, its latencies, and the size of its
//! data.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::time::{ClockId, clock_gettime};

use super::exposition::Exposition;
use crate::ops::http::Status;
use crate::telemetry;

/// Metrics of the build and the process. A node that doesn't serve yet has them, too.
pub(super) fn process(text: &mut Exposition, started_ms: u64, telemetry: &telemetry::Figures) {
    let build = [(env!("CARGO_PKG_VERSION"), 1_u64)];
    text.values("presence_build_info", "version", build);
    let cpu = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
    text.value("process_cpu_seconds_total", seconds);
    // It is read on Linux. Where it can't be read, the metric is left out.
    if let Some(bytes) = resident_bytes() {
        text.value("process_resident_memory_bytes", bytes);
    }
    let started = started_ms as f64 / 1e3;
    text.value("process_start_time_seconds", started);
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let requests = [
        ("sent", read(&telemetry.sent)),
        ("failed", read(&telemetry.failed)),
    ];
    text.values("presence_telemetry_requests_total", "outcome", requests);
    let traces = [
        ("sent", read(&telemetry.traces_sent)),
        ("dropped", read(&telemetry.traces_dropped)),
    ];
    text.values("presence_telemetry_traces_total", "outcome", traces);
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

/// How long decisions and calls of plugins take, and how many decisions are pending.
pub(super) fn decisions(text: &mut Exposition, status: &Status) {
    let running = status.running.borrow().clone();
    let latency = running.blueprint.latency();
    text.histograms("presence_decision_seconds", "", [("", latency)]);
    // A plugin that occurs twice in the pipeline is reported once, by its first stage.
    let mut plugins = BTreeMap::new();
    for stage in running.blueprint.stages() {
        plugins.entry(&*stage.plugin.name).or_insert(&stage.health);
    }
    let latencies = plugins.iter().map(|(name, it)| (*name, it.latency()));
    text.histograms("presence_plugin_call_seconds", "plugin", latencies);
    let fuel = plugins.iter().map(|(name, it)| (*name, it.fuel()));
    text.values("presence_plugin_call_fuel_total", "plugin", fuel);
    let publish_latency = status.publish_latency.histogram();
    text.histograms(
        "presence_intake_to_publish_seconds",
        "",
        [("", publish_latency)],
    );
    text.value("presence_pending_decisions", status.pending());
    let waited_ms = status.oldest_pending_ms().unwrap_or_default();
    let seconds = waited_ms as f64 / 1e3;
    text.value("presence_oldest_pending_decision_seconds", seconds);
}

/// The size and the age of the directory in force.
pub(super) fn directory(text: &mut Exposition, status: &Status) {
    let (users, groups) = {
        let directory = status.known_directory.borrow();
        (directory.len(), directory.group_count())
    };
    text.value("presence_directory_users", users);
    text.value("presence_directory_groups", groups);
    let age = status.directory.age_s();
    text.value("presence_directory_age_seconds", age.unwrap_or_default());
}
