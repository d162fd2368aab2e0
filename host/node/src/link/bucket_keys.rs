//! Writes any key of a key-value bucket, with a compare-and-swap over the whole bucket. The
//! client's own API compares one key's revision only, and rejects keys that it considers invalid.

use async_nats::header::{NATS_EXPECTED_LAST_SEQUENCE, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE};
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishError;
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;

/// The bucket's state as it was read. A write fails if it has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// The sequence number of the last write to the bucket, to any key.
    pub(crate) last: u64,
    /// The sequence number of the last write to the key; 0 if there was none.
    pub(crate) of_key: u64,
}

/// Writes a value to a subject of a bucket, or deletes it if `value` is `None`, if the bucket is as
/// expected. Returns the sequence number of the value or the delete marker.
///
/// # Errors
/// If something was written since `expected` was read, or if the bucket can't be written.
pub(crate) async fn write(
    context: &Context,
    subject: String,
    value: Option<Bytes>,
    expected: Expected,
) -> Result<u64, PublishError> {
    let mut headers = HeaderMap::new();
    if value.is_none() {
        headers.insert("KV-Operation", "DEL");
    }
    for (name, place) in [
        (NATS_EXPECTED_LAST_SEQUENCE, expected.last),
        (NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.of_key),
    ] {
        headers.insert(name, HeaderValue::from(place));
    }
    let sent = context.publish_with_headers(subject, headers, value.unwrap_or_default());
    Ok(sent.await?.await?.sequence)
}
