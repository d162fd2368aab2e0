//! `[telemetry]`: metrics and traces for an OpenTelemetry collector, over OTLP.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use percent_encoding::percent_decode_str;
use url::Url;

use super::checks::{filled, within};
use super::nats::Secret;
use super::problem::InvalidValue;
use super::section::Section;
use crate::regular_file::{self, Limit};

/// The longest value of a header, in bytes.
const VALUE_BYTES_MAX: usize = 8_192;

/// The longest file of headers, in bytes.
const FILE_BYTES_MAX: u64 = 65_536;

/// The key that names the file of headers, for errors.
const FILE: &str = "`headers_file` in [telemetry]";

/// How headers are written.
const FORM: &str = "write `name=value`, separated by commas or line breaks, with `%2C` for a \
                    comma in a value";

/// `[telemetry]`: metrics and traces for an OpenTelemetry collector, over OTLP.
#[derive(Clone, Debug, PartialEq)]
pub struct Telemetry {
    /// The collector's address, to which `/v1/metrics` and `/v1/traces` are added. `None`: nothing
    /// is sent.
    pub otlp: Option<Url>,
    /// How often metrics and traces are sent, in milliseconds.
    pub interval_ms: u64,
    /// The share of messages for which a trace is made. 0: no traces.
    pub sample: f64,
    /// The headers of each request.
    headers: Option<Secret>,
    /// A file with more headers, which is read for each request.
    headers_file: Option<PathBuf>,
}

impl Telemetry {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let otlp = section.get("otlp", |text: String| match text.as_str() {
            "" => Ok(None),
            text => endpoint(text).map(Some),
        });
        let headers = section.get("headers", |text: String| match parse(&text) {
            Ok(_) => Ok(text),
            Err(what) => Err(InvalidValue::new(what, FORM)),
        });
        let headers_file = section.get("headers_file", filled);
        Self {
            otlp: otlp.flatten(),
            interval_ms: section
                .get("interval_ms", within(100..=3_600_000))
                .unwrap_or(10_000),
            sample: section.get("sample", within(0.0..=1.0)).unwrap_or(0.0),
            headers: headers.map(Secret),
            headers_file: headers_file.map(|path| section.resolve(&path)),
        }
    }

    /// Whether `headers` is set, and the path in `headers_file`.
    pub(super) fn has_headers(&self) -> (bool, Option<&PathBuf>) {
        (self.headers.is_some(), self.headers_file.as_ref())
    }

    /// The headers of a request, as they are now: the file may have changed.
    ///
    /// # Errors
    /// If the file can't be read, or doesn't hold headers.
    pub fn headers(&self) -> anyhow::Result<Vec<(String, String)>> {
        let mut headers = Vec::new();
        if let Some(written) = &self.headers {
            // They were checked when they were read.
            headers.extend(parse(written.reveal()).unwrap_or_default());
        }
        if let Some(file) = &self.headers_file {
            let limit = Limit {
                bytes_max: FILE_BYTES_MAX,
                key: "nothing",
            };
            let bytes = regular_file::read(file, Some(limit)).context(FILE)?;
            let text = str::from_utf8(&bytes).map_err(|_| "is not UTF-8");
            let more = text.and_then(parse);
            let more = more.map_err(|what| anyhow!("{FILE} {what}; {FORM}"))?;
            headers.extend(more);
        }
        Ok(headers)
    }
}

/// A collector's address.
fn endpoint(text: &str) -> Result<Url, InvalidValue> {
    let form = "write an address, such as `http://127.0.0.1:4318`, or an empty string to send \
                nothing";
    // The text may hold a password, which must not be shown.
    let Ok(url) = Url::parse(text) else {
        return Err(InvalidValue::new("is no address", form));
    };
    if !url.username().is_empty() || url.password().is_some() {
        let fix = "take it out, and give an `authorization` header in `headers_file`";
        return Err(InvalidValue::new("has a login in it", fix));
    }
    if !["http", "https"].contains(&url.scheme()) || !url.has_host() {
        return Err(InvalidValue::new("is neither http:// nor https://", form));
    }
    if url.query().is_some() || url.fragment().is_some() {
        let fix = "end it before the `?` or `#`: `/v1/metrics` and `/v1/traces` are added to it";
        return Err(InvalidValue::new("has a query or a fragment", fix));
    }
    Ok(url)
}

/// Reads headers in the form of OTEL_EXPORTER_OTLP_HEADERS, and in a file also one per line. An
/// error repeats nothing of them, since they are secret.
fn parse(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let items = text.split([',', '\n', '\r']).map(str::trim);
    let headers = items.filter(|item| !item.is_empty()).map(|item| {
        let (name, value) = item.split_once('=').ok_or("has a header without a `=`")?;
        let (name, value) = (name.trim_end(), value.trim_start());
        let in_name = |it: char| it.is_ascii_alphanumeric() || "-_.".contains(it);
        if name.is_empty() || !name.chars().all(in_name) {
            return Err("has a header whose name is none");
        }
        let value = percent_decode_str(value).decode_utf8();
        let value = value.map_err(|_| "has a header whose value is not UTF-8")?;
        let is_printable = |it: char| it.is_ascii_graphic() || it == ' ';
        if value.len() > VALUE_BYTES_MAX || !value.chars().all(is_printable) {
            return Err("has a header whose value is too long, or not printable ASCII");
        }
        Ok((name.to_ascii_lowercase(), value.into_owned()))
    });
    headers.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_as_opentelemetry_writes_them() {
        let read = parse("Authorization=Bearer%20a%2Cb==, x-tenant = acme ,\nb=2\n").unwrap();
        let expected = [
            ("authorization", "Bearer a,b=="),
            ("x-tenant", "acme"),
            ("b", "2"),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(read, expected);
        for wrong in [
            "s3cret",
            "=s3cret",
            "a b=s3cret",
            "a=s3cret%0Ax",
            "a=s3crét",
        ] {
            assert!(!parse(wrong).unwrap_err().contains("s3cr"), "{wrong}");
        }
    }
}
