//! What is said when a quota is exceeded: each is counted, and the log is told at most once a
//! minute of each.

use std::sync::atomic::{AtomicU64, Ordering};

use presence_core::message::Rejection;
use presence_core::quota::Quota;
use tracing::Span;

use crate::pool::log_limiter::LogLimiter;

/// How often the log is told of a quota, in milliseconds.
const TOLD_MS: u64 = 60_000;

/// What is told of a tenant's quotas.
#[derive(Debug)]
pub(crate) struct Exceeded {
    counts: [AtomicU64; Quota::ALL.len()],
    lines: [LogLimiter; Quota::ALL.len()],
    /// The tenant's, for threads that serve several.
    span: Span,
}

/// Why a directory, or an answer of its service, isn't taken.
pub(crate) fn directory_entries(max: u64) -> String {
    format!(
        "quota-exceeded: the directory would have more than {max} entries ([limits] \
         directory_entries_max)"
    )
}

impl Default for Exceeded {
    /// Of the tenant that the caller is at.
    fn default() -> Self {
        Self {
            counts: Default::default(),
            lines: Default::default(),
            span: Span::current(),
        }
    }
}

impl Exceeded {
    /// Something was refused, or has to wait: what, and what the limit is.
    pub(crate) fn note(&self, quota: Quota, error: &str) {
        if let Some(count) = self.counts.get(quota as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.log(quota, error);
    }

    /// As [`Self::note`], of what a shard has counted.
    pub(crate) fn noted(&self, rejection: &Rejection) {
        if let Some(quota) = rejection.quota {
            self.log(quota, &rejection.error);
        }
    }

    /// The log is told, unless it was lately.
    pub(crate) fn log(&self, quota: Quota, error: &str) {
        let line = self.lines.get(quota as usize);
        if let Some(times) = line.and_then(|line| line.line(TOLD_MS)) {
            let quota = quota.as_str();
            self.span
                .in_scope(|| tracing::warn!(quota, times, "a quota is exceeded: {error}"));
        }
    }

    /// How often each was exceeded, beside what shards have counted.
    pub(crate) fn count(&self, quota: Quota) -> u64 {
        let count = self.counts.get(quota as usize);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }
}
