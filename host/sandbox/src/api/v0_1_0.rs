//! `presence:plugin` 0.1.0: what 0.2.0 is, but for `blockers`, `explain-for` and
//! `local-time`, which it doesn't know.
//! What is the same is taken from there under this version's names. Once the newest
//! differs in something else, this version gets its own of it, here.

use wasmtime::Result;
use wasmtime::component::Linker;

use super::v0_2_0;
use super::version::Api;
use crate::call::Call;
use crate::capability::Capabilities;

pub(super) const API: Api = Api {
    version: "0.1.0",
    link,
    // Its exports and their types are those of the newest.
    ..v0_2_0::API
};

/// Offers all four interfaces.
fn link(linker: &mut Linker<Call>, granted: Capabilities) -> Result<()> {
    v0_2_0::events(&mut linker.instance("presence:plugin/events@0.1.0")?)?;
    v0_2_0::audiences(&mut linker.instance("presence:plugin/audiences@0.1.0")?)?;
    v0_2_0::questions(
        &mut linker.instance("presence:plugin/directory@0.1.0")?,
        granted,
    )?;
    v0_2_0::host(&mut linker.instance("presence:plugin/host@0.1.0")?, granted)
}
