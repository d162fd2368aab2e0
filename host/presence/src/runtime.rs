//! What commands that wait for NATS or a signal run on.

/// Runs what a command waits for, on this thread.
///
/// # Errors
/// As what it waits for, or if the runtime can't be made.
pub(crate) fn wait_for<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}
