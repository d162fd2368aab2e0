//! Waiting on conditions, with one hang guard for all.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How long anything is waited for. It is far longer than anything takes on a
/// loaded machine: it ends a test that hangs, and judges no speed.
pub const GUARD: Duration = Duration::from_secs(90);

/// The pause between two looks at what gives no signal.
const POLL: Duration = Duration::from_millis(10);

/// Asks again and again until there is an answer.
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

/// Awaits a future, but not for ever.
///
/// # Errors
/// When it isn't done within [`GUARD`].
pub async fn guarded<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    match tokio::time::timeout(GUARD, future).await {
        Ok(answer) => Ok(answer),
        Err(_) => bail!("waited {} s for {what}", GUARD.as_secs()),
    }
}
