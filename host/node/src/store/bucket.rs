//! Reads the messages of a bucket's stream.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{DeliverPolicy, pull};
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use tokio::time::timeout;

/// How long the server may take to send a message that it has.
const READ: Duration = Duration::from_secs(10);

/// A message of a stream.
pub(super) struct Message {
    /// Its sequence number in the stream.
    pub(super) place: u64,
    pub(super) subject: String,
    pub(super) payload: Bytes,
}

/// The messages that a stream now has on subjects that match `filter`, in order, from the sequence
/// number `from` on.
///
/// # Errors
/// If they can't be read, or have more than `bytes_max` bytes in all.
pub(super) async fn read_all(
    stream: &Stream,
    filter: String,
    from: u64,
    bytes_max: u64,
) -> anyhow::Result<Vec<Message>> {
    let deliver_policy = match from {
        0 | 1 => DeliverPolicy::All,
        start_sequence => DeliverPolicy::ByStartSequence { start_sequence },
    };
    let consumer = stream.create_consumer(pull::OrderedConfig {
        filter_subject: filter,
        deliver_policy,
        ..pull::OrderedConfig::default()
    });
    let consumer = consumer.await.context("can't read the stream")?;
    let name = consumer.cached_info().name.clone();
    let read = async {
        let mut all = Vec::new();
        if consumer.cached_info().num_pending == 0 {
            return Ok(all);
        }
        let mut bytes = 0;
        let mut messages = consumer.messages().await.context("can't read the stream")?;
        loop {
            let next = timeout(READ, messages.try_next()).await;
            let Some(message) = next.context("the stream sends nothing")?? else {
                bail!("the stream has ended");
            };
            let info = message.info();
            let info = info.map_err(|error| anyhow!("can't read the stream: {error}"))?;
            let (pending, place) = (info.pending, info.stream_sequence);
            bytes += message.payload.len() as u64;
            ensure!(bytes <= bytes_max, "it is longer than {bytes_max} bytes");
            all.push(Message {
                place,
                subject: message.subject.to_string(),
                payload: message.payload.clone(),
            });
            if pending == 0 {
                return Ok(all);
            }
        }
    };
    let read = read.await;
    // Otherwise the server would remove the consumer only after a while.
    let _ = stream.delete_consumer(&name).await;
    read
}

/// Whether an error means that there is no such message.
pub(super) fn is_not_found(kind: &LastRawMessageErrorKind) -> bool {
    match kind {
        LastRawMessageErrorKind::NoMessageFound => true,
        LastRawMessageErrorKind::JetStream(error) => {
            error.error_code() == ErrorCode::NO_MESSAGE_FOUND
        }
        _ => false,
    }
}
