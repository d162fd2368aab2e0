//! Waits for conditions, with one time limit for all.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The time limit of all waits. It is far longer than anything takes on a loaded machine: it ends a
/// test that hangs, and doesn't measure speed.
pub const GUARD: Duration = Duration::from_secs(90);

/// The pause between two checks of a condition that gives no signal.
const POLL: Duration = Duration::from_millis(10);

/// Calls `probe` again and again until it has an answer.
///
/// # Errors
/// When `probe` fails, or had no answer within [`GUARD`].
pub async fn until<T>(what: &str, mut probe: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(answer) = probe().await? {
            return Ok(answer);
        }
        if begin.elapsed() > GUARD {
            bail!("waited {} s for {what}", GUARD.as_secs());
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Awaits a future, with a time limit.
///
/// # Errors
/// When it isn't done within [`GUARD`].
pub async fn guarded<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    match tokio::time::timeout(GUARD, future).await {
        Ok(answer) => Ok(answer),
        Err(_) => bail!("waited {} s for {what}", GUARD.as_secs()),
    }
}
