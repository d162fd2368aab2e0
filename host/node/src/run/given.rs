//! What a tenant is given while it is served, and what the system gives the process.

use std::sync::Arc;

use presence_config::{self as config, Config};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::watch;

use super::account::Account;
use super::tenants::DesiredState;
use crate::ops::http::Tenants;

/// Waits until something is wanted that a tenant can't take while it is served. What it can
/// take, it is given.
pub(super) async fn other(
    wanted: &mut watch::Receiver<DesiredState>,
    (config, account): (&Arc<Config>, &Account),
    given: &watch::Sender<Arc<Config>>,
    (told, name): (&Tenants, &str),
) {
    while wanted.changed().await.is_ok() {
        let order = wanted.borrow_and_update().clone();
        let DesiredState::Serve(new, own_account) = order else {
            // It is read again by the one who asks what to do next.
            wanted.mark_changed();
            return;
        };
        let changes = config.changes(&new);
        let is_restart = |it: &config::Change| it.effect == config::Effect::Restart;
        // Another user may be one of another account, where nobody knows of these users.
        let is_of_account = !own_account || account.access.is_of(&new);
        if changes.iter().any(is_restart) || !is_of_account {
            wanted.mark_changed();
            return;
        }
        if own_account {
            // It may be the login that it waits for.
            account.access.log_in_by(&new);
        }
        given.send_replace(new);
        told.changes(name, false);
    }
}

/// Has the system give as many open files as it gives at all: each tenant has two.
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
