//! The quotas that the parts of a tenant share, from its configuration.

use presence_core::dead_letter_limit::DeadLetterLimit;
use presence_core::quota::{Cap, Rate};

use crate::Config;

/// The quotas that the shards of a tenant share with each other and with the node. Clones share
/// them as well.
#[derive(Clone, Debug)]
pub struct Quotas {
    /// Dead letters.
    pub dead_letters: DeadLetterLimit,
    /// Input messages.
    pub messages: Rate,
    /// Questions.
    pub queries: Rate,
    /// Processor time, in microseconds.
    pub cpu: Rate,
    /// Users who are online by connections of their own.
    pub users: Cap,
    /// Live connections.
    pub connections: Cap,
}

impl Quotas {
    /// The quotas of a configuration.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let quotas = Self {
            dead_letters: DeadLetterLimit::new(config.dead_letters.rates),
            messages: Rate::default(),
            queries: Rate::default(),
            cpu: Rate::default(),
            users: Cap::default(),
            connections: Cap::default(),
        };
        quotas.change(config);
        quotas
    }

    /// Changes the quotas to those of a configuration, for all who share them.
    pub fn change(&self, config: &Config) {
        let limits = &config.limits;
        self.dead_letters.change(config.dead_letters.rates);
        self.messages
            .change(limits.messages_per_s, limits.messages_burst);
        self.queries
            .change(limits.queries_per_s, limits.queries_per_s);
        // Up to one second of unused time can be used later.
        let cpu_us = limits.cpu_ms_per_s.saturating_mul(1_000);
        self.cpu.change(cpu_us, cpu_us);
        self.users.change(limits.users_max);
        self.connections.change(limits.connections_max);
    }
}
