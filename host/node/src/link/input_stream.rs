//! The JetStream stream from which connects and disconnects are read: this module checks that the
//! stream can be used, and reads its messages from a given place on. `tenant::stream_intake`
//! handles them.
//!
//! Each node has a consumer of its own, without acknowledgements. The server removes it soon after
//! the node is gone: how far the node has come is in the node's state. After any error, the next
//! read creates a new consumer.

use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::anyhow;
use async_nats::connection::State;
use async_nats::jetstream;
use async_nats::jetstream::consumer::pull::{self, MessagesErrorKind};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{self, RetentionPolicy, Stream as JetStream};
use async_nats::{Client, datetime};
use futures_util::StreamExt as _;
use presence_config::Config;
use presence_config::causes::Causes;
use presence_config::subjects::Subjects;
use presence_core::message::Kind;
use tokio::time::sleep;

use super::stream_setup::{Retention, StreamAccess, is_missing};
use crate::clock;
use crate::link::admin::Admin;
use crate::link::connection::Incoming;

/// The kinds of messages that the stream holds.
pub(crate) const KINDS: [Kind; 2] = [Kind::Connect, Kind::Disconnect];

/// How many messages may be requested and not received yet.
const PULL_MAX: usize = 256;

/// How often JetStream sends a heartbeat while it has no message. If two are missing, the consumer
/// is made anew.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(2);
pub(super) const EXPIRES: Duration = Duration::from_secs(30);

/// How soon the server removes a consumer that is not used any more.
const INACTIVE_THRESHOLD: Duration = Duration::from_secs(30);

/// How often the connection's state is checked while waiting for it.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// The longest message that a stream made by `presence input init` takes, in bytes.
const MESSAGE_BYTES_MAX: i32 = 256 << 10;

/// Why a stream can't be read.
#[derive(Debug)]
pub(crate) enum InputStreamError {
    /// The stream is missing, or input can't be taken from it: an operator has to act.
    Refused(String),
    /// The stream or the server doesn't respond. A later attempt may succeed.
    Unavailable(String),
    /// Reading failed, although the stream may be readable: open it again.
    Reopen(String),
}

/// Finds a tenant's input stream.
pub(crate) struct InputStreams {
    client: Client,
    name: String,
    subjects: Subjects,
    node: String,
}

/// Where to begin reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadFrom {
    /// At the message with this number, or at the next one that exists.
    At(u64),
    /// At the first message that the broker stored at this time or later, in milliseconds since the
    /// Unix epoch.
    Since(u64),
}

/// A stream that input can be read from.
pub(crate) struct InputStream {
    pub(super) context: jetstream::Context,
    pub(super) stream: JetStream,
    /// When it was created, in nanoseconds since the Unix epoch. It differs if the stream is
    /// removed and created again.
    pub(crate) made_at: u64,
    /// The numbers of the first and the last message in the stream.
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// The stream's messages, in order.
pub(crate) struct InputMessages {
    messages: pull::Stream,
    /// How many messages have been received from this consumer.
    count: u64,
}

/// A message of the stream.
pub(crate) struct StoredInput {
    /// Its number in the stream.
    pub(crate) sequence: u64,
    /// How many messages were behind it in the stream when it was delivered.
    pub(crate) pending: u64,
    pub(crate) message: Incoming,
}

impl InputStreams {
    /// For a tenant; `None` if its configuration names no stream. It uses the admin connection,
    /// which a flood of other input can't delay.
    pub(crate) fn of(config: &Config, admin: &Admin) -> Option<Self> {
        Some(Self {
            client: admin.client.clone(),
            name: config.input.stream.clone()?,
            subjects: Subjects::new(config.tenant.prefix.as_deref()),
            node: config.node.name.clone(),
        })
    }

    /// How often the client has connected.
    pub(crate) fn link(&self) -> u64 {
        let statistics = self.client.statistics();
        statistics.connects.load(Ordering::Acquire)
    }

    /// Waits until there is a connection.
    pub(crate) async fn connected(&self) {
        while self.client.connection_state() != State::Connected {
            sleep(CHECK_EVERY).await;
        }
    }

    /// Fetches the stream's information, and checks it.
    ///
    /// # Errors
    /// If the stream can't be read, or input can't be taken from it.
    pub(crate) async fn find(&self) -> Result<InputStream, InputStreamError> {
        InputStream::find(&self.client, &self.name, &self.subjects).await
    }

