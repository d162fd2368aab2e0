//! Conversion of headers to the client's type.

use async_nats::{HeaderMap, HeaderName};

/// Makes a header map from names and values.
pub(crate) fn map(headers: impl Iterator<Item = (&'static str, String)>) -> HeaderMap {
    let headers = headers.map(|(name, value)| (HeaderName::from_static(name), value.into()));
    headers.collect()
}
