//! The admin service: requests of operators' commands to a node, over NATS alone. Each node has
//! subjects of its own, with an id, because a command needs the answer of every node and not of any
//! one.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::{Client, Event, Message};
use presence_config::Config;
use presence_config::subjects::{ADMIN, Subjects};
use serde_json::json;

use crate::link::broker::BrokerAccess;
use crate::link::micro::{self, Answer, Service, Services, SubscribedService};
use crate::link::plugin_log;
use crate::link::reply_guard::ReplyGuard;
use crate::ops::http::StatusBoard;
use crate::store::trial::RevisionValidator;
use crate::tasks::Tasks;

/// How often the connection is made anew while NATS forbids something on it. This is needed because
/// the broker drops a subscription that it refuses.
const AGAIN: Duration = Duration::from_secs(60);

/// How many different errors of NATS are logged.
const LOGGED_ERRORS_MAX: usize = 16;

/// The connection for operators' commands and the plugin store. It is separate, so that a flood of
/// inputs doesn't delay it, and so that it takes no room from inputs.
#[derive(Clone)]
pub(crate) struct Admin {
    pub(crate) client: Client,
    is_forbidden: Arc<AtomicBool>,
    services: Services,
}

/// Logs an error of NATS, if it is a new one.
fn log_forbidden(said: &Mutex<BTreeSet<String>>, error: String) {
    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
    if said.len() < LOGGED_ERRORS_MAX && said.insert(error.clone()) {
        tracing::warn!(
            "operators' commands may not reach this node, or it not the plugin store: NATS says: \
             {error}"
        );
    }
}

impl Admin {
    /// Connects. If the broker isn't there, the client goes on trying.
    ///
    /// # Errors
    /// As [`BrokerAccess::options`], or if the connection is closed.
    pub(crate) async fn connect(access: &BrokerAccess, tasks: &Tasks) -> anyhow::Result<Self> {
        let is_forbidden = Arc::<AtomicBool>::default();
        let noted = Arc::clone(&is_forbidden);
        let said = Mutex::<BTreeSet<String>>::default();
        let options = access.lasting(" admin")?.event_callback(move |event| {
            if let Event::ServerError(error) = event {
                noted.store(true, Ordering::Relaxed);
                log_forbidden(&said, error.to_string());
            }
            std::future::ready(())
        });
        let client = access.connect(options).await?;
        let services = Services::listen(&client, tasks).await?;
        Ok(Self {
            client,
            is_forbidden,
            services,
        })
    }

    /// Makes the connection anew at intervals, while NATS forbids something on it.
    pub(crate) async fn renew(self) {
        loop {
            tokio::time::sleep(AGAIN).await;
            if self.is_forbidden.swap(false, Ordering::Relaxed) {
                // The client is gone only when the account is closed.
                let _ = self.client.force_reconnect().await;
            }
        }
    }

    /// Subscribes to the requests for a node that serves.
    ///
    /// # Errors
    /// If the connection is closed.
    pub(crate) async fn listen(
        &self,
        config: &Config,
        replies: Arc<ReplyGuard>,
    ) -> anyhow::Result<SubscribedService> {
        let endpoints = ["status", "validate", "shadow", "follow"];
        self.service(config, replies, false, &endpoints)
            .listen(&self.services)
            .await
    }

    /// Answers commands while the node waits for its turn, until `turn` completes.
    pub(crate) async fn wait(
        &self,
        config: &Config,
        replies: Arc<ReplyGuard>,
        board: &StatusBoard,
        turn: impl Future<Output = ()>,
    ) {
        let served = async {
            let service = self.service(config, replies, true, &["status"]);
            if let Ok(listening) = service.listen(&self.services).await {
                let tell = async |_, _| Ok(json!({"ok": true, "status": board.describe()}));
                listening.serve(tell).await;
            }
            std::future::pending().await
        };
        tokio::select! {
            () = turn => {}
            () = served => {}
        }
    }

    /// Subscribes to the requests for a node that has its tenants from the store.
    ///
    /// # Errors
    /// If the connection is closed.
    pub(crate) async fn listen_for_tenants(
        &self,
        config: &Config,
    ) -> anyhow::Result<SubscribedService> {
        let subjects = Subjects::new(None);
        let replies = Arc::new(ReplyGuard::new(config, &subjects));
        // This service belongs to no tenant, so its metadata has no prefix.
        let metadata = json!({"node": config.node.name, "tenants": "store"});
        let metadata = metadata.as_object().cloned().unwrap_or_default();
        let (client, root) = (self.client.clone(), subjects.of(ADMIN));
        Service::new(client, replies, metadata, root, &["tenants"])
            .listen(&self.services)
            .await
    }

    fn service(
        &self,
        config: &Config,
        replies: Arc<ReplyGuard>,
        waits: bool,
        endpoints: &[&'static str],
    ) -> Service {
        let subjects = Subjects::new(config.tenant.prefix.as_deref());
        let metadata = json!({
            "node": config.node.name,
            "prefix": config.tenant.prefix.as_deref().unwrap_or_default(),
            "source": if config.follows_store() { "store" } else { "folder" },
            "waits": if waits { "true" } else { "false" },
        });
        let metadata = metadata.as_object().cloned().unwrap_or_default();
        let root = subjects.of(ADMIN);
        Service::new(self.client.clone(), replies, metadata, root, endpoints)
    }

    /// Answers commands for as long as the node runs.
    pub(crate) async fn serve(
        self,
        listening: SubscribedService,
        board: Arc<StatusBoard>,
        validator: Arc<RevisionValidator>,
    ) {
        let (board, validator) = (&board, &*validator);
        let served =
            listening.serve(|endpoint, request| answer(board, validator, endpoint, request));
        served.await;
        // The node ends.
        std::future::pending().await
    }
}

async fn answer(
    board: &StatusBoard,
    validator: &RevisionValidator,
    endpoint: &str,
    request: Message,
) -> Answer {
    match endpoint {
        // The revision may be as long as a message, so it is sent alone.
        "status" if *request.payload == *micro::REVISION => {
            Ok(json!({"ok": true, "revision": board.revision().as_deref()}))
        }
        "status" => Ok(json!({"ok": true, "status": board.describe()})),
        "follow" => plugin_log::answer(&validator.tenant(), &request.payload),
        // An empty request asks for the reports of the shadow.
        "shadow" if request.payload.is_empty() => {
            Ok(json!({"ok": true, "reports": board.reports()}))
        }
        "shadow" if *request.payload == *micro::END => {
            validator.end_shadow().await.map(|()| json!({"ok": true}))
        }
        "shadow" => validator
            .shadow(&request.payload)
            .await
            .map(|()| json!({"ok": true})),
        _ => validator
            .validate(&request.payload)
            .await
            .map(|()| json!({"ok": true})),
    }
}
