//! The [`Transport`] of a thread's outbox: hands journal entries to the broker's client.

use async_nats::connection::State;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::link::connection::Connection;
use crate::link::journal::{DeliveryMode, JournalEntry, SequenceNumber};
use crate::link::wire;
use crate::pool::Transport;

/// The broker's client, as outboxes use it.
#[derive(Clone)]
pub(crate) struct Publisher(Connection);

impl Publisher {
    pub(crate) fn new(connection: Connection) -> Self {
        Self(connection)
    }

    async fn publish(&self, entry: &JournalEntry) -> anyhow::Result<()> {
        let client = self.0.client();
        let (subject, body) = (entry.subject.clone(), entry.body.clone());
        let sent = match &entry.delivery {
            DeliveryMode::Numbered(SequenceNumber {
                source,
                renewed,
                seq,
            }) => {
                let headers = wire::map(source.headers(&subject, *renewed, *seq));
                client.publish_with_headers(subject, headers, body).await
            }
            DeliveryMode::AtMostOnce | DeliveryMode::Unnumbered => {
                client.publish(subject, body).await
            }
        };
        Ok(sent?)
    }
}

impl Transport for Publisher {
    fn link(&self) -> u64 {
        self.0.connects()
    }

    fn is_connected(&self) -> bool {
        self.0.client().connection_state() == State::Connected
    }

    fn try_send(&self, entry: &JournalEntry) -> Option<anyhow::Result<()>> {
        // An entry for which the client has no room now has not been handed over. Dropping the
        // future makes sure that it never is.
        self.publish(entry).now_or_never()
    }

    fn send(&self, entry: JournalEntry) -> BoxFuture<'static, anyhow::Result<()>> {
        let publisher = self.clone();
        Box::pin(async move { publisher.publish(&entry).await })
    }
}
