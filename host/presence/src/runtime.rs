//! The runtime of commands that wait for NATS or a signal.

/// Runs a command's future on this thread, until it is done.
///
/// # Errors
/// The command's error, or if the runtime can't be made.
pub(crate) fn wait_for<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(command)
}
