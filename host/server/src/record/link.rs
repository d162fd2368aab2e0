//! A recording's connection: what comes in, and what may be missing from it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use async_nats::{Client, Event, Request, Subscriber};

use crate::broker::Access;
use crate::config::Config;

/// How long the broker has to answer, so that it is known to have heard all before.
const TIMEOUT: Duration = Duration::from_secs(1);

pub(super) struct Link {
    pub(super) client: Client,
    pub(super) messages: Subscriber,
    heard: Arc<Heard>,
}

/// What the client says of the connection.
#[derive(Debug, Default)]
struct Heard {
    losses: AtomicU64,
    dropped: AtomicBool,
    /// The broker's complaints, until it has been subscribed.
    errors: Mutex<Vec<String>>,
}

impl Link {
    /// Connects, and subscribes to a subject.
    ///
    /// # Errors
    /// If NATS can't be reached, or doesn't permit that.
    pub(super) async fn open(config: &Config, subject: &str) -> anyhow::Result<Self> {
        let heard = Arc::new(Heard::default());
        let hear = Arc::clone(&heard);
        let access = Access::new(config);
        let options = access
            .options()?
            .name("presence record")
            .event_callback(move |event| {
                hear.take(&event);
                std::future::ready(())
            });
        let client = access.connect(options).await?;
        let messages = client.subscribe(subject.to_owned()).await?;
        // Whatever comes of it, what was said before has been heard then. Where this
        // user may not ask, the time passes.
        let probe = Request::new().timeout(Some(TIMEOUT));
        let _ = client.send_request(client.new_inbox(), probe).await;
        if let Some(error) = heard.forbids(subject) {
            bail!("can't listen to {subject}: NATS says: {error}");
        }
        Ok(Self {
            client,
            messages,
            heard,
        })
    }

    /// What may be missing from what came in.
    pub(super) fn gaps(&self) -> impl Iterator<Item = String> {
        let losses = self.heard.losses.load(Ordering::Relaxed);
        let lost = (losses > 0).then(|| {
            format!("connections to NATS lost: {losses}; what came in meanwhile is missing")
        });
        let dropped = self.heard.dropped.load(Ordering::Relaxed);
        let dropped = dropped.then(|| {
            "messages came faster than they could be written, and some are missing".into()
        });
        lost.into_iter().chain(dropped)
    }
}

impl Heard {
    fn take(&self, event: &Event) {
        match event {
            Event::Disconnected => drop(self.losses.fetch_add(1, Ordering::Relaxed)),
            Event::SlowConsumer(_) => self.dropped.store(true, Ordering::Relaxed),
            Event::ServerError(error) => {
                let mut errors = self.errors.lock().unwrap_or_else(PoisonError::into_inner);
                // Nobody reads more of them.
                if errors.len() < 16 {
                    errors.push(error.to_string());
                }
            }
            _ => {}
        }
    }

    /// What the broker says against a subscription.
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
