//! Keys of key-value buckets, whatever they are, written by compare-and-swap over the whole bucket. The
//! client's own way goes by one key, and takes none that it wouldn't write.

use async_nats::header::{NATS_EXPECTED_LAST_SEQUENCE, NATS_EXPECTED_LAST_SUBJECT_SEQUENCE};
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishError;
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;

/// What a bucket is like if nobody has written to it meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// The place of what was last written to the bucket, whatever its key.
    pub(crate) last: u64,
    /// The place of what was last written to the key; 0 if nothing was.
    pub(crate) of_key: u64,
}

/// Writes what a subject of a bucket has, or deletes it, if the bucket is as expected. Returns the
/// place of the new value, or of the marker that says that there is none.
///
/// # Errors
/// If something was written meanwhile, and if the bucket can't be written.
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
