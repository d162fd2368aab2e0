//! Listens to the messages that come in on a live system, for a recording, and notes when some may
//! be missing.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use async_nats::{Client, Event, Request, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt as _;
use presence_config::subjects::SEQ;
use presence_config::{self as config, Config};
use presence_core::directory::Directory;
use presence_core::names::Names;

use crate::directory::kv;
use crate::link::broker::BrokerAccess;

/// How long the probe request waits for a reply. After it, the broker has processed the
/// subscription.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A message that came in.
pub struct TappedMessage {
    /// Its whole subject.
    pub subject: String,
    /// Its body.
    pub payload: Bytes,
    /// Whether a node has published it, and not a client.
    pub is_nodes: bool,
}

/// A connection that receives incoming messages.
pub struct Tap {
    client: Client,
    messages: Subscriber,
    events: Arc<ConnectionEvents>,
}

/// Events that the client reports of the connection.
#[derive(Debug, Default)]
struct ConnectionEvents {
    losses: AtomicU64,
    dropped: AtomicBool,
    /// The broker's first error messages: they may say that the subscription is forbidden.
    errors: Mutex<Vec<String>>,
}

impl Tap {
    /// Connects under a name, and subscribes to a subject.
    ///
    /// # Errors
    /// If NATS can't be reached, or doesn't permit the subscription.
    pub async fn open(config: &Config, name: &str, subject: &str) -> anyhow::Result<Self> {
        let events = Arc::new(ConnectionEvents::default());
        let hear = Arc::clone(&events);
        let access = BrokerAccess::new(config);
        let options = access.options()?.name(name).event_callback(move |event| {
            hear.take(&event);
            std::future::ready(())
        });
        let client = access.connect(options).await?;
        let messages = client.subscribe(subject.to_owned()).await?;
        // The result doesn't matter: when this returns, the broker has processed the subscription.
        // A user who may not send requests waits for the timeout.
        let probe = Request::new().timeout(Some(TIMEOUT));
        let _ = client.send_request(client.new_inbox(), probe).await;
        if let Some(error) = events.forbids(subject) {
            bail!("can't listen to {subject}: NATS says: {error}");
        }
        Ok(Self {
            client,
            messages,
            events,
        })
    }

    /// Waits for the next message. `None`: the connection is closed.
    pub async fn next(&mut self) -> Option<TappedMessage> {
        let received = self.messages.next().await?;
        let headers = received.headers.as_ref();
        Some(TappedMessage {
            subject: received.subject.to_string(),
            payload: received.payload.clone(),
            is_nodes: headers.is_some_and(|headers| headers.get(SEQ).is_some()),
        })
    }

    /// The directory as it is now.
    ///
    /// # Errors
    /// If it can't be read, or if its source is a service (`request`).
    pub async fn directory(&self, config: &Config, names: &Names) -> anyhow::Result<Directory> {
        match &config.directory {
            config::Directory::File { path, is_named } => {
                presence_config::directory::load(path, *is_named, names)
            }
            config::Directory::Kv { bucket } => kv::read(self.client.clone(), bucket, names).await,
            config::Directory::Request(_) => bail!(
                "a directory that is asked of a service can't be written down as a whole: leave out --directory, and give the replay a file of your own"
            ),
        }
    }

    /// Describes what may be missing from the received messages.
    pub fn gaps(&self) -> impl Iterator<Item = String> {
        let losses = self.events.losses.load(Ordering::Relaxed);
        let lost = (losses > 0).then(|| {
            format!("connections to NATS lost: {losses}; what came in meanwhile is missing")
        });
        let dropped = self.events.dropped.load(Ordering::Relaxed);
        let dropped = dropped.then(|| {
            "messages came faster than they could be written, and some are missing".into()
        });
        lost.into_iter().chain(dropped)
    }
}

impl ConnectionEvents {
    fn take(&self, event: &Event) {
        match event {
            Event::Disconnected => drop(self.losses.fetch_add(1, Ordering::Relaxed)),
            Event::SlowConsumer(_) => self.dropped.store(true, Ordering::Relaxed),
            Event::ServerError(error) => {
                let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
                // Only the errors about the subscription are read, and they come first.
                if errors.len() < 16 {
                    errors.push(error.to_string());
                }
            }
            _ => {}
        }
    }

    /// The broker's error about the subscription to `subject`, if it reported one.
    fn forbids(&self, subject: &str) -> Option<String> {
        let errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
        let subject = subject.to_lowercase();
        let is_about = |error: &&String| {
            let error = error.to_lowercase();
            error.contains("subscription") && error.contains(&subject)
        };
        errors.iter().find(is_about).cloned()
    }
}
