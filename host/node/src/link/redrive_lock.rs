//! Makes sure that only one command redrives a stream's dead letters at a time. Two at once would
//! publish a letter's message twice, and a message that is refused twice makes two letters. A
//! consumer of the stream is the lock: the server creates only one with this name, and removes it
//! when it isn't used for a while.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::ConsumerCreateStrictErrorKind;
use bytes::Bytes;
use tokio::time::sleep;

use super::dlq_stream::DlqStream;
use super::request;

/// The consumer's name.
const NAME: &str = "presence-redrive";

/// How long the lock lasts without being renewed, and how often it is renewed.
const LASTS: Duration = Duration::from_secs(15);
const RENEW: Duration = Duration::from_secs(3);

/// How long the server has to answer.
const ANSWER: Duration = Duration::from_secs(5);

/// The lock: the right to redrive the letters of a stream, for as long as it is renewed.
pub struct RedriveLock<'a>(&'a DlqStream);

impl<'a> RedriveLock<'a> {
    /// Takes the lock. `None` if somebody else holds it.
    ///
    /// # Errors
    /// If the server refuses.
    pub async fn acquire(letters: &'a DlqStream) -> anyhow::Result<Option<Self>> {
        let stream = letters.access.context.get_stream_no_info(letters.name());
        let stream = stream.await?;
        let made = stream.create_consumer_strict(pull::Config {
            name: Some(NAME.into()),
            // A unique description makes this configuration differ from that of any other attempt:
            // the server creates a consumer again only if the configuration is the same.
            description: Some(letters.access.client.new_inbox()),
            deliver_policy: DeliverPolicy::New,
            ack_policy: AckPolicy::None,
            headers_only: true,
            inactive_threshold: LASTS,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        });
        match made.await {
            Ok(_) => Ok(Some(Self(letters))),
            Err(error) if error.kind() == ConsumerCreateStrictErrorKind::AlreadyExists => Ok(None),
            Err(error) => {
                let error = letters.access.with_broker_error(error.into());
                Err(error.context("can't make sure that no other redrive runs"))
            }
        }
    }

    /// Renews the lock.
    ///
    /// # Errors
    /// If the lock has ended, or the server doesn't say.
    pub async fn renew(&self) -> anyhow::Result<()> {
        let access = &self.0.access;
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{}.{NAME}", self.0.name());
        let body = Bytes::from_static(br#"{"batch": 1, "no_wait": true}"#);
        let asked = request::ask(&access.client, &subject, body, ANSWER, |_| Some(()));
        let asked = asked
            .await
            .map_err(|error| access.with_broker_error(error.into()));
        asked.context("another redrive may run now, and this one stops: the rest of the letters stay as they are")
    }

    /// Renews the lock until that fails, and returns the error.
    pub async fn keep(&self) -> anyhow::Error {
        loop {
            sleep(RENEW).await;
            if let Err(error) = self.renew().await {
                return error;
            }
        }
    }

    /// Releases the lock.
    pub async fn end(self) {
        // If this fails, the server removes the consumer after a while.
        if let Ok(stream) = self
            .0
            .access
            .context
            .get_stream_no_info(self.0.name())
            .await
        {
            let _ = stream.delete_consumer(NAME).await;
        }
    }
}
