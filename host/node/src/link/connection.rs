//! The node's connection to the broker, to subscribe and to publish. It hides the client's own
//! types, which only `link` and `directory` use.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use async_nats::{Client, HeaderMap, HeaderName, Message, Statistics, Subject};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use presence_config::subjects::{CUT, SEQ, STORED};
use presence_config::{BODY_BYTES_MAX, HEADER_BYTES_MAX};

use crate::link::broker::BrokerHealth;
use crate::link::drops::{SubscriptionKind, WatchedSubscriber};
use crate::link::shared_input::Receipt;

/// Headers up to this length are passed on with a message of a stream, in bytes.
const KEPT_BYTES_MAX: usize = 128;

/// To which length an over-long message of a stream is cut, in bytes.
const CUT_BYTES: usize = 64 << 10;

/// The log target of the part of the broker's client that connects.
pub(crate) const CONNECTOR_LOG: &str = "async_nats::connector";

/// A connection. Cloning it shares it.
#[derive(Clone)]
pub(crate) struct Connection {
    client: Client,
    statistics: Arc<Statistics>,
}

/// The messages that arrive on a subject, in the broker's order.
pub(crate) struct Subscription(WatchedSubscriber);

/// A received message.
pub(crate) struct Incoming(Message);

/// A subject to which messages are passed on, converted once to the client's type.
#[derive(Clone)]
pub(crate) struct Destination(Subject);

impl From<String> for Destination {
    fn from(subject: String) -> Self {
        Self(subject.into())
    }
}

impl Connection {
    pub(super) fn new(client: Client) -> Self {
        Self {
            statistics: client.statistics(),
            client,
        }
    }

    /// The client itself. Only `link` and `directory` may use it.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    /// The longest body that the broker takes, in bytes. Before the broker has said so, the node's
    /// own limit.
    pub(crate) fn body_bytes_max(&self) -> usize {
        match self.client.server_info().max_payload {
            0 => BODY_BYTES_MAX,
            bytes => bytes.saturating_sub(HEADER_BYTES_MAX),
        }
    }

    /// Subscribes. Messages that the client drops are counted by `kind`.
    ///
    /// # Errors
    /// If the connection is closed, or the subject is invalid.
    pub(crate) async fn subscribe(
        &self,
        subject: String,
        kind: SubscriptionKind,
        broker: &BrokerHealth,
    ) -> anyhow::Result<Subscription> {
        let messages = self.client.subscribe(subject.clone()).await?;
        Ok(Subscription(broker.drops.watch(messages, kind, &subject)))
    }

    /// Subscribes as a member of a queue group: each message goes to one member.
    ///
    /// # Errors
    /// As [`Self::subscribe`].
    pub(crate) async fn subscribe_in(
        &self,
        (subject, group): (String, &str),
        kind: SubscriptionKind,
        broker: &BrokerHealth,
    ) -> anyhow::Result<Subscription> {
        let client = &self.client;
        let messages = client.queue_subscribe(subject.clone(), group.to_owned());
        let messages = messages.await?;
        Ok(Subscription(broker.drops.watch(messages, kind, &subject)))
    }

    /// Passes a message on to another subject, unchanged.
    ///
    /// # Errors
    /// If the connection is closed, or the message is too long.
    pub(crate) async fn pass_on(
        &self,
        Destination(subject): Destination,
        message: Incoming,
    ) -> anyhow::Result<()> {
        let Message {
            reply,
            payload,
            headers,
            ..
        } = message.0;
        let client = &self.client;
        match (reply, headers) {
            (None, None) => client.publish(subject, payload).await?,
            (Some(reply), None) => client.publish_with_reply(subject, reply, payload).await?,
            (None, Some(headers)) => {
                client
                    .publish_with_headers(subject, headers, payload)
                    .await?;
            }
            (Some(reply), Some(headers)) => {
                client
                    .publish_with_reply_and_headers(subject, reply, headers, payload)
                    .await?;
            }
        }
        Ok(())
    }

    /// Publishes a body to a destination.
    ///
    /// # Errors
    /// As [`Self::pass_on`].
    pub(crate) async fn publish_to(
        &self,
        Destination(subject): Destination,
        body: Bytes,
    ) -> anyhow::Result<()> {
        Ok(self.client.publish(subject, body).await?)
    }

    /// Acknowledges to JetStream that a message has been handled.
    ///
    /// # Errors
    /// If the connection is closed.
    pub(crate) async fn acknowledge(&self, receipt: &Receipt) -> anyhow::Result<()> {
        let body = Bytes::from_static(b"+ACK");
        Ok(self.client.publish(receipt.subject(), body).await?)
    }

    /// Publishes a message, once the client has room for it.
    ///
    /// # Errors
    /// If the connection is closed, or the message is too long.
    pub(crate) async fn publish(&self, subject: String, body: Vec<u8>) -> anyhow::Result<()> {
        Ok(self.client.publish(subject, body.into()).await?)
    }

