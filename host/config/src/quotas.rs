//! The quotas of a tenant that several of its parts share, by its configuration.

use presence_core::allowance::Allowance;
use presence_core::quota::{Cap, Rate};

use crate::Config;

/// The quotas that the shards of a tenant share among them, and with what is around them. Cloning
/// it shares them.
#[derive(Clone, Debug)]
pub struct Quotas {
    /// Dead letters.
    pub dead_letters: Allowance,
    /// Messages that are taken in.
    pub messages: Rate,
    /// Questions.
    pub queries: Rate,
    /// Processor time, in microseconds.
    pub cpu: Rate,
    /// Users online by connections of theirs.
    pub users: Cap,
    /// Live connections.
    pub connections: Cap,
}

impl Quotas {
    /// As a configuration says.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let quotas = Self {
            dead_letters: Allowance::new(config.dead_letters.rates),
            messages: Rate::default(),
            queries: Rate::default(),
            cpu: Rate::default(),
            users: Cap::default(),
            connections: Cap::default(),
        };
        quotas.change(config);
        quotas
    }

    /// They are as a configuration says from now on, for all who share them.
    pub fn change(&self, config: &Config) {
        let limits = &config.limits;
        self.dead_letters.change(config.dead_letters.rates);
        self.messages
            .change(limits.messages_per_s, limits.messages_burst);
        self.queries
            .change(limits.queries_per_s, limits.queries_per_s);
        // What wasn't used of the last second may be made up for.
        let cpu_us = limits.cpu_ms_per_s.saturating_mul(1_000);
        self.cpu.change(cpu_us, cpu_us);
        self.users.change(limits.users_max);
        self.connections.change(limits.connections_max);
    }
}
