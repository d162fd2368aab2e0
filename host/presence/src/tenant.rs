//! The configuration of the tenant that a command is about, from the file or from the store.

use anyhow::bail;
use presence_config::escape::{eprint_line, line};
use presence_config::{Config, StoredEntry};
use presence_kit::ConfigArg;
use presence_node::store::operator::Operator;

/// Reads the configuration, for commands that are not in a runtime yet.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_now(arg: &ConfigArg) -> anyhow::Result<Config> {
    crate::runtime::wait_for(load(arg))
}

/// Reads the configuration. A tenant that isn't in the file is looked up in the store, if nodes
/// take tenants from there.
///
/// # Errors
/// If something is wrong with the configuration, there is no such tenant, or the store can't be
/// read.
pub(crate) async fn load(arg: &ConfigArg) -> anyhow::Result<Config> {
    let of_file = arg.load();
    let Some(name) = &arg.tenant else {
        return of_file;
    };
    let Ok(all) = arg.read_all() else {
        return of_file;
    };
    let tenants = all.config.tenants.as_deref();
    let section = tenants.and_then(|them| them.iter().find(|it| it.name == *name));
    if section.is_some_and(|it| it.paused) {
        eprint_line(format_args!(
            "the tenant `{}` is paused in the configuration: a node by this file doesn't serve it",
            line(name)
        ));
    }
    if of_file.is_ok() {
        return of_file;
    }
    let is_elsewhere = tenants.is_some_and(|them| them.iter().all(|it| it.name != *name));
    if !all.config.follows_store() || !is_elsewhere {
        return of_file;
    }
    let operator = Operator::connect(&all.config).await?;
    let store = operator.tenants();
    let read = operator.attempt("presence-tenants", store.snapshot());
    let entry = read.await?.entries.remove(name);
    let Some(value) = entry.and_then(|entry| entry.tenant) else {
        bail!(
            "there is no tenant `{name}` in the configuration, nor in the store: `presence tenants list` \
             shows those that nodes have"
        );
    };
    if value.as_ref().is_ok_and(|it| it.paused) {
        eprint_line(format_args!(
            "the tenant `{name}` is paused, and no node serves it: `presence tenants resume {name}` \
             has it be served again",
            name = line(name)
        ));
    }
    arg.load_with(&[StoredEntry {
        name: name.clone(),
        value,
    }])
}
