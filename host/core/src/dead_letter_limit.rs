//! A rate limit for dead letters, in letters and in bytes per second, shared by all shards. A
//! client that sends garbage as fast as it can makes the host publish no more than that.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The burst: how many seconds' worth of the rates can be saved up while nothing is published.
const BURST_S: u64 = 2;

/// The length to which a letter is cut when there is no room for all of it, in bytes.
pub const SHORT_BYTES: usize = 4_096;

/// The limit for dead letters. Clones share it.
#[derive(Clone, Debug)]
pub struct DeadLetterLimit(Arc<Mutex<State>>);

/// The limits per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Letters per second.
    pub letters_per_s: u64,
    /// Bytes of letters per second. Above it, letters are cut.
    pub bytes_per_s: u64,
}

#[derive(Debug)]
struct State {
    rates: Rates,
    /// What is left at `at`, in thousandths of a letter and of a byte.
    letters: u64,
    bytes: u64,
    /// The monotonic time of the last update, in milliseconds.
    at: u64,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            letters_per_s: 5_000,
            bytes_per_s: 16 << 20,
        }
    }
}

impl Default for DeadLetterLimit {
    fn default() -> Self {
        Self::new(Rates::default())
    }
}

impl DeadLetterLimit {
    /// A limit of which a whole burst is left.
    pub fn new(rates: Rates) -> Self {
        let mut state = State {
            rates,
            letters: 0,
            bytes: 0,
            at: 0,
        };
        state.refill(u64::from(u32::MAX));
        state.at = 0;
        Self(Arc::new(Mutex::new(state)))
    }

    /// Changes the limits.
    pub fn change(&self, rates: Rates) {
        self.state().rates = rates;
    }

    /// Takes one letter at `now`. Returns whether it may be published; if not, it doesn't count.
    pub fn take_letter(&self, now: u64) -> bool {
        let mut state = self.state();
        state.advance_to(now);
        let left = state.letters.checked_sub(1_000);
        state.letters = left.unwrap_or(state.letters);
        left.is_some()
    }

    /// Takes the bytes of a letter. Returns whether it may be published as a whole. If not, it must
    /// be cut to [`SHORT_BYTES`], which have been taken instead.
    pub fn take_bytes(&self, bytes: usize) -> bool {
        let mut state = self.state();
        let cost = |bytes: usize| (bytes as u64).saturating_mul(1_000);
        match state.bytes.checked_sub(cost(bytes)) {
            Some(left) => {
                state.bytes = left;
                true
            }
            None => {
                let short = cost(bytes.min(SHORT_BYTES));
                state.bytes = state.bytes.saturating_sub(short);
                bytes <= SHORT_BYTES
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic can't leave the state half-changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn advance_to(&mut self, now: u64) {
        let passed_ms = now.saturating_sub(self.at);
        self.at = self.at.max(now);
        self.refill(passed_ms);
    }

    fn refill(&mut self, passed_ms: u64) {
        let refilled = |left: u64, per_s: u64| {
            let gained = passed_ms.saturating_mul(per_s);
            let max = per_s.saturating_mul(BURST_S * 1_000);
            left.saturating_add(gained).min(max)
        };
        self.letters = refilled(self.letters, self.rates.letters_per_s);
        self.bytes = refilled(self.bytes, self.rates.bytes_per_s);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(letters_per_s: u64, bytes_per_s: u64) -> DeadLetterLimit {
        DeadLetterLimit::new(Rates {
            letters_per_s,
            bytes_per_s,
        })
    }

    fn taken(limit: &DeadLetterLimit, now: u64) -> usize {
        (0..1_000).filter(|_| limit.take_letter(now)).count()
    }

    #[test]
    fn there_are_so_many_letters_a_second_of_all_who_share_them() {
        let one = limit(10, 1_000);
        let other = one.clone();
        assert_eq!([taken(&one, 5), taken(&other, 5)], [20, 0], "a burst");
        assert_eq!([taken(&other, 1_005), taken(&one, 1_005)], [10, 0]);
        assert_eq!(taken(&one, 1_055), 0);
        assert_eq!(taken(&one, 1_105), 1);
        assert_eq!(taken(&one, 0), 0, "time doesn't run backwards");
        one.change(Rates {
            letters_per_s: 1,
            bytes_per_s: 1,
        });
        assert_eq!(taken(&other, 100_000), 2);
    }

    #[test]
    fn large_letters_are_cut_when_there_is_no_room_for_more_bytes() {
        let limit = limit(1_000, 10_000);
        assert!(limit.take_letter(1));
        assert!(limit.take_bytes(15_000));
        assert!(!limit.take_bytes(6_000));
        assert!(limit.take_bytes(100), "a short one is published whole");
        assert!(limit.take_letter(2_001));
        assert!(limit.take_bytes(20_000));
    }
}
