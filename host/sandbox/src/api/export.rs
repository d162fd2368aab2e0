//! A component's exported functions, as the host calls them.

use wasmtime::component::Instance;
use wasmtime::{Result, Store};

use crate::call::Call;

/// An exported function of a component: called with `A`, it answers with `R`.
pub(crate) type Export<A, R> = Box<dyn Fn(&mut Store<Call>, A) -> Result<R> + Send>;

/// Looks up an exported function in a component's instance.
pub(crate) type Find<A, R> = fn(&Instance, &mut Store<Call>) -> Result<Export<A, R>>;
