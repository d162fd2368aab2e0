//! When a source says how much it has published, so that whoever listens notices what
//! they have missed, and that the node has started anew, with no further traffic.

/// A source's beacon: silent until the node serves.
#[derive(Debug)]
pub(crate) struct Beacon {
    every_ms: u64,
    next_at: Option<u64>,
}

impl Beacon {
    pub(crate) fn new(every_ms: u64) -> Self {
        Self {
            every_ms,
            next_at: None,
        }
    }

    /// The node serves from now on, or can be heard again: it says so at once.
    pub(crate) fn begin(&mut self, now: u64) {
        self.next_at = Some(now);
    }

    /// When [`Self::take`] is to be asked next.
    pub(crate) fn next_at(&self) -> Option<u64> {
        self.next_at
    }

    /// Whether it is time, which it then isn't for a while.
    pub(crate) fn take(&mut self, now: u64) -> bool {
        let is_due = self.next_at.is_some_and(|at| at <= now);
        if is_due {
            self.next_at = Some(now + self.every_ms);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_silent_at_first_and_then_comes_at_its_interval() {
        let mut beacon = Beacon::new(5_000);
        assert!(!beacon.take(1));
        beacon.begin(10);
        assert!(beacon.take(10) && !beacon.take(10) && !beacon.take(5_009));
        assert!(beacon.take(5_100));
        assert_eq!(beacon.next_at(), Some(10_100));
        beacon.begin(5_200);
        assert!(beacon.take(5_200));
    }
}
