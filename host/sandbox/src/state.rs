//! The state of a stateful enricher, which outlives a reload.

use wasmtime::component::{Instance, TypedFunc};
use wasmtime::{Result, Store, bail};

use crate::api::State;
use crate::call::Call;

/// How large a state may be.
const STATE_BYTES_MAX: usize = 1 << 20;

/// The functions that hand over and take over a state.
pub(crate) struct Stateful {
    save: TypedFunc<(), (State,)>,
    restore: TypedFunc<(State,), (std::result::Result<(), String>,)>,
}

impl Stateful {
    /// Those of a component. None if it has neither.
    pub(crate) fn of(instance: &Instance, store: &mut Store<Call>) -> Result<Option<Box<Self>>> {
        let mut has = |name| instance.get_func(&mut *store, name).is_some();
        if !has("save") && !has("restore") {
            return Ok(None);
        }
        Ok(Some(Box::new(Self {
            save: instance.get_typed_func(&mut *store, "save")?,
            restore: instance.get_typed_func(&mut *store, "restore")?,
        })))
    }

    pub(crate) fn save(&self, store: &mut Store<Call>) -> Result<State> {
        let (state,) = self.save.call(store, ())?;
        let bytes = state.data.len();
        if bytes > STATE_BYTES_MAX {
            bail!("has a state of {bytes} bytes, and {STATE_BYTES_MAX} may be handed over");
        }
        Ok(state)
    }

    pub(crate) fn restore(&self, store: &mut Store<Call>, state: State) -> Result<()> {
        let (taken,) = self.restore.call(store, (state,))?;
        match taken {
            Ok(()) => Ok(()),
            Err(why) => bail!("refuses the state: {why}"),
        }
    }
}
