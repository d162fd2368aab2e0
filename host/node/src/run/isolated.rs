//! Where isolated tenants run: a runtime of their own, with one thread of lower priority. What it
//! costs to read and to write their connections, and to answer what their users ask, keeps no other
//! tenant waiting.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::pool::Priority;

/// A runtime that is there once a tenant needs it.
#[derive(Default)]
pub(super) struct IsolatedRuntime(Mutex<Option<Runtime>>);

impl IsolatedRuntime {
    /// Does what is of a tenant. All that it starts runs where tenants of this priority do.
    pub(super) async fn run<T>(&self, priority: Priority, work: impl Future<Output = T>) -> T {
        if priority == Priority::Usual {
            return work.await;
        }
        let (handle, mut work) = (self.handle(), pin!(work));
        poll_fn(|context| {
            // Tasks, timers and sockets are of the runtime in which they are made.
            let _entered = handle.enter();
            work.as_mut().poll(context)
        })
        .await
    }

    fn handle(&self) -> Handle {
        let mut runtime = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*runtime {
            return runtime.handle().clone();
        }
        let started = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("isolated-io")
            .on_thread_start(|| Priority::Lower.take())
            .enable_all()
            .build();
        match started {
            Ok(started) => runtime.insert(started).handle().clone(),
            Err(error) => {
                tracing::warn!(
                    "isolated tenants share a thread with the others, since the system has none to \
                     give: {error}"
                );
                Handle::current()
            }
        }
    }
}

impl Drop for IsolatedRuntime {
    fn drop(&mut self) {
        let runtime = self.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = runtime.take() {
            // Nobody waits for what may hang.
            runtime.shutdown_background();
        }
    }
}