    /// Waits until the client has written all that it was given.
    ///
    /// # Errors
    /// If the connection is closed.
    pub(crate) async fn flush(&self) -> anyhow::Result<()> {
        Ok(self.client.flush().await?)
    }

    /// How many messages the client has received, on all subscriptions.
    pub(crate) fn received(&self) -> u64 {
        self.statistics.in_messages.load(Ordering::Relaxed)
    }

    /// How often the client has connected.
    pub(super) fn connects(&self) -> u64 {
        self.statistics.connects.load(Ordering::Acquire)
    }
}

impl Subscription {
    /// Ends the subscription after the messages that are on their way have been read. Returns
    /// whether the connection still exists.
    pub(crate) async fn drain(&mut self) -> bool {
        self.0.drain().await.is_ok()
    }
}

impl Stream for Subscription {
    type Item = Incoming;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Incoming>> {
        self.0
            .poll_next_unpin(context)
            .map(|message| message.map(Incoming))
    }
}

impl Incoming {
    /// Wraps a message that a stream has stored.
    pub(super) fn stored(message: Message) -> Self {
        Self(message)
    }

    pub(crate) fn subject(&self) -> &str {
        &self.0.subject
    }

    pub(crate) fn payload(&self) -> &Bytes {
        &self.0.payload
    }

    /// The reply subject, if the sender wants an answer.
    pub(crate) fn reply(&self) -> Option<&str> {
        self.0.reply.as_deref()
    }

    /// Whether a node has published it.
    pub(crate) fn is_from_node(&self) -> bool {
        let headers = self.0.headers.as_ref();
        headers.is_some_and(|headers| headers.get(SEQ).is_some())
    }

    /// The value of a header, if the header occurs exactly once. Upper and lower case of the name
    /// don't matter.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let headers = self.0.headers.as_ref()?.iter();
        let named = headers.filter(|(it, _)| {
            let it: &str = it.as_ref();
            it.eq_ignore_ascii_case(name)
        });
        let mut values = named.flat_map(|(_, values)| values);
        let value = values.next()?;
        values.next().is_none().then_some(value.as_str())
    }

    /// Whether it has any headers.
    pub(crate) fn has_headers(&self) -> bool {
        self.0.headers.is_some()
    }

    /// The same message with its headers replaced for these names: those with a value are set, the
    /// others are removed, whatever the sender wrote.
    pub(crate) fn marked(mut self, marks: &[(&'static str, Option<String>)]) -> Self {
        let is_mark = |it: &HeaderName| {
            let it: &str = it.as_ref();
            marks.iter().any(|(name, _)| it.eq_ignore_ascii_case(name))
        };
        let headers = self.0.headers.take().unwrap_or_default();
        let mut kept = HeaderMap::new();
        for (name, values) in headers.iter().filter(|(it, _)| !is_mark(it)) {
            for value in values {
                kept.append(name.clone(), value.clone());
            }
        }
        for (name, value) in marks {
            if let Some(value) = value {
                kept.insert(*name, value.as_str());
            }
        }
        self.0.headers = (!kept.is_empty()).then_some(kept);
        self
    }

    /// The same message as a router passes it on to a shard: with this receipt, the sender's header
    /// `keep`, and no others. A body longer than `bytes_max` is cut.
    pub(crate) fn with_receipt(mut self, receipt: &str, keep: &str, bytes_max: usize) -> Self {
        let mut headers = HeaderMap::new();
        if let Some(kept) = self.header(keep).filter(|it| it.len() <= KEPT_BYTES_MAX) {
            headers.insert(keep, kept);
        }
        headers.insert(STORED, receipt);
        let bytes = self.0.payload.len();
        if bytes > bytes_max {
            headers.insert(CUT, bytes.to_string());
            self.0.payload.truncate(bytes_max.min(CUT_BYTES));
        }
        self.0.headers = Some(headers);
        self.0.reply = None;
        self
    }

    /// The size of the message with its subject and its headers, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.0.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_what_it_is_made_whatever_the_sender_wrote() {
        let mut headers = HeaderMap::new();
        headers.append("presence-excess", "1");
        headers.append("Presence-Excess", "0");
        headers.append("Presence-Delayed", "9");
        headers.append("traceparent", "00-1");
        let message = |headers: &HeaderMap| {
            Incoming(Message {
                subject: "presence.connect".into(),
                reply: None,
                payload: Bytes::new(),
                headers: Some(headers.clone()),
                status: None,
                description: None,
                length: 0,
            })
        };
        for is_so in [true, false] {
            let marks = [
                ("Presence-Excess", is_so.then(|| "1".into())),
                ("Presence-Delayed", is_so.then(|| "2500".into())),
            ];
            let marked = message(&headers).marked(&marks);
            let mark = marked.header("Presence-Excess");
            assert_eq!(mark, is_so.then_some("1"));
            let mark = marked.header("Presence-Delayed");
            assert_eq!(mark, is_so.then_some("2500"));
            assert_eq!(marked.header("traceparent"), Some("00-1"));
        }
    }
}
