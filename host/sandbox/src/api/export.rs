//! What a component exports, as the host calls it.

use wasmtime::component::Instance;
use wasmtime::{Result, Store};

use crate::call::Call;

/// What a component exports, called with `A` and answering with `R`.
pub(crate) type Export<A, R> = Box<dyn Fn(&mut Store<Call>, A) -> Result<R> + Send>;

/// Finds an export in a component's instance.
pub(crate) type Find<A, R> = fn(&Instance, &mut Store<Call>) -> Result<Export<A, R>>;
