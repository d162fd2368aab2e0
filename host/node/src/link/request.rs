//! Requests over NATS on subjects that a JetStream stream may store. Such a stream acknowledges
//! each message to the requester. These replies are skipped, and named in the error if no answer
//! comes.

use std::time::Duration;

use async_nats::client::{PublishError, PublishErrorKind};
use async_nats::{Client, Message, StatusCode};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

/// How many bytes of an unexpected reply an error quotes.
const SHOWN_BYTES_MAX: usize = 200;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    /// Nobody listens on the subject.
    #[error("nobody listens on {subject}")]
    Nobody {
        /// The subject.
        subject: String,
    },
    /// No reply was an answer.
    #[error("no answer on {subject} within {} ms{}", .limit.as_millis(), only(.passed_over))]
    None {
        /// The subject.
        subject: String,
        /// How long the requester waited.
        limit: Duration,
        /// A description of another reply, if one came.
        passed_over: Option<String>,
    },
    /// The connection is closed.
    #[error("can't ask on {subject}: the connection to NATS is closed")]
    Closed {
        /// The subject.
        subject: String,
    },
    /// The question can't be asked.
    #[error("can't ask on {subject}: {why}")]
    Unaskable {
        /// The subject.
        subject: String,
        /// Why.
        why: String,
    },
}

impl RequestError {
    fn unpublished(subject: &str, error: &PublishError) -> Self {
        let subject = subject.into();
        match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => Self::Unaskable {
                subject,
                why: "the question is longer than a message may be (max_payload of the server)"
                    .into(),
            },
            PublishErrorKind::InvalidSubject => Self::Unaskable {
                subject,
                why: "that is no subject".into(),
            },
            PublishErrorKind::Send => Self::Closed { subject },
        }
    }
}

fn only(passed_over: &Option<String>) -> String {
    let only = passed_over.as_ref();
    only.map_or_else(String::new, |what| format!(": only {what} replied"))
}

/// Sends a request, and returns what `read` makes of the first reply that it accepts. The request
/// has a reply subscription of its own while it runs.
///
/// # Errors
/// If there is no answer within `limit`.
pub(crate) async fn ask<T>(
    client: &Client,
    subject: &str,
    body: Bytes,
    limit: Duration,
    read: impl Fn(&Message) -> Option<T>,
) -> Result<T, RequestError> {
    let until = Instant::now() + limit;
    let closed = || RequestError::Closed {
        subject: subject.into(),
    };
    let inbox = client.new_inbox();
    let mut replies = client
        .subscribe(inbox.clone())
        .await
        .map_err(|_| closed())?;
    client
        .publish_with_reply(subject.to_owned(), inbox, body)
        .await
        .map_err(|error| RequestError::unpublished(subject, &error))?;
    let mut passed_over = None;
    loop {
        let reply = match timeout_at(until, replies.next()).await {
            Ok(Some(reply)) => reply,
            Ok(None) => return Err(closed()),
            Err(_) => {
                return Err(RequestError::None {
                    subject: subject.into(),
                    limit,
                    passed_over,
                });
            }
        };
        if reply.status == Some(StatusCode::NO_RESPONDERS) {
            return Err(RequestError::Nobody {
                subject: subject.into(),
            });
        }
        if let Some(answer) = read(&reply) {
            return Ok(answer);
        }
        passed_over = Some(described(&reply.payload));
    }
}

/// The stream that has sent this reply as an acknowledgement. `None` if it is none.
pub(crate) fn acknowledging_stream(payload: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Acknowledgement {
        stream: String,
        #[serde(rename = "seq")]
        _seq: u64,
    }
    let acknowledgement: Acknowledgement = serde_json::from_slice(payload).ok()?;
    Some(acknowledgement.stream)
}

/// Describes a reply that is no answer, without control characters.
fn described(payload: &[u8]) -> String {
    match acknowledging_stream(payload) {
        Some(stream) => format!(
            "the JetStream stream `{}`, which takes that subject in,",
            stream.escape_debug()
        ),
        None => {
            let text = String::from_utf8_lossy(payload);
            let end = text.floor_char_boundary(SHOWN_BYTES_MAX);
            let shown = text.get(..end).unwrap_or_default();
            format!("somebody who says `{}`", shown.escape_debug())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_answer_is_said_without_what_could_harm_a_terminal() {
        let stream = br#"{"stream":"everything","seq":7,"domain":"hub"}"#;
        assert!(described(stream).contains("stream `everything`"));
        assert_eq!(acknowledging_stream(br#"{"stream":"x"}"#), None);
        assert_eq!(acknowledging_stream(br#"["12345"]"#), None);
        let other = described(b"\x1b[2J\nmine");
        assert_eq!(other, "somebody who says `\\u{1b}[2J\\nmine`");
        assert!(described(&[b'x'; 5_000]).len() < 300);
    }

    #[test]
    fn a_question_that_cant_be_published_says_why() {
        let said = |kind: PublishErrorKind| {
            let error = PublishError::from(kind);
            RequestError::unpublished("presence.query", &error).to_string()
        };
        let long = said(PublishErrorKind::MaxPayloadExceeded);
        assert!(long.contains("longer than a message may be"), "{long}");
        let none = said(PublishErrorKind::InvalidSubject);
        assert!(none.contains("no subject"), "{none}");
        let gone = said(PublishErrorKind::Send);
        assert!(gone.contains("the connection to NATS is closed"), "{gone}");
    }

    #[test]
    fn the_reason_is_said() {
        let error = RequestError::None {
            subject: "presence.query".into(),
            limit: Duration::from_secs(1),
            passed_over: Some(described(br#"{"stream":"all","seq":1}"#)),
        };
        assert_eq!(
            error.to_string(),
            "no answer on presence.query within 1000 ms: only the JetStream stream `all`, which \
             takes that subject in, replied"
        );
    }
}
