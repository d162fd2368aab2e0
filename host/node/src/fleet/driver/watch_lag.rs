//! Detects a watch of the fleet's bucket that doesn't report what this node has written.

/// What this node has written, and what the watch has reported.
#[derive(Debug, Default)]
pub(super) struct WatchLag {
    /// The greatest revision that the watch has reported.
    seen: u64,
    /// The greatest revision of this node's writes that the watch has not reported, and since when
    /// at least one is missing. `None`: the watch has reported all of them.
    unseen: Option<(u64, u64)>,
}

impl WatchLag {
    /// This node has written this revision. The watch may have reported it before the answer came.
    pub(super) fn note_written(&mut self, revision: u64, now: u64) {
        if revision > self.seen {
            let since = self.unseen.map_or(now, |(_, since)| since);
            self.unseen = Some((revision, since));
        }
    }

    /// The watch has reported this revision, and so all revisions before it.
    pub(super) fn note_reported(&mut self, revision: u64) {
        self.seen = self.seen.max(revision);
        self.unseen.take_if(|(written, _)| *written <= revision);
    }

    /// Whether a write has been missing from the watch for longer than `patience_ms`.
    pub(super) fn is_longer_than(&self, patience_ms: u64, now: u64) -> bool {
        let since = self.unseen.map(|(_, since)| since);
        since.is_some_and(|since| now > since + patience_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_that_tells_of_a_write_before_or_after_its_answer_is_not_silent() {
        let mut watch_lag = WatchLag::default();
        watch_lag.note_reported(4);
        watch_lag.note_written(4, 100);
        assert!(!watch_lag.is_longer_than(50, 1_000), "it was told first");
        watch_lag.note_written(6, 200);
        watch_lag.note_written(7, 240);
        assert!(!watch_lag.is_longer_than(50, 250));
        watch_lag.note_reported(6);
        assert!(watch_lag.is_longer_than(50, 251), "7 is missing");
        watch_lag.note_reported(7);
        assert!(!watch_lag.is_longer_than(50, 1_000));
    }
}
