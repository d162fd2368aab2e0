//! Plugin files: a component that carries its manifest in a custom section.
//!
//! The tools of `presence plugin` and `cargo xtask plugins` use this to make and read such files.
//! The host doesn't need it to run them.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

mod assemble;
mod bindings;
mod sections;
mod stubs;
mod wit;

pub use assemble::{assemble, package};
pub use bindings::c_bindings;
pub use sections::{SECTION, manifest};
pub use stubs::module_imports;
pub use wit::{Import, imports, wit};
