//! core

pub mod tracker;
