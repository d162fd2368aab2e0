//! Measures one plugin's repeated calls about one event.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use presence_core::audience::Audience;
use presence_core::rules::Context;
use presence_sandbox::{CallCost, TestInstance};

/// The number of calls before the measurement.
const WARM_UP_CALLS: usize = 100;

/// The result of a measurement.
pub(super) struct Measured {
    pub(super) viewers: u64,
    pub(super) calls_per_s: u64,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    /// The cost of the last call.
    pub(super) spent: CallCost,
}

/// Calls a plugin repeatedly for some time.
///
/// # Errors
/// When a call fails.
pub(super) fn measure(
    trial: &mut TestInstance,
    context: Context<'_>,
    audience: &Audience,
    time: Duration,
) -> anyhow::Result<Measured> {
    let mut call = || match trial.call(context, audience.clone()) {
        Ok(_) => Ok(()),
        Err(failure) => bail!("`{}` failed: it {}", failure.plugin, failure.error),
    };
    for _ in 0..WARM_UP_CALLS {
        call()?;
    }
    let mut times = Vec::new();
    let begin = Instant::now();
    let mut now = begin;
    while now - begin < time {
        let called = now;
        call()?;
        now = Instant::now();
        times.push(now - called);
    }
    let calls = times.len() as f64;
    times.sort_unstable();
    let quantile = |share: usize| {
        let place = times.len().saturating_sub(1) * share / 100;
        times.get(place).copied().unwrap_or_default()
    };
    // `None`: the instance was discarded after the last call, and its cost with it.
    let spent = match trial.last_cost() {
        Some(spent) => spent,
        None => {
            trial.call(context, audience.clone()).ok();
            trial
                .last_cost()
                .context("two calls in a row used up an instance")?
        }
    };
    Ok(Measured {
        viewers: audience.len(),
        calls_per_s: (calls / (now - begin).as_secs_f64()) as u64,
        p50: quantile(50),
        p99: quantile(99),
        spent,
    })
}
