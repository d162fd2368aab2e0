//! The progress of a load, for those who wait for its result.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::ensure;

/// A load's current step, and whether anybody still waits for the load.
#[derive(Debug, Default)]
pub struct Attempt {
    given_up: AtomicBool,
    /// The current step, in words.
    at: Mutex<String>,
}

impl Attempt {
    /// Gives the load up, since nobody waits for it any more: it ends before its next step.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// The current step, in words.
    pub fn at(&self) -> String {
        let at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        at.clone()
    }

    /// Begins the next step.
    ///
    /// # Errors
    /// If the load has been given up.
    pub(super) fn step(&self, at: String) -> anyhow::Result<()> {
        let given_up = self.given_up.load(Ordering::Relaxed);
        ensure!(!given_up, "given up before {at}");
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = at;
        Ok(())
    }
}
