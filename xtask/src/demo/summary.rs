//! The end: how much was sent and published, compared with the host's own counters.

use anyhow::{Context, Result};
use presence_tests::{http, wait};

use super::expected::Expected;
use super::latency::{Latencies, readable};
use super::observer::Counts;
use super::page::Page;
use super::transport::Sent;
use super::world::World;

/// The pipeline's generation at the end: it begins with 1, and two pipelines were swapped in.
const GENERATION: u64 = 3;

/// Prints the figures.
///
/// # Errors
/// When `/metrics` says otherwise, or somebody was left with a wrong belief.
pub(crate) async fn sum_up(world: &mut World, page: &Page, latencies: &Latencies) -> Result<()> {
    let debug = std::env::var_os(super::BINARY).is_none();
    world.show(page, Expected::default()).await?;
    world.observer.state().check(&world.transport.online())?;
    let (sent, metrics) = agreed(world).await?;
    let counts = world.observer.counts();

    page.heading("Summary");
    let Sent {
        connects,
        disconnects,
        heartbeats,
        invalid,
    } = sent;
    page.row(
        "inputs",
        &(connects + disconnects + heartbeats + invalid).to_string(),
        &format!("{connects} connects, {disconnects} disconnects, {heartbeats} heartbeats, {invalid} invalid"),
    );
    page.row(
        "events broadcast",
        &counts.events.to_string(),
        "somebody came online or went offline",
    );
    page.row(
        "filtered messages",
        &counts.filtered.to_string(),
        &format!("to {} viewers in all", counts.viewers),
    );
    page.row(
        "  corrections",
        &counts.corrections.to_string(),
        &format!(
            "among them: {} viewers lost sight of somebody, {} gained it",
            counts.hidden, counts.shown
        ),
    );
    page.row(
        "dead letters",
        &counts.dead_letters.to_string(),
        "each with its reason",
    );
    page.row(
        "latency p50",
        &readable(latencies.percentile(50)),
        &format!(
            "from sending an input to receiving its filtered event, {} times",
            latencies.len()
        ),
    );
    let build = if debug {
        "of a debug build (see --release)"
    } else {
        ""
    };
    page.row("latency p99", &readable(latencies.percentile(99)), build);
    page.print_line(&format!(
        "   The host's /metrics agrees in all of {metrics} figures."
    ));
    Ok(())
}

/// Waits until the host's metrics agree with what was sent and seen: the host counts a moment after
/// it answers. Returns what was sent, and how many figures were compared.
async fn agreed(world: &World) -> Result<(Sent, usize)> {
    let mut differing = String::new();
    let agreed = wait::until("/metrics to agree", async || {
        // Heartbeats go on: these are counted before the metrics are read.
        let sent = world.transport.sent();
        let metrics = world.host.metrics().await?;
        let figures = figures(world, sent, world.observer.counts());
        let differences = figures.iter().filter_map(|(name, label, ours)| {
            let labels = if label.is_empty() { &[][..] } else { &[*label] };
            let hosts = http::metric(&metrics, name, labels);
            let same = hosts == *ours as f64;
            (!same).then(|| format!("{name} {label}: {ours} here, {hosts} there"))
        });
        differing = differences.collect::<Vec<_>>().join("; ");
        Ok(differing.is_empty().then_some((sent, figures.len())))
    })
    .await;
    agreed.with_context(|| format!("/metrics disagrees: {differing}"))
}

/// The host's metrics, each with a label or none, and what they should be.
fn figures(world: &World, sent: Sent, counts: Counts) -> Vec<(&'static str, &'static str, u64)> {
    let inputs = "presence_inputs_total";
    vec![
        (inputs, "kind=\"connect\"", sent.connects),
        (inputs, "kind=\"disconnect\"", sent.disconnects),
        (inputs, "kind=\"heartbeat\"", sent.heartbeats),
        ("presence_published_total", "", counts.published),
        ("presence_dead_letters_total", "", counts.dead_letters),
        ("presence_corrections_total", "", counts.hidden),
        (
            "presence_online_users",
            "",
            world.transport.online().len() as u64,
        ),
        (
            "presence_connections",
            "",
            world.transport.connections() as u64,
        ),
        ("presence_pipeline_generation", "", GENERATION),
        ("presence_pipeline_refusals_total", "", 0),
        ("presence_plugin_failures_total", "", 0),
        ("presence_slow_consumer_drops_total", "", 0),
    ]
}
