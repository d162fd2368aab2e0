//! Dead letters, kept in a JetStream stream for operators to read and to redrive.

use std::time::Duration;

use anyhow::{Context as _, anyhow, bail, ensure};
use async_nats::Message;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::{Consumer, DeliverPolicy, pull};
use async_nats::jetstream::stream::{self, DeleteMessageErrorKind};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use presence_config::Config;
use presence_config::subjects::{REDRIVE, Subjects};
use presence_core::message::{Cause, Kind};
use presence_core::publish::Subject;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use super::input_stream;
use super::stream_setup::{Retention, StreamAccess, is_missing};
use crate::link::request::{self, RequestError};

/// How long a node has to answer a message that is redriven.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long the server has to send the next letter that it has.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// The stream of a tenant's dead letters, and a connection to it.
pub struct DlqStream {
    pub(super) access: StreamAccess,
    subjects: Subjects,
    name: String,
    /// The stream from which nodes take connects and disconnects, if they do.
    input: Option<String>,
}

/// A dead letter in the stream.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// Its number in the stream.
    pub number: u64,
    /// The letter as it was published.
    pub body: Value,
    /// The parsed fields of the letter.
    pub content: DeadLetterBody,
}

/// The fields that a node writes to a dead letter.
#[derive(Clone, Debug, Deserialize)]
pub struct DeadLetterBody {
    /// The subject of the message or event.
    pub subject: String,
    /// Why it could not be processed: one of the documented reasons.
    pub reason: String,
    /// The reason in a sentence.
    pub error: String,
    payload: String,
    encoding: String,
    /// When the node wrote it, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// Whether the payload is cut, so that only its beginning is there.
    #[serde(default)]
    pub truncated: bool,
}

/// How a letter is redriven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedriveMode {
    /// Its message is published again.
    Input(Kind),
    /// The node is asked to decide the event again.
    Event,
    /// The letter can't be redriven: why.
    None(&'static str),
}

/// The result of a redrive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedriveResult {
    /// A node took it.
    Accepted,
    /// A node ignored it, because it has newer information: why.
    Stale(String),
    /// A node refused it, and wrote a new dead letter: the reason, and the reason in a sentence.
    Refused(String, String),
}

impl DlqStream {
    /// Connects. The stream may be missing. Its name is the usual one, unless one is given.
    ///
    /// # Errors
    /// If NATS can't be reached.
    pub async fn connect(config: &Config, stream: Option<&str>) -> anyhow::Result<Self> {
        let prefix = config.tenant.prefix.as_deref();
        Ok(Self {
            access: StreamAccess::connect(config, "presence dlq").await?,
            input: config.input.stream.clone(),
            subjects: Subjects::new(prefix),
            name: match (stream, prefix) {
                (Some(stream), _) => stream.to_owned(),
                (None, Some(prefix)) => format!("{prefix}-presence-dlq"),
                (None, None) => "presence-dlq".into(),
            },
        })
    }

    /// The stream's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Creates the stream, or changes the limits of an existing one. Returns whether it was
    /// created.
    ///
    /// # Errors
    /// If the server refuses, or a stream of that name keeps something else.
    pub async fn init(&self, retention: Retention) -> anyhow::Result<bool> {
        let wanted = stream::Config {
            name: self.name.clone(),
            description: Some("what presence could not process".into()),
            subjects: vec![self.subjects.of("presence.dlq")],
            ..stream::Config::default()
        };
        self.access.make(wanted, retention).await
    }

    /// The number of the newest message in the stream; 0 if there was none yet.
    ///
    /// # Errors
    /// If the stream is missing or can't be read.
    pub async fn last(&self) -> anyhow::Result<u64> {
        Ok(self.stream().await?.cached_info().state.last_sequence)
    }

    /// Reads the letters from a number on, in order, and passes each to `take` until it returns
    /// `false`. Letters that are published after the call are not read.
    ///
    /// # Errors
    /// If the stream is missing or can't be read, or `take` fails.
    pub async fn read(
        &self,
        from: u64,
        take: impl FnMut(DeadLetter) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let stream = self.stream().await?;
        let last = stream.cached_info().state.last_sequence;
        if from > last {
            return Ok(());
        }
        let consumer = stream.create_consumer(pull::OrderedConfig {
            filter_subject: self.subjects.of("presence.dlq"),
            deliver_policy: DeliverPolicy::ByStartSequence {
                start_sequence: from.max(1),
            },
            ..pull::OrderedConfig::default()
        });
        let consumer = consumer.await.context("can't read the stream")?;
        let name = consumer.cached_info().name.clone();
        let read = async {
            match consumer.cached_info().num_pending {
                0 => Ok(()),
                _ => read_until(consumer, (from, last), take).await,
            }
        };
        let read = read.await;
        // If this fails, the server removes the consumer after a while.
        let _ = stream.delete_consumer(&name).await;
        read
    }

    /// How a letter is redriven.
    pub fn redrive_mode(&self, letter: &DeadLetter) -> RedriveMode {
        let content = &letter.content;
        // An event with more viewers than the quota allows is decided again, too.
        let is_untold = content.reason == Cause::QuotaExceeded.as_str()
            && content.subject == self.subjects.of(Subject::FilteredOnline.as_str());
        let is_event = is_untold || content.reason == Cause::PluginFailed.as_str();
        match self.subjects.kind(&content.subject) {
            _ if is_event => RedriveMode::Event,
            // It may be an event that the node has published itself, not a statement of an
            // application.
            Some(Kind::Online | Kind::Offline) if content.reason == Cause::TooLarge.as_str() => {
                RedriveMode::None("only what sent it can make it shorter")
            }
            Some(kind) => RedriveMode::Input(kind),
            None => RedriveMode::None("its subject is none on which a node takes messages"),
        }
    }