    /// The messages of the stream from `begin` on, and the lowest number that the first of them can
    /// have.
    ///
    /// # Errors
    /// If the server doesn't deliver them.
    pub(crate) async fn read(
        &self,
        stream: InputStream,
        begin: ReadFrom,
    ) -> Result<(InputMessages, u64), InputStreamError> {
        stream.read(&self.node, begin).await
    }
}

impl InputStream {
    /// Fetches the stream's information, and checks it.
    ///
    /// # Errors
    /// If the stream can't be read, or input can't be taken from it.
    async fn find(
        client: &Client,
        name: &str,
        subjects: &Subjects,
    ) -> Result<Self, InputStreamError> {
        let context = jetstream::new(client.clone());
        let stream = context.get_stream(name).await.map_err(|error| {
            let kind = error.kind();
            let error_text = error_text(error);
            match kind {
                kind if is_missing(&kind) => InputStreamError::Refused(format!(
                    "there is no stream `{name}`: `presence input init` makes it"
                )),
                GetStreamErrorKind::JetStream(_) => {
                    InputStreamError::Unavailable(format!("JetStream says: {error_text}"))
                }
                _ => InputStreamError::Unavailable(format!(
                    "JetStream doesn't answer ({error_text}): does the server have it, is there a \
                         leader of the stream, and may this user use it?"
                )),
            }
        })?;
        let info = stream.cached_info();
        // A server without contact to the rest of its cluster may still describe the stream.
        if info.cluster.as_ref().is_some_and(|it| it.leader.is_none()) {
            let why = "it has no leader: do the servers that keep it reach each other?";
            return Err(InputStreamError::Unavailable(why.into()));
        }
        if let Some(why) = unfit(&info.config, subjects) {
            return Err(InputStreamError::Refused(why));
        }
        let made_at = info.created.unix_timestamp_nanos();
        Ok(Self {
            made_at: u64::try_from(made_at).unwrap_or_default(),
            first: info.state.first_sequence,
            last: info.state.last_sequence,
            context,
            stream,
        })
    }

    /// The messages from `begin` on, and the lowest number that the first of them can have.
    ///
    /// # Errors
    /// If the server doesn't deliver them.
    async fn read(
        self,
        node: &str,
        begin: ReadFrom,
    ) -> Result<(InputMessages, u64), InputStreamError> {
        let failed = |error: &dyn std::fmt::Display| {
            InputStreamError::Unavailable(format!("its messages can't be asked for: {error}"))
        };
        let deliver_policy = deliver(begin)?;
        let consumer = self.stream.create_consumer(pull::Config {
            // Operators see this name in the list of the stream's consumers.
            name: Some(format!("presence-{node}-{}", clock::wall_now_us())),
            deliver_policy,
            ack_policy: AckPolicy::None,
            inactive_threshold: INACTIVE_THRESHOLD,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        });
        let consumer = consumer.await;
        let consumer = consumer.map_err(|error| failed(&error_text(error)))?;
        let info = consumer.cached_info();
        let next = info.delivered.stream_sequence + 1;
        let messages = consumer
            .stream()
            .max_messages_per_batch(PULL_MAX)
            .expires(EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages();
        let messages = messages.await;
        let messages = messages.map_err(|error| failed(&error_text(error)))?;
        let messages = InputMessages { messages, count: 0 };
        Ok((messages, next))
    }
}

impl InputMessages {
    /// Waits for the next message. Dropping the future loses no message.
    ///
    /// # Errors
    /// If no further message can come, or some were lost on their way: the stream must be read
    /// again from there.
    pub(crate) async fn next(&mut self) -> Result<StoredInput, InputStreamError> {
        let message = match self.messages.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                let kind = error.kind();
                return Err(InputStreamError::Reopen(match kind {
                    MessagesErrorKind::MissingHeartbeat => format!(
                        "JetStream has said nothing for {} s",
                        2 * HEARTBEAT.as_secs()
                    ),
                    MessagesErrorKind::ConsumerDeleted => "its consumer was removed".into(),
                    MessagesErrorKind::NoResponders => "JetStream doesn't respond".into(),
                    _ => error_text(error),
                }));
            }
            None => return Err(InputStreamError::Reopen("the connection is closed".into())),
        };
        let info = message.info().map_err(|error| {
            InputStreamError::Reopen(format!("a message doesn't say where it stands: {error}"))
        })?;
        self.count += 1;
        if info.consumer_sequence != self.count {
            let why = "messages were lost on their way";
            return Err(InputStreamError::Reopen(why.into()));
        }
        Ok(StoredInput {
            sequence: info.stream_sequence,
            pending: info.pending,
            message: Incoming::stored(message.message),
        })
    }
}

/// The consumer's setting for where it begins.
pub(super) fn deliver(begin: ReadFrom) -> Result<DeliverPolicy, InputStreamError> {
    Ok(match begin {
        ReadFrom::At(sequence) => DeliverPolicy::ByStartSequence {
            start_sequence: sequence.max(1),
        },
        ReadFrom::Since(ms) => {
            let start_time = datetime::from_nanos(i128::from(ms) * 1_000_000);
            let start_time = start_time.map_err(|error| {
                InputStreamError::Unavailable(format!("its messages can't be asked for: {error}"))
            })?;
            DeliverPolicy::ByStartTime { start_time }
        }
    })
}

/// An error of the client with its causes, as text.
pub(super) fn error_text(error: impl std::error::Error + Send + Sync + 'static) -> String {
    Causes(&error.into()).to_string()
}

/// The subjects that the stream must have.
fn subjects_of(subjects: &Subjects) -> Vec<String> {
    KINDS.map(|kind| subjects.of(kind.subject())).into()
}

