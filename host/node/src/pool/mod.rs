//! Workers: threads that own shards.

pub(crate) mod lane;
pub(crate) mod seldom;
pub(crate) mod worker;