    /// Publishes the message of a dead letter again, unchanged, or has its event decided again.
    /// Waits for the answer of a node.
    ///
    /// # Errors
    /// If no node answers, or the letter lacks a part of the message.
    pub async fn redrive(&self, letter: &DeadLetter) -> anyhow::Result<RedriveResult> {
        let subject = match self.redrive_mode(letter) {
            RedriveMode::Input(_) => letter.content.subject.clone(),
            RedriveMode::Event => self.subjects.of(REDRIVE),
            RedriveMode::None(why) => bail!(why),
        };
        let payload = letter.payload()?;
        // If input comes from a stream, the stream acknowledges the message, and no node answers.
        let stream = self
            .input
            .as_ref()
            .filter(|_| match self.redrive_mode(letter) {
                RedriveMode::Input(kind) => input_stream::KINDS.contains(&kind),
                _ => false,
            });
        let read = |reply: &Message| {
            if stream.is_some() && request::acknowledging_stream(&reply.payload) == stream.cloned()
            {
                return Some(RedriveResult::Accepted);
            }
            outcome(&serde_json::from_slice(&reply.payload).ok()?)
        };
        match request::ask(&self.access.client, &subject, payload, TIMEOUT, read).await {
            Ok(outcome) => Ok(outcome),
            Err(RequestError::Nobody { .. }) => {
                bail!("no processor listens on {subject}: is `presence run` up?")
            }
            Err(error) => Err(self.access.with_broker_error(error.into())),
        }
    }

    /// Removes a letter, if it is still there.
    ///
    /// # Errors
    /// If it can't be removed.
    pub async fn remove(&self, number: u64) -> anyhow::Result<()> {
        let stream = self.access.context.get_stream_no_info(&self.name).await?;
        match stream.delete_message(number).await {
            Ok(_) => Ok(()),
            Err(error) if is_gone(&error.kind()) => Ok(()),
            Err(error) => {
                Err(anyhow::Error::new(error).context(format!("can't remove dead letter {number}")))
            }
        }
    }

    async fn stream(&self) -> anyhow::Result<stream::Stream> {
        match self.access.context.get_stream(&self.name).await {
            Ok(stream) => Ok(stream),
            Err(error) if is_missing(&error.kind()) => bail!(
                "no dead letters are kept: there is no stream `{}`. `presence dlq init` makes it",
                self.name
            ),
            Err(error) => Err(self.access.unreadable(&self.name, error)),
        }
    }
}

impl DeadLetter {
    fn read(number: u64, body: &[u8]) -> Option<Self> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let content = DeadLetterBody::deserialize(&body).ok()?;
        Some(Self {
            number,
            body,
            content,
        })
    }

    /// The bytes of the original message.
    ///
    /// # Errors
    /// If the payload is cut or can't be decoded.
    pub fn payload(&self) -> anyhow::Result<Bytes> {
        let content = &self.content;
        ensure!(
            !content.truncated,
            "the letter has only the beginning of the message"
        );
        match &*content.encoding {
            "utf8" => Ok(content.payload.clone().into()),
            "base64" => Ok(STANDARD
                .decode(&content.payload)
                .context("its payload is not base64")?
                .into()),
            other => bail!("the letter's encoding, `{other}`, isn't known"),
        }
    }

    /// The user whom the message or event is about. `None` if it can't be read.
    pub fn user(&self) -> Option<String> {
        let payload: Value = serde_json::from_slice(&self.payload().ok()?).ok()?;
        payload.get("userId")?.as_str().map(str::to_owned)
    }

    /// The plugin that failed, if one did.
    pub fn plugin(&self) -> Option<&str> {
        let content = &self.content;
        let named = content.error.strip_prefix("plugin `")?;
        (content.reason == Cause::PluginFailed.as_str()).then_some(named.split_once('`')?.0)
    }
}

/// Reads the letters from the number `from` to the number `last`.
async fn read_until(
    consumer: Consumer<pull::OrderedConfig>,
    (from, last): (u64, u64),
    mut take: impl FnMut(DeadLetter) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let mut messages = consumer.messages().await.context("can't read the stream")?;
    loop {
        let next = timeout(READ_TIMEOUT, messages.try_next()).await;
        let Some(message) = next.context("the stream sends nothing")?? else {
            return Ok(());
        };
        let info = message.info();
        let info = info.map_err(|error| anyhow!("can't read the stream: {error}"))?;
        let (number, is_last) = (info.stream_sequence, info.pending == 0);
        // Other messages in the stream were not written by a node, and are skipped.
        if (from..=last).contains(&number)
            && let Some(letter) = DeadLetter::read(number, &message.payload)
            && !take(letter)?
        {
            return Ok(());
        }
        if number >= last || is_last {
            return Ok(());
        }
    }
}

fn is_gone(kind: &DeleteMessageErrorKind) -> bool {
    let DeleteMessageErrorKind::JetStream(error) = kind else {
        return false;
    };
    // Servers use one of several codes for it.
    [ErrorCode::NO_MESSAGE_FOUND, ErrorCode::SEQUENCE_NOT_FOUND].contains(&error.error_code())
        || error.to_string().contains("no message found")
}

/// Reads a node's answer. `None` if the reply isn't one.
fn outcome(reply: &Value) -> Option<RedriveResult> {
    let text = |field: &str| reply.get(field).and_then(Value::as_str).map(str::to_owned);
    match (reply.get("ok")?.as_bool()?, text("reason")) {
        (true, _) => Some(RedriveResult::Accepted),
        (false, Some(reason)) => {
            let error = text("error").unwrap_or_default();
            Some(match &*reason {
                "stale" => RedriveResult::Stale(error),
                _ => RedriveResult::Refused(reason, error),
            })
        }
        (false, None) => None,
    }
}
