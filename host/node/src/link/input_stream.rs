//! The stream that connects and disconnects are taken from, as JetStream has it: whether it is one
//! that can be, and its messages from a place on. What is done with them is `tenant::stream_intake`'s
//! affair.
//!
//! The consumer is the node's own, asks for no acknowledgement, and is forgotten by the server soon
//! after the node is gone: up to where the node has come stands in the node's state. If anything is
//! wrong, a new one is made at the next message that is wanted.

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

/// The kinds of messages that the stream has.
pub(crate) const KINDS: [Kind; 2] = [Kind::Connect, Kind::Disconnect];

/// How many messages may be on their way to the node.
const PULL_MAX: usize = 256;

/// How often JetStream says that it is there while it has no message. If it doesn't twice, the
/// consumer is made anew.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(2);
pub(super) const EXPIRES: Duration = Duration::from_secs(30);

/// How soon the server forgets a consumer that is not used any more.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// How often is looked whether there is a connection.
const LOOK: Duration = Duration::from_millis(50);

/// The longest message that a stream of our making takes.
const MESSAGE_BYTES_MAX: i32 = 256 << 10;

/// Why a stream can't be read.
#[derive(Debug)]
pub(crate) enum OpenError {
    /// It is missing, or isn't one to take input from: somebody has to do something.
    Refused(String),
    /// It may be readable in a moment.
    Away(String),
    /// It can be read, and the reading is to begin anew.
    Again(String),
}

/// What finds a tenant's stream.
pub(crate) struct InputStreams {
    client: Client,
    name: String,
    subjects: Subjects,
    node: String,
}

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// At the message of this number, or at the next that there is.
    At(u64),
    /// At the first message that was stored then or later, by the broker's clock, in milliseconds
    /// since the Unix epoch.
    Since(u64),
}

/// A stream that input can be taken from.
pub(crate) struct InputStream {
    pub(super) context: jetstream::Context,
    pub(super) stream: JetStream,
    /// When it was made, which tells it from one that is made anew.
    pub(crate) made_at: u64,
    /// The numbers of its first and its last message.
    pub(crate) first: u64,
    pub(crate) last: u64,
}

/// Its messages, in order.
pub(crate) struct InputMessages {
    messages: pull::Stream,
    /// How many messages have come.
    count: u64,
}

/// A message of the stream.
pub(crate) struct StoredInput {
    /// Its number in the stream.
    pub(crate) sequence: u64,
    /// How many come after it by now.
    pub(crate) pending: u64,
    pub(crate) message: Incoming,
}

impl InputStreams {
    /// Of a tenant; none if it takes its input otherwise. Messages come on the connection that no
    /// flood of other input keeps waiting.
    pub(crate) fn of(config: &Config, admin: &Admin) -> Option<Self> {
        Some(Self {
            client: admin.client.clone(),
            name: config.input.stream.clone()?,
            subjects: Subjects::new(config.tenant.prefix.as_deref()),
            node: config.node.name.clone(),
        })
    }

    /// How often there has been a connection.
    pub(crate) fn link(&self) -> u64 {
        let statistics = self.client.statistics();
        statistics.connects.load(Ordering::Acquire)
    }

    /// Waits until there is a connection.
    pub(crate) async fn connected(&self) {
        while self.client.connection_state() != State::Connected {
            sleep(LOOK).await;
        }
    }

    /// Looks at the stream.
    ///
    /// # Errors
    /// If it can't be read, or isn't one to take input from.
    pub(crate) async fn find(&self) -> Result<InputStream, OpenError> {
        InputStream::find(&self.client, &self.name, &self.subjects).await
    }

    /// The messages of the stream from there on, and the number of the next one that can come.
    ///
    /// # Errors
    /// If the server doesn't give them.
    pub(crate) async fn read(
        &self,
        stream: InputStream,
        begin: Begin,
    ) -> Result<(InputMessages, u64), OpenError> {
        stream.read(&self.node, begin).await
    }
}

