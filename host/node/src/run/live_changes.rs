//! Configuration changes for a tenant that is served, and the process's limit of open files.

use std::sync::Arc;

use presence_config::{self as config, Config};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;

use super::account::Account;
use super::tenants::DesiredState;
use crate::ops::http::TenantStatuses;

/// Returns when a change is wanted that needs a restart of the tenant. Other changes are passed on
/// to the running tenant by `live_config`.
pub(super) async fn apply_changes_until_restart(
    wanted: &mut watch::Receiver<DesiredState>,
    (config, account): (&Arc<Config>, &Account),
    live_config: &watch::Sender<Arc<Config>>,
    (statuses, name): (&TenantStatuses, &str),
) {
    while wanted.changed().await.is_ok() {
        let order = wanted.borrow_and_update().clone();
        let DesiredState::Serve(new, own_account) = order else {
            // The caller reads it again when it decides what to do next.
            wanted.mark_changed();
            return;
        };
        let changes = config.changes(&new);
        let is_restart = |it: &config::Change| it.effect == config::Effect::Restart;
        // Another login may belong to another account, on which these users don't exist.
        let is_of_account = !own_account || account.access.is_of(&new);
        if changes.iter().any(is_restart) || !is_of_account {
            wanted.mark_changed();
            return;
        }
        if own_account {
            // The tenant may be waiting for this login.
            account.access.log_in_by(&new);
        }
        live_config.send_replace(new);
        statuses.set_changing(name, false);
    }
}

/// Raises the limit of open files to the most that the system allows: each tenant needs two.
pub(super) fn raise_files_max() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(
            "the limit of open files stays at {:?}: {error}",
            limit.current
        );
    }
}
