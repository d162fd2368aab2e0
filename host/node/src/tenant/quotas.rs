//! Counts and logs exceeded quotas. Each quota is logged at most once a minute.

use std::sync::atomic::{AtomicU64, Ordering};

use presence_core::message::Rejection;
use presence_core::quota::Quota;
use tracing::Span;

use crate::pool::log_limiter::LogLimiter;

/// The least time between two log lines about a quota, in milliseconds.
const LOG_EVERY_MS: u64 = 60_000;

/// The exceeded quotas of a tenant.
#[derive(Debug)]
pub(crate) struct ExceededLog {
    counts: [AtomicU64; Quota::ALL.len()],
    lines: [LogLimiter; Quota::ALL.len()],
    /// The tenant's span. It is entered for log lines, because a thread serves several tenants.
    span: Span,
}

/// The reason why a directory, or an answer of its service, isn't taken.
pub(crate) fn directory_entries(max: u64) -> String {
    format!(
        "quota-exceeded: the directory would have more than {max} entries ([limits] \
         directory_entries_max)"
    )
}

impl Default for ExceededLog {
    /// For the tenant in whose span the caller is.
    fn default() -> Self {
        Self {
            counts: Default::default(),
            lines: Default::default(),
            span: Span::current(),
        }
    }
}

impl ExceededLog {
    /// Counts and logs that something was refused or has to wait. `error` says what, and the limit.
    pub(crate) fn note(&self, quota: Quota, error: &str) {
        if let Some(count) = self.counts.get(quota as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.log(quota, error);
    }

    /// As [`Self::note`], for a rejection that a shard has counted already.
    pub(crate) fn note_counted(&self, rejection: &Rejection) {
        if let Some(quota) = rejection.quota {
            self.log(quota, &rejection.error);
        }
    }

    /// Logs it, unless the quota was logged recently.
    pub(crate) fn log(&self, quota: Quota, error: &str) {
        let line = self.lines.get(quota as usize);
        if let Some(times) = line.and_then(|line| line.line(LOG_EVERY_MS)) {
            let quota = quota.as_str();
            self.span
                .in_scope(|| tracing::warn!(quota, times, "a quota is exceeded: {error}"));
        }
    }

    /// How often a quota was exceeded, without what shards have counted.
    pub(crate) fn count(&self, quota: Quota) -> u64 {
        let count = self.counts.get(quota as usize);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }
}
