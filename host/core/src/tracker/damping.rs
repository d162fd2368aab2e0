//! Damping of users who flip. A user who goes offline again and again within a short time is held
//! online for a while, and the more often they flip, the longer, as routers do it with routes that
//! flap. So a user who flips hundreds of times a second costs others no more than one who doesn't.
//!
//! Each close of a user's last connection adds to the user's penalty, which decays exponentially.
//! While the penalty is above the threshold, the user's offline waits until it has decayed to the
//! threshold. All of this is computed in whole numbers, in steps of a fraction of the half life. So
//! it makes no difference how often a penalty is read.

/// How users who flip are damped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damping {
    /// How many times in quick succession a user may go offline before an offline is held back; 0:
    /// no limit.
    pub threshold: u32,
    /// The half life of a penalty, in milliseconds.
    pub half_life_ms: u64,
    /// The longest time for which an offline is held back, in milliseconds.
    pub grace_ms_max: u64,
}

impl Damping {
    /// No user is damped.
    pub const OFF: Self = Self {
        threshold: 0,
        half_life_ms: 60_000,
        grace_ms_max: 60_000,
    };

    fn step_ms(&self) -> u64 {
        (self.half_life_ms / STEPS).max(1)
    }

    /// The penalty above which a user is damped.
    fn limit(&self) -> u64 {
        u64::from(self.threshold) * FLIP
    }

    /// The highest penalty: one that takes at least the longest grace to decay.
    fn ceiling(&self) -> u64 {
        let halvings = self.grace_ms_max / self.half_life_ms.max(1) + 1;
        self.limit() << halvings.min(16)
    }
}

impl Default for Damping {
    fn default() -> Self {
        Self {
            threshold: 100,
            ..Self::OFF
        }
    }
}

/// What one flip adds to a penalty.
const FLIP: u64 = 1 << 10;

/// In how many steps a penalty is halved.
const STEPS: u64 = 64;

/// What is left of a penalty after a step, in units of 2^-32: 2^(-1 / [`STEPS`]).
const LEFT: u64 = 4_248_701_965;

/// After this many half lives, nothing is left of a penalty.
const HALVINGS_MAX: u64 = 40;

/// How often a user has flipped lately.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flips {
    penalty: u64,
    /// When the penalty had this value, in milliseconds by the host's clock.
    at: u64,
}

impl Flips {
    /// Counts a close of the user's last connection. Returns for how long the user's offline is
    /// held back, in milliseconds.
    pub(super) fn flip(&mut self, now: u64, damping: &Damping) -> u64 {
        if damping.threshold == 0 {
            return 0;
        }
        self.decay(now, damping);
        self.penalty = (self.penalty + FLIP).min(damping.ceiling());
        self.held_ms(damping)
    }

    fn decay(&mut self, now: u64, damping: &Damping) {
        if self.penalty == 0 {
            self.at = now;
            return;
        }
        let steps = now.saturating_sub(self.at) / damping.step_ms();
        self.at += steps * damping.step_ms();
        let halvings = steps / STEPS;
        self.penalty = match halvings < HALVINGS_MAX {
            true => self.penalty >> halvings,
            false => 0,
        };
        for _ in 0..steps % STEPS {
            self.penalty = after_step(self.penalty);
        }
    }

    fn held_ms(&self, damping: &Damping) -> u64 {
        let (mut penalty, mut held_ms) = (self.penalty, 0);
        while penalty > damping.limit() && held_ms < damping.grace_ms_max {
            penalty = after_step(penalty);
            held_ms += damping.step_ms();
        }
        held_ms.min(damping.grace_ms_max)
    }
}

fn after_step(penalty: u64) -> u64 {
    // The result is no greater than `penalty`, so it fits.
    ((u128::from(penalty) * u128::from(LEFT)) >> 32) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAMPING: Damping = Damping {
        threshold: 100,
        half_life_ms: 60_000,
        grace_ms_max: 60_000,
    };

    /// For how long each of these offlines is held back.
    fn held(flips: usize, every_ms: u64) -> Vec<u64> {
        let mut user = Flips::default();
        let flip = |number| user.flip(1_000 + number as u64 * every_ms, &DAMPING);
        (0..flips).map(flip).collect()
    }

    #[test]
    fn a_user_on_a_bad_line_is_never_held_back() {
        // All at once, thirty a minute for hours, and one a second.
        assert_eq!(held(100, 0), vec![0; 100]);
        assert_eq!(held(5_000, 2_000), vec![0; 5_000]);
        assert_eq!(held(5_000, 1_000), vec![0; 5_000]);
    }

    #[test]
    fn who_flips_on_is_held_back_for_longer_and_longer_up_to_a_limit() {
        let held = held(2_000, 2);
        assert_eq!(held[..100], vec![0; 100]);
        assert!(held[100] > 0 && held[100] < 2_000, "{}", held[100]);
        assert!(held.is_sorted());
        // Twice the threshold takes a half life.
        assert!((58_000..=60_000).contains(&held[199]), "{}", held[199]);
        assert_eq!(held[1_999], 60_000);
    }

    #[test]
    fn the_penalty_halves_in_a_half_life_however_often_it_is_looked_at() {
        let flipped = Flips {
            penalty: 200 * FLIP,
            at: 0,
        };
        for every_ms in [1, 7, 900, 60_000] {
            let mut user = flipped;
            let mut now = 0;
            while now < 60_000 {
                now = (now + every_ms).min(60_000);
                user.decay(now, &DAMPING);
            }
            let left = user.penalty / FLIP;
            assert!((99..=101).contains(&left), "{left} after {every_ms}");
        }
        let mut user = flipped;
        user.decay(u64::MAX, &DAMPING);
        assert_eq!(user.penalty, 0);
    }

    #[test]
    fn no_figures_are_too_large_or_too_small() {
        for threshold in [0, 1, u32::MAX] {
            for half_life_ms in [0, 1, u64::MAX] {
                for grace_ms_max in [0, 1, 1_000] {
                    let damping = Damping {
                        threshold,
                        half_life_ms,
                        grace_ms_max,
                    };
                    let mut user = Flips::default();
                    for now in [0, 0, 1, u64::MAX, 5, 5] {
                        assert!(user.flip(now, &damping) <= grace_ms_max);
                    }
                }
            }
        }
    }
}
