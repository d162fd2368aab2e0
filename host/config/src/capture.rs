//! Recorded traffic: lines of JSON, one for each message, as `presence record` writes them and
//! `presence replay` reads them.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use presence_core::json::present;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::subjects::SEQ;

/// A message, and when it arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// When it arrived, in milliseconds since the Unix epoch.
    pub at: u64,
    /// The whole subject, with the tenant's prefix.
    pub subject: String,
    /// The body, unchanged.
    pub payload: Bytes,
    /// Whether a node published it, so that it is no input.
    pub is_from_node: bool,
}

#[derive(Deserialize)]
struct Line {
    at: Option<u64>,
    subject: String,
    #[serde(default, deserialize_with = "present")]
    data: Option<Box<RawValue>>,
    payload: Option<String>,
    encoding: Option<String>,
    headers: Option<Map<String, Value>>,
}

/// A line as it is written: with data, or with a payload and its encoding.
#[derive(Serialize)]
struct Written<'a> {
    at: u64,
    subject: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

impl Recorded {
    /// Reads a line. If it has no time, it gets `before`, the time of the message in the line
    /// before.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(line: &str, before: Option<u64>) -> anyhow::Result<Self> {
        ensure!(
            line.trim_start().starts_with('{'),
            "a recorded line is a JSON object with `subject` and `data`"
        );
        let line: Line = serde_json::from_str(line).context("not a recorded line")?;
        let payload = match (&line.data, &line.payload) {
            (Some(data), None) => Bytes::copy_from_slice(data.get().as_bytes()),
            (None, Some(text)) => match line.encoding.as_deref() {
                Some("base64") => STANDARD
                    .decode(text)
                    .context("`payload` is not base64")?
                    .into(),
                None | Some("utf8") => text.clone().into_bytes().into(),
                Some(other) => bail!("`encoding` must be utf8 or base64, not {other}"),
            },
            _ => bail!("a line has either `data` or `payload`"),
        };
        let stamp = || {
            serde_json::from_slice::<Value>(&payload)
                .ok()?
                .get("timestamp")?
                .as_u64()
        };
        let at = line
            .at
            .or_else(stamp)
            .or(before)
            .context("neither `at` nor a timestamp says when")?;
        let headers = line.headers;
        Ok(Self {
            at,
            subject: line.subject,
            payload,
            is_from_node: headers.is_some_and(|headers| headers.contains_key(SEQ)),
        })
    }

    /// The line for this message, which reads back as the same bytes. JSON on one line is written
    /// as it is, and anything else as text or base64.
    pub fn line(&self) -> anyhow::Result<Vec<u8>> {
        let mut written = Written {
            at: self.at,
            subject: &self.subject,
            data: None,
            payload: None,
            encoding: None,
        };
        let text = std::str::from_utf8(&self.payload).ok();
        let is_line = |text: &&str| !text.contains(['\n', '\r']);
        let json = text.filter(is_line).and_then(|text| {
            let json: &RawValue = serde_json::from_str(text).ok()?;
            (json.get().len() == text.len()).then_some(json)
        });
        let encoded;
        match (json, text) {
            (Some(json), _) => written.data = Some(json),
            (None, Some(text)) => (written.payload, written.encoding) = (Some(text), Some("utf8")),
            (None, None) => {
                encoded = STANDARD.encode(&self.payload);
                written.payload = Some(&encoded);
                written.encoding = Some("base64");
            }
        }
        let mut line = serde_json::to_vec(&written)?;
        line.push(b'\n');
        Ok(line)
    }
}

/// A file of recorded traffic.
pub struct Capture<'a> {
    path: &'a Path,
    input: BufReader<File>,
}

impl<'a> Capture<'a> {
    /// Opens a file.
    ///
    /// # Errors
    /// If it can't be read.
    pub fn open(path: &'a Path) -> anyhow::Result<Self> {
        let input = File::open(path).with_context(|| format!("can't read {}", path.display()))?;
        let input = BufReader::new(input);
        Ok(Self { path, input })
    }

    /// Passes the messages to `take`, one by one.
    ///
    /// # Errors
    /// What is wrong with a line, or the error of `take`. The error names the line.
    pub fn read(self, mut take: impl FnMut(Recorded) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let path = self.path.display();
        let mut before = None;
        for (number, line) in self.input.lines().enumerate() {
            let line = line.with_context(|| format!("can't read {path}"))?;
            if !line.trim().is_empty() {
                Recorded::parse(&line, before)
                    .inspect(|recorded| before = Some(recorded.at))
                    .and_then(&mut take)
                    .with_context(|| format!("{path}:{}", number + 1))?;
            }
        }
        Ok(())
    }
}

/// Creates a file that only this user can read, since recorded traffic is about people.
///
/// # Errors
/// If a file of that name exists, which is left as it is, or if the file can't be created.
pub fn create(file: &Path) -> anyhow::Result<File> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(file).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => anyhow::anyhow!(
            "{} is there already: name another file, or remove it first",
            file.display()
        ),
        _ => anyhow::Error::from(error).context(format!("can't make {}", file.display())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_payload_comes_back_to_the_byte() {
        for (payload, stands) in [
            (
                &b"{\"userId\": \"\xc3\xbc\"}"[..],
                "\"data\":{\"userId\": \"ü\"}}",
            ),
            (b"{\"n\":1.50e1}", "\"data\":{\"n\":1.50e1}}"),
            (b" {}", "\"payload\":\" {}\",\"encoding\":\"utf8\"}"),
            (b"{\n}", "\"payload\":\"{\\n}\",\"encoding\":\"utf8\"}"),
            (b"null", "\"data\":null}"),
            (b"{", "\"payload\":\"{\",\"encoding\":\"utf8\"}"),
            (b"", "\"payload\":\"\",\"encoding\":\"utf8\"}"),
            (b"\xff", "\"payload\":\"/w==\",\"encoding\":\"base64\"}"),
        ] {
            let recorded = Recorded {
                at: 5,
                subject: "presence.connect".into(),
                payload: Bytes::copy_from_slice(payload),
                is_from_node: false,
            };
            let line = String::from_utf8(recorded.line().unwrap()).unwrap();
            let expected = format!("{{\"at\":5,\"subject\":\"presence.connect\",{stands}\n");
            assert_eq!(line, expected);
            assert_eq!(Recorded::parse(&line, None).unwrap(), recorded);
        }
    }

    #[test]
    fn a_message_that_does_not_say_when_it_arrived_came_with_the_one_before() {
        let line = r#"{"subject":"presence.connect","data":{"userId":"ann"}}"#;
        assert_eq!(Recorded::parse(line, Some(7)).unwrap().at, 7);
        assert!(Recorded::parse(line, None).is_err());
    }

    #[test]
    fn a_file_that_is_there_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("capture.ndjson");
        create(&file).unwrap();
        let error = create(&file).unwrap_err().to_string();
        assert!(error.contains("is there already"), "{error}");
    }
}
