//! Headers as the client takes them.

use async_nats::{HeaderMap, HeaderName};

/// Makes headers of names and values.
pub(crate) fn map(headers: impl Iterator<Item = (&'static str, String)>) -> HeaderMap {
    let headers = headers.map(|(name, value)| (HeaderName::from_static(name), value.into()));
    headers.collect()
}