impl InputStream {
    /// Looks at the stream.
    ///
    /// # Errors
    /// If it can't be read, or isn't one to take input from.
    async fn find(client: &Client, name: &str, subjects: &Subjects) -> Result<Self, OpenError> {
        let context = jetstream::new(client.clone());
        let stream = context.get_stream(name).await.map_err(|error| {
            let kind = error.kind();
            let said = said(error);
            match kind {
                kind if is_missing(&kind) => OpenError::Refused(format!(
                    "there is no stream `{name}`: `presence input init` makes it"
                )),
                GetStreamErrorKind::JetStream(_) => {
                    OpenError::Away(format!("JetStream says: {said}"))
                }
                _ => OpenError::Away(format!(
                    "JetStream doesn't answer ({said}): does the server have it, is there a \
                         leader of the stream, and may this user use it?"
                )),
            }
        })?;
        let info = stream.cached_info();
        // A server that has lost the others of its cluster may tell of the stream nevertheless.
        if info.cluster.as_ref().is_some_and(|it| it.leader.is_none()) {
            let why = "it has no leader: do the servers that keep it reach each other?";
            return Err(OpenError::Away(why.into()));
        }
        if let Some(why) = unfit(&info.config, subjects) {
            return Err(OpenError::Refused(why));
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

    /// Its messages from there on, and the number of the next one that can come.
    ///
    /// # Errors
    /// If the server doesn't give them.
    async fn read(self, node: &str, begin: Begin) -> Result<(InputMessages, u64), OpenError> {
        let failed = |error: &dyn std::fmt::Display| {
            OpenError::Away(format!("its messages can't be asked for: {error}"))
        };
        let deliver_policy = deliver(begin)?;
        let consumer = self.stream.create_consumer(pull::Config {
            // Operators see it among the stream's consumers.
            name: Some(format!("presence-{node}-{}", clock::wall_now_us())),
            deliver_policy,
            ack_policy: AckPolicy::None,
            inactive_threshold: FORGOTTEN,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        });
        let consumer = consumer.await;
        let consumer = consumer.map_err(|error| failed(&said(error)))?;
        let info = consumer.cached_info();
        let next = info.delivered.stream_sequence + 1;
        let messages = consumer
            .stream()
            .max_messages_per_batch(PULL_MAX)
            .expires(EXPIRES)
            .heartbeat(HEARTBEAT)
            .messages();
        let messages = messages.await;
        let messages = messages.map_err(|error| failed(&said(error)))?;
        let messages = InputMessages { messages, count: 0 };
        Ok((messages, next))
    }
}

impl InputMessages {
    /// The next message. Dropped before it is there, it loses none.
    ///
    /// # Errors
    /// If no other comes, or some were lost on their way: those are to be asked for again.
    pub(crate) async fn next(&mut self) -> Result<StoredInput, OpenError> {
        let message = match self.messages.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                let kind = error.kind();
                return Err(OpenError::Again(match kind {
                    MessagesErrorKind::MissingHeartbeat => format!(
                        "JetStream has said nothing for {} s",
                        2 * HEARTBEAT.as_secs()
                    ),
                    MessagesErrorKind::ConsumerDeleted => "its consumer was removed".into(),
                    MessagesErrorKind::NoResponders => "JetStream doesn't respond".into(),
                    _ => said(error),
                }));
            }
            None => return Err(OpenError::Again("the connection is closed".into())),
        };
        let info = message.info().map_err(|error| {
            OpenError::Again(format!("a message doesn't say where it stands: {error}"))
        })?;
        self.count += 1;
        if info.consumer_sequence != self.count {
            let why = "messages were lost on their way";
            return Err(OpenError::Again(why.into()));
        }
        Ok(StoredInput {
            sequence: info.stream_sequence,
            pending: info.pending,
            message: Incoming::stored(message.message),
        })
    }
}

/// Where a consumer begins.
pub(super) fn deliver(begin: Begin) -> Result<DeliverPolicy, OpenError> {
    Ok(match begin {
        Begin::At(sequence) => DeliverPolicy::ByStartSequence {
            start_sequence: sequence.max(1),
        },
        Begin::Since(ms) => {
            let start_time = datetime::from_nanos(i128::from(ms) * 1_000_000);
            let start_time = start_time.map_err(|error| {
                OpenError::Away(format!("its messages can't be asked for: {error}"))
            })?;
            DeliverPolicy::ByStartTime { start_time }
        }
    })
}

/// An error of the client in words.
pub(super) fn said(error: impl std::error::Error + Send + Sync + 'static) -> String {
    Causes(&error.into()).to_string()
}

/// The subjects that the stream has to have.
fn subjects_of(subjects: &Subjects) -> Vec<String> {
    KINDS.map(|kind| subjects.of(kind.subject())).into()
}

/// Why input can't be taken from a stream, and what to do about it.
fn unfit(config: &stream::Config, subjects: &Subjects) -> Option<String> {
    let name = &config.name;
    let wanted = subjects_of(subjects);
    let told = wanted.join("` and `");
    if config.mirror.is_some() || config.sources.as_ref().is_some_and(|it| !it.is_empty()) {
        return Some(format!(
            "the stream `{name}` has its messages from other streams: name the one in [input] that \
             takes `{told}` itself"
        ));
    }
    let mut found = config.subjects.clone();
    found.sort_unstable();
    if found != wanted {
        return Some(format!(
            "the stream `{name}` has the subjects `{}`, and not just `{told}`: change them, or let \
             `presence input init` make another stream",
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

/// The stream, for the command that makes it.
pub struct InputStreamAdmin {
    access: StreamAccess,
    subjects: Subjects,
    name: String,
}

impl InputStreamAdmin {
    /// Connects. The stream may be missing.
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

    /// Makes the stream, or changes what an existing one keeps. Says whether it was made.
    ///
    /// # Errors
    /// If the server refuses, or no input can be taken from the stream that is there.
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
            Err(OpenError::Refused(why) | OpenError::Away(why) | OpenError::Again(why)) => {
                Err(anyhow!(why))
            }
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
