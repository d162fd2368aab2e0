//! The runtime of isolated tenants, with one thread of lower priority. Reading and writing their
//! connections, and answering their users' questions, delays no other tenant.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Mutex, PoisonError};

use tokio::runtime::{Builder, Handle, Runtime};

use crate::pool::Priority;

/// A runtime that is created when a tenant needs it first.
#[derive(Default)]
pub(super) struct IsolatedRuntime(Mutex<Option<Runtime>>);

impl IsolatedRuntime {
    /// Runs a tenant's work. Everything that it spawns runs on the runtime for this priority.
    pub(super) async fn run<T>(&self, priority: Priority, work: impl Future<Output = T>) -> T {
        if priority == Priority::Usual {
            return work.await;
        }
        let (handle, mut work) = (self.handle(), pin!(work));
        poll_fn(|context| {
            // Tasks, timers and sockets belong to the runtime in which they are created.
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
            // Doesn't wait for work that may hang.
            runtime.shutdown_background();
        }
    }
}
