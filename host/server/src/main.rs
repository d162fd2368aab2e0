//! presence
fn main() {}
