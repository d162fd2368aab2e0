//! A load that is under way, as those see it who wait for what comes of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::ensure;

/// Where a load is, and whether anybody still waits for it.
#[derive(Debug, Default)]
pub struct Attempt {
    given_up: AtomicBool,
    /// What it is at.
    at: Mutex<String>,
}

impl Attempt {
    /// Nobody waits for it any more: it ends before its next step.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// What it is at.
    pub fn at(&self) -> String {
        let at = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        at.clone()
    }

    /// It comes to its next step.
    ///
    /// # Errors
    /// If it has been given up.
    pub(super) fn step(&self, at: String) -> anyhow::Result<()> {
        let given_up = self.given_up.load(Ordering::Relaxed);
        ensure!(!given_up, "given up before {at}");
        *self.at.lock().unwrap_or_else(PoisonError::into_inner) = at;
        Ok(())
    }
}
