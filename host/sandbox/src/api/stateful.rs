//! The state of a stateful enricher, which outlives a reload.

use wasmtime::{Result, Store, bail};

use super::export::Export;
use super::types::State;
use crate::call::Call;

/// How many bytes a state may have.
const STATE_BYTES_MAX: usize = 1 << 20;

/// The exports `save` and `restore` of a stateful enricher.
pub(crate) struct Stateful {
    pub(crate) save: Export<(), State>,
    pub(crate) restore: Export<State, std::result::Result<(), String>>,
}

impl Stateful {
    pub(crate) fn save(&self, store: &mut Store<Call>) -> Result<State> {
        let state = (self.save)(store, ())?;
        let bytes = state.data.len();
        if bytes > STATE_BYTES_MAX {
            bail!("has a state of {bytes} bytes, and {STATE_BYTES_MAX} may be handed over");
        }
        Ok(state)
    }

    pub(crate) fn restore(&self, store: &mut Store<Call>, state: State) -> Result<()> {
        match (self.restore)(store, state)? {
            Ok(()) => Ok(()),
            Err(why) => bail!("refuses the state: {why}"),
        }
    }
}
