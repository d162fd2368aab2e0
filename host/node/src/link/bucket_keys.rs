//! Keys of key-value buckets, whatever they are: the client takes none that it wouldn't write.

use async_nats::header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishError;
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;

/// Deletes what a subject of a bucket has, if it is still what was written at this place. Returns
/// the place of the marker that says so.
///
/// # Errors
/// If something else is there, and if the bucket can't be written.
pub(crate) async fn delete(
    context: &Context,
    subject: String,
    place: u64,
) -> Result<u64, PublishError> {
    let mut headers = HeaderMap::new();
    headers.insert("KV-Operation", "DEL");
    headers.insert(
        NATS_EXPECTED_LAST_SUBJECT_SEQUENCE,
        HeaderValue::from(place),
    );
    let sent = context.publish_with_headers(subject, headers, Bytes::new());
    Ok(sent.await?.await?.sequence)
}
