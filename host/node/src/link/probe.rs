//! Checks whether the broker is reachable, accepts the login, and grants the permissions that the
//! node needs. No message is delivered.

use std::sync::Arc;

use anyhow::anyhow;
use async_nats::Event;
use presence_config::{Config, Directory};

use crate::link::broker::{BrokerAccess, Permissions};

/// The result of the check.
pub struct Found {
    /// The server's name, its version, and its limit on a message, in bytes.
    pub server: (String, String, usize),
    /// The permissions that can't be tested.
    pub unknown: Vec<String>,
    /// The problems found.
    pub problems: Vec<anyhow::Error>,
}

/// Connects as a node does, and tests all permissions that it needs.
///
/// # Errors
/// If the broker can't be reached, or refuses the login.
#[tokio::main(flavor = "current_thread")]
pub async fn connect(config: &Config) -> anyhow::Result<Found> {
    let access = BrokerAccess::new(config);
    let permissions = Arc::<Permissions>::default();
    match &config.tenants {
        None => permissions.need(config),
        // Only the tenants without an account of their own use this connection.
        Some(tenants) => {
            let shared = tenants.iter().filter(|tenant| !tenant.own_account);
            let configs = shared.filter_map(|tenant| tenant.config.as_ref().ok());
            configs.for_each(|config| permissions.need(config));
        }
    }
    let hears = Arc::clone(&permissions);
    let options = access
        .options()?
        .name("presence check")
        .no_echo()
        .event_callback(move |event| {
            if let Event::ServerError(error) = event {
                hears.note(&error.to_string());
            }
            std::future::ready(())
        });
    let client = access.connect(options).await?;
    let info = client.server_info();
    let (mut unknown, mut problems) = (Vec::new(), Vec::new());
    for (permission, verdict) in permissions.try_all(&client).await {
        match verdict {
            Some(true) => {}
            Some(false) => problems.push(anyhow!(
                "NATS forbids this node {permission}: permit it, as docs/permissions.conf does"
            )),
            None => unknown.push(permission.to_string()),
        }
    }
    if matches!(config.directory, Directory::Kv { .. }) && !info.jetstream {
        problems.push(anyhow!(
            "[directory] source is \"kv\", and the server offers no JetStream"
        ));
    }
    // The node has a second connection for the pulse. It works without it, with more load on the
    // main connection.
    let second = access.options()?.name("presence check, second connection");
    if let Err(error) = access.connect(second).await {
        problems.push(error.context("one connection is permitted, and a second is not"));
    }
    Ok(Found {
        server: (info.server_name, info.version, info.max_payload),
        unknown,
        problems,
    })
}
