//! `presence:plugin` 0.1.0: the same as 0.2.0, without `blockers`, `explain-for` and `local-time`.
//!
//! The shared interfaces are linked from the module of 0.2.0, under the names of this version. If a
//! newer version changes one of them, this module gets the old one.

use wasmtime::Result;
use wasmtime::component::Linker;

use super::v0_2_0;
use super::version::Api;
use crate::call::Call;
use crate::capability::Capabilities;

pub(super) const API: Api = Api {
    version: "0.1.0",
    link,
    // Exports and their types are the same as in 0.2.0.
    ..v0_2_0::API
};

/// Links the four interfaces of this version.
fn link(linker: &mut Linker<Call>, granted: Capabilities) -> Result<()> {
    v0_2_0::events(&mut linker.instance("presence:plugin/events@0.1.0")?)?;
    v0_2_0::audiences(&mut linker.instance("presence:plugin/audiences@0.1.0")?)?;
    v0_2_0::questions(
        &mut linker.instance("presence:plugin/directory@0.1.0")?,
        granted,
    )?;
    v0_2_0::host(&mut linker.instance("presence:plugin/host@0.1.0")?, granted)
}