/// Why input can't be taken from a stream, and what to do about it. `None` if it can.
fn unfit(config: &stream::Config, subjects: &Subjects) -> Option<String> {
    let name = &config.name;
    let wanted = subjects_of(subjects);
    let expected = wanted.join("` and `");
    if config.mirror.is_some() || config.sources.as_ref().is_some_and(|it| !it.is_empty()) {
        return Some(format!(
            "the stream `{name}` has its messages from other streams: name the one in [input] that \
             takes `{expected}` itself"
        ));
    }
    let mut found = config.subjects.clone();
    found.sort_unstable();
    if found != wanted {
        return Some(format!(
            "the stream `{name}` has the subjects `{}`, and not just `{expected}`: change them, or \
             let `presence input init` make another stream",
            found.join("`, `")
        ));
    }
    let fault = if config.subject_transform.is_some() {
        "changes subjects (`subject_transform`)"
    } else if config.retention != RetentionPolicy::Limits {
        "removes messages that consumers have acknowledged (`retention` is not `limits`)"
    } else if config.max_messages_per_subject > 0 {
        "keeps only the last messages of a subject, of all users (`max_msgs_per_subject`)"
    } else if config.allow_rollup {
        "lets a publisher remove the messages of all others (`allow_rollup_hdrs`)"
    } else if config.no_ack {
        "acknowledges nothing, so that no publisher knows what it has (`no_ack`)"
    } else if config.sealed {
        "takes no messages any more (`sealed`)"
    } else {
        return None;
    };
    Some(format!(
        "the stream `{name}` {fault}: change that, or let `presence input init` make another stream"
    ))
}

/// The input stream, for the command that creates it.
pub struct InputStreamAdmin {
    access: StreamAccess,
    subjects: Subjects,
    name: String,
}

impl InputStreamAdmin {
    /// Connects to NATS. The stream may be missing.
    ///
    /// # Errors
    /// If NATS can't be reached.
    pub async fn connect(config: &Config) -> anyhow::Result<Self> {
        let prefix = config.tenant.prefix.as_deref();
        let name = match (&config.input.stream, prefix) {
            (Some(stream), _) => stream.clone(),
            (None, Some(prefix)) => format!("{prefix}-presence-input"),
            (None, None) => "presence-input".into(),
        };
        Ok(Self {
            access: StreamAccess::connect(config, "presence input").await?,
            subjects: Subjects::new(prefix),
            name,
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
    /// If the server refuses, or input can't be taken from the existing stream.
    pub async fn init(&self, retention: Retention) -> anyhow::Result<bool> {
        let wanted = stream::Config {
            name: self.name.clone(),
            description: Some("connects and disconnects for presence".into()),
            subjects: subjects_of(&self.subjects),
            max_message_size: MESSAGE_BYTES_MAX,
            ..stream::Config::default()
        };
        let is_new = self.access.make(wanted, retention).await?;
        match InputStream::find(&self.access.client, &self.name, &self.subjects).await {
            Ok(_) => Ok(is_new),
            Err(
                InputStreamError::Refused(why)
                | InputStreamError::Unavailable(why)
                | InputStreamError::Reopen(why),
            ) => Err(anyhow!(why)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fit() -> stream::Config {
        stream::Config {
            name: "in".into(),
            subjects: vec![
                "acme.presence.disconnect".into(),
                "acme.presence.connect".into(),
            ],
            ..stream::Config::default()
        }
    }

    #[test]
    fn only_a_stream_of_just_these_messages_that_keeps_them_is_taken_from() {
        let subjects = Subjects::new(Some("acme"));
        assert_eq!(unfit(&fit(), &subjects), None);
        let other = unfit(&fit(), &Subjects::new(None)).unwrap();
        assert!(other.contains("not just `presence.connect`"), "{other}");
        let refused = |change: fn(&mut stream::Config), word: &str| {
            let mut config = fit();
            change(&mut config);
            let why = unfit(&config, &subjects).unwrap_or_default();
            assert!(why.contains(word), "{word}: {why}");
        };
        refused(|it| it.subjects.truncate(1), "and not just");
        refused(|it| it.subjects.push("x".into()), "and not just");
        refused(|it| it.subjects = vec!["acme.>".into()], "and not just");
        refused(
            |it| it.mirror = Some(stream::Source::default()),
            "from other streams",
        );
        refused(
            |it| it.sources = Some(vec![stream::Source::default()]),
            "from other streams",
        );
        refused(
            |it| {
                it.subject_transform = Some(stream::SubjectTransform {
                    source: "x".into(),
                    destination: "y".into(),
                });
            },
            "subject_transform",
        );
        refused(
            |it| it.retention = RetentionPolicy::WorkQueue,
            "not `limits`",
        );
        refused(|it| it.max_messages_per_subject = 1, "max_msgs_per_subject");
        refused(|it| it.allow_rollup = true, "allow_rollup_hdrs");
        refused(|it| it.no_ack = true, "no_ack");
        refused(|it| it.sealed = true, "sealed");
    }
}
