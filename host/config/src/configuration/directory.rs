//! `[directory]`: where contacts, groups and blocks come from.

use std::path::PathBuf;

use super::checks::{in_token, token, within};
use super::problem::InvalidValue;
use super::section::Section;

/// `[directory]`: where contacts, groups and blocks come from. The keys of a
/// source that isn't chosen are checked, and then of no effect.
#[derive(Clone, Debug, PartialEq)]
pub enum Directory {
    /// `source = "file"`: a JSON file, which is watched.
    File {
        /// The file.
        path: PathBuf,
        /// Whether the configuration names the file. The default file may be missing, and then
        /// there is no directory.
        is_named: bool,
    },
    /// `source = "kv"`: a NATS KV bucket, which is watched.
    Kv {
        /// The bucket's name.
        bucket: String,
    },
    /// `source = "request"`: a service that is asked.
    Request(Request),
}

/// `[directory.request]`: how the service is asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// How the subjects of questions begin, after the tenant's prefix.
    pub subject: String,
    /// How long a request waits for its answer, in milliseconds.
    pub timeout_ms: u64,
    /// How long an answer is valid, in milliseconds.
    pub ttl_ms: u64,
    /// How many requests may be in progress.
    pub concurrency: usize,
    /// How long an event waits for answers that enrichers or the redactor ask for,
    /// in milliseconds.
    pub wait_ms: u64,
}

/// The value of `source`.
enum Source {
    File,
    Kv,
    Request,
}

/// The longest time that a request or an event may wait, in milliseconds.
const MINUTE_MS: u64 = 60_000;

/// The longest time for which an answer may be valid: a week, in milliseconds.
const WEEK_MS: u64 = 7 * 24 * 60 * MINUTE_MS;

/// The longest subject that questions may be put under, in bytes: it leaves room
/// for the longest id.
const SUBJECT_BYTES_MAX: usize = 128;

impl Request {
    fn read(section: &mut Section<'_, '_>) -> Self {
        Self {
            subject: section
                .get("subject", subject)
                .unwrap_or_else(|| "presence-directory".into()),
            timeout_ms: section
                .get("timeout_ms", within(1..=MINUTE_MS))
                .unwrap_or(1_000),
            ttl_ms: section
                .get("ttl_ms", within(1..=WEEK_MS))
                .unwrap_or(300_000),
            concurrency: section.get("concurrency", within(1..=10_000)).unwrap_or(64),
            wait_ms: section
                .get("wait_ms", within(0..=MINUTE_MS))
                .unwrap_or(2_000),
        }
    }
}

/// Checks a subject: tokens, but not those with which the subjects of input begin.
fn subject(text: String) -> Result<String, InvalidValue> {
    let is_token = |token: &str| !token.is_empty() && token.chars().all(in_token);
    if text.len() > SUBJECT_BYTES_MAX || !text.split('.').all(is_token) {
        let fix = format!(
            "use tokens of letters, digits, `_` and `-`, with dots between them, of at most \
             {SUBJECT_BYTES_MAX} bytes together"
        );
        return Err(InvalidValue::new(format!("is `{text}`"), fix));
    }
    if text.split('.').next() == Some("presence") {
        let fix = "begin with another token than `presence`, such as `presence-directory`";
        return Err(InvalidValue::new(
            format!("is `{text}`, where input is taken in"),
            fix,
        ));
    }
    Ok(text)
}

impl Directory {
    /// The source, in words.
    pub fn describe(&self) -> String {
        match self {
            Self::File { path, .. } => path.display().to_string(),
            Self::Kv { bucket } => format!("the bucket {bucket}"),
            Self::Request(request) => format!("the service on {}", request.subject),
        }
    }

    /// Whether one can replace the other while the node runs: only a file can replace a file.
    pub(super) fn can_replace(&self, other: &Self) -> bool {
        self == other || matches!((self, other), (Self::File { .. }, Self::File { .. }))
    }

    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let source = section.get("source", |text: String| match text.as_str() {
            "file" => Ok(Source::File),
            "kv" => Ok(Source::Kv),
            "request" => Ok(Source::Request),
            _ => Err(InvalidValue::new(
                format!("is `{text}`"),
                "write `file`, `kv` or `request`",
            )),
        });
        let path = section.path("path");
        let bucket = section.section("kv", |kv| kv.get("bucket", token));
        let request = section.section("request", Request::read);
        match source.unwrap_or(Source::File) {
            Source::File => Self::File {
                is_named: path.is_some(),
                path: path.unwrap_or_else(|| section.resolve("directory.json")),
            },
            Source::Kv => Self::Kv {
                bucket: bucket.unwrap_or_else(|| "presence-directory".into()),
            },
            Source::Request => Self::Request(request),
        }
    }
}
