//! The input stream as the nodes of a fleet share it: one durable consumer, which knows which
//! messages have been handled. Each node pulls messages from it and passes them on to their shards.
//! The node that owns the shard acknowledges a message when it has been handled. JetStream delivers
//! a message again if it isn't acknowledged.

use std::fmt;
use std::time::Duration;

use async_nats::Subject;
use async_nats::jetstream::consumer::pull::{self, MessagesErrorKind};
use async_nats::jetstream::consumer::{
    AckPolicy, Config as AnyConsumer, Consumer, DeliverPolicy, FromConsumer as _, Info,
    ReplayPolicy,
};
use async_nats::jetstream::context::ConsumerInfoErrorKind;
use async_nats::jetstream::stream::ConsumerCreateStrictErrorKind;
use futures_util::StreamExt as _;
use presence_core::message::StreamPlace;

use super::connection::Incoming;
use super::input_stream::{
    EXPIRES, HEARTBEAT, InputStream, InputStreamError, ReadFrom, deliver, error_text,
};

/// The consumer's name. It is the same in each tenant's stream.
pub(crate) const CONSUMER: &str = "presence-fleet";

/// How soon an unacknowledged message is delivered again.
pub(crate) const ACK_WAIT: Duration = Duration::from_secs(5);

/// How many delivered messages of the whole fleet may be unacknowledged. The messages of a shard
/// without an owner count until its next owner has handled them.
const UNACKNOWLEDGED_MAX: i64 = 16_384;

/// From this delivery of a message on, something is likely to be wrong.
const WARN_FROM: u64 = 6;

/// From this delivery on, a message is acknowledged before it is handled, since handling it may
/// make the node fail.
const ACK_FIRST_FROM: u64 = 20;

/// Identifies a message of the stream, and says where to acknowledge it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    to: Subject,
    pub(crate) place: StreamPlace,
    /// How often the message has been delivered.
    deliveries: u64,
}

impl Receipt {
    /// `to`: the message's reply subject. `stream`: the name of the stream. `made_at`: when the
    /// consumer was created. `None` if the subject is no reply subject of this consumer.
    fn new(to: &str, stream: &str, made_at: u64) -> Option<Self> {
        let is_plain = |token: &str| {
            let is_plain = |it: char| it.is_ascii_graphic() && it != '*' && it != '>';
            !token.is_empty() && token.chars().all(is_plain)
        };
        if !to.split('.').all(is_plain) {
            return None;
        }
        let tokens: Vec<_> = to.strip_prefix("$JS.ACK.")?.split('.').collect();
        // Newer servers put a domain and an account hash before these tokens, and another token
        // behind them.
        let rest = match tokens.len() {
            7 => &tokens[..],
            9.. => tokens.get(2..)?,
            _ => return None,
        };
        let [of_stream, of_consumer, deliveries, sequence, ..] = rest else {
            return None;
        };
        if *of_stream != stream || *of_consumer != CONSUMER {
            return None;
        }
        Some(Self {
            to: to.into(),
            place: StreamPlace {
                stream: made_at,
                sequence: sequence.parse().ok()?,
            },
            deliveries: deliveries.parse().ok()?,
        })
    }

    /// Reads a receipt from a header that a router has set. `stream`: the stream's name.
    pub(crate) fn of_header(value: &str, stream: &str) -> Option<Self> {
        let (made_at, to) = value.split_once(' ')?;
        Self::new(to, stream, made_at.parse().ok()?)
    }

    /// Whether the message has been delivered before.
    pub(crate) fn is_repeated(&self) -> bool {
        self.deliveries > 1
    }

    /// Whether the message was delivered so often that something is likely to be wrong.
    pub(crate) fn is_often_repeated(&self) -> bool {
        self.deliveries >= WARN_FROM
    }

    /// Whether the message must be acknowledged before it is handled: it was delivered so often
    /// that handling it may have made a node fail each time.
    pub(crate) fn must_ack_first(&self) -> bool {
        self.deliveries >= ACK_FIRST_FROM
    }

    /// The subject on which to acknowledge the message.
    pub(super) fn subject(&self) -> Subject {
        self.to.clone()
    }
}

/// The format that [`Receipt::of_header`] reads.
impl fmt::Display for Receipt {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {}", self.place.stream, self.to)
    }
}

/// The consumer's progress in the stream.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SharedProgress {
    /// All messages up to this number have been acknowledged.
    pub(crate) handled: u64,
    /// The number of the last message that was delivered.
    pub(crate) delivered: u64,
    /// How many messages have not been delivered yet.
    pub(crate) pending: u64,
    /// How many messages were delivered and not acknowledged.
    pub(crate) unacknowledged: u64,
}

impl SharedProgress {
    fn of(info: &Info) -> Self {
        Self {
            handled: info.ack_floor.stream_sequence,
            delivered: info.delivered.stream_sequence,
            pending: info.num_pending,
            unacknowledged: info.num_ack_pending as u64,
        }
    }
}

/// The consumer.
pub(crate) struct SharedConsumer {
    consumer: Consumer<pull::Config>,
    stream: String,
    /// When the consumer was created. If a stream is created again, or loses its newest messages,
    /// it gives the same numbers to other messages. It then has another consumer.
    made_at: u64,
    pub(crate) progress: SharedProgress,
}

/// Messages that this node has to pass on to their shards.
pub(crate) struct SharedMessages {
    messages: pull::Stream,
    stream: String,
    made_at: u64,
}

/// A message of the shared consumer.
pub(crate) struct SharedInput {
    pub(crate) receipt: Receipt,
    /// How many messages of the stream had not been delivered when this one was.
    pub(crate) pending: u64,
    pub(crate) message: Incoming,
}

impl InputStream {
    /// The shared consumer. `None` if it doesn't exist.
    ///
    /// # Errors
    /// If the server doesn't answer, or the consumer has settings that a fleet can't use.
    pub(crate) async fn shared_consumer(&self) -> Result<Option<SharedConsumer>, InputStreamError> {
        let info = match self.stream.consumer_info(CONSUMER).await {
            Ok(info) => info,
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(InputStreamError::Unavailable(format!(
                    "JetStream doesn't say how far the fleet has come ({}): may this user use the \
                     consumer `{CONSUMER}`?",
                    error_text(error)
                )));
            }
        };
        let name = &self.stream.cached_info().config.name;
        if info.paused {
            return Err(InputStreamError::Refused(format!(
                "the stream `{name}` has a consumer `{CONSUMER}` that is paused: resume it, or wait \
                 until its pause is over"
            )));
        }
        if let Some(why) = unfit(&info.config, name) {
            return Err(InputStreamError::Refused(why));
        }
        let config = pull::Config::try_from_consumer_config(info.config.clone());
        let config = config.map_err(|error| InputStreamError::Refused(error.to_string()))?;
        let context = self.context.clone();
        Ok(Some(
            self.to_shared_consumer(Consumer::new(config, info, context)),
        ))
    }

    /// Creates the shared consumer, which begins at `begin`.
    ///
    /// # Errors
    /// If the server doesn't create it, or another node has created it.
    pub(crate) async fn create_shared_consumer(
        &self,
        begin: ReadFrom,
    ) -> Result<SharedConsumer, InputStreamError> {
        let config = consumer_config(deliver(begin)?);
        let made = self.stream.create_consumer_strict(config).await;
        let made = made.map_err(|error| match error.kind() {
            ConsumerCreateStrictErrorKind::AlreadyExists => {
                InputStreamError::Reopen("another node has made its consumer".into())
            }
            _ => InputStreamError::Unavailable(format!(
                "the consumer `{CONSUMER}` can't be made: {}",
                error_text(error)
            )),
        })?;
        Ok(self.to_shared_consumer(made))
    }

    /// Removes the consumer.
    ///
    /// # Errors
    /// If the server doesn't remove it.
    pub(crate) async fn delete_shared_consumer(&self) -> Result<(), InputStreamError> {
        let removed = self.stream.delete_consumer(CONSUMER).await;
        removed.map_err(|error| {
            InputStreamError::Unavailable(format!(
                "the consumer `{CONSUMER}` can't be made anew: {}",
                error_text(error)
            ))
        })?;
        Ok(())
    }

    fn to_shared_consumer(&self, consumer: Consumer<pull::Config>) -> SharedConsumer {
        let info = consumer.cached_info();
        let made_at = u64::try_from(info.created.unix_timestamp_nanos());
        SharedConsumer {
            progress: SharedProgress::of(info),
            stream: self.stream.cached_info().config.name.clone(),
            made_at: made_at.unwrap_or_default(),
            consumer,
        }
    }
}

impl SharedConsumer {
    /// Starts to pull messages, with at most `pull_max` requested at a time.
    ///
    /// # Errors
    /// If the server doesn't deliver them.
    pub(crate) async fn messages(
        self,
        pull_max: usize,
    ) -> Result<SharedMessages, InputStreamError> {
        let messages = self.consumer.stream().max_messages_per_batch(pull_max);
        let messages = messages.expires(EXPIRES).heartbeat(HEARTBEAT).messages();
        let messages = messages.await.map_err(|error| {
            InputStreamError::Unavailable(format!(
                "its messages can't be asked for: {}",
                error_text(error)
            ))
        })?;
        Ok(SharedMessages {
            messages,
            stream: self.stream,
            made_at: self.made_at,
        })
    }
}

impl SharedMessages {
    /// Waits for the next message. Dropping the future loses no message.
    ///
    /// # Errors
    /// If no further message can come.
    pub(crate) async fn next(&mut self) -> Result<SharedInput, InputStreamError> {
        let message = match self.messages.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => {
                let kind = error.kind();
                return Err(InputStreamError::Reopen(match kind {
                    MessagesErrorKind::MissingHeartbeat => "JetStream says nothing".into(),
                    MessagesErrorKind::ConsumerDeleted => "its consumer was removed".into(),
                    MessagesErrorKind::NoResponders => "JetStream doesn't respond".into(),
                    _ => error_text(error),
                }));
            }
            None => return Err(InputStreamError::Reopen("the connection is closed".into())),
        };
        let pending = message.info().map_or(0, |info| info.pending);
        let to = message.reply.as_deref().unwrap_or_default();
        let Some(receipt) = Receipt::new(to, &self.stream, self.made_at) else {
            let why = "a message doesn't say where it stands";
            return Err(InputStreamError::Reopen(why.into()));
        };
        Ok(SharedInput {
            receipt,
            pending,
            message: Incoming::stored(message.message),
        })
    }
}

/// The settings of the shared consumer.
fn consumer_config(deliver_policy: DeliverPolicy) -> pull::Config {
    pull::Config {
        durable_name: Some(CONSUMER.into()),
        description: Some("what the fleet's nodes have taken of connects and disconnects".into()),
        deliver_policy,
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        max_ack_pending: UNACKNOWLEDGED_MAX,
        ..pull::Config::default()
    }
}

/// Why a fleet can't share an existing consumer, and what to do about it. `None` if it can.
fn unfit(config: &AnyConsumer, stream: &str) -> Option<String> {
    let fault = if config.deliver_subject.is_some() {
        "pushes its messages to a subject (`deliver_subject`)"
    } else if config.ack_policy != AckPolicy::Explicit {
        "has messages acknowledged otherwise than each by itself (`ack_policy` is not `explicit`)"
    } else if !config.filter_subject.is_empty() || !config.filter_subjects.is_empty() {
        "leaves messages out (`filter_subject`)"
    } else if config.max_deliver > 0 {
        "gives up messages that nobody handled in time (`max_deliver`)"
    } else if config.headers_only {
        "delivers no bodies (`headers_only`)"
    } else if config.replay_policy != ReplayPolicy::Instant {
        "delivers messages as slowly as they came (`replay_policy`)"
    } else if config.ack_wait != ACK_WAIT || !config.backoff.is_empty() {
        "delivers a message again sooner or later than 5 s after nobody has handled it (`ack_wait`, \
         `backoff`)"
    } else if config.durable_name.is_none() || config.memory_storage {
        "is forgotten when a server ends (`memory_storage`, or it isn't durable)"
    } else if !config.inactive_threshold.is_zero() {
        "is forgotten while no node runs (`inactive_threshold`, which may be of the stream's \
         `consumer_limits`)"
    } else {
        return None;
    };
    Some(format!(
        "the stream `{stream}` has a consumer `{CONSUMER}` that {fault}: remove the consumer, and the \
         fleet makes another"
    ))
}

#[cfg(test)]
mod tests {
    use async_nats::jetstream::consumer::IntoConsumerConfig as _;

    use super::*;

    const TO: &str = "$JS.ACK.in.presence-fleet.3.100.7.1790230470084404000.42";

    #[test]
    fn only_the_fleets_own_messages_are_acknowledged() {
        let receipt = Receipt::new(TO, "in", 9).unwrap();
        assert_eq!((receipt.place.stream, receipt.place.sequence), (9, 100));
        assert!(receipt.is_repeated() && !receipt.must_ack_first());
        let newer = TO.replace("ACK.", "ACK.hub.9xq.") + ".token";
        let newer = Receipt::new(&newer, "in", 9).unwrap();
        assert_eq!(newer.place, receipt.place);
        for other in [
            TO.replace(".in.", ".orders."),
            TO.replace("presence-fleet", "billing"),
            TO.replace("$JS.ACK", "$KV"),
            TO.replace(".3.", ".>."),
            TO.replace(".3.", "..3."),
            TO.replace(".42", ""),
            TO.replace(".100.", ".x."),
            TO.replace(".42", ".4\r\n2"),
        ] {
            assert_eq!(Receipt::new(&other, "in", 9), None, "{other}");
        }
    }

    #[test]
    fn a_receipt_is_what_its_header_says() {
        let receipt = Receipt::new(TO, "in", 9).unwrap();
        let header = receipt.to_string();
        assert_eq!(Receipt::of_header(&header, "in"), Some(receipt));
        assert_eq!(Receipt::of_header(&header, "out"), None);
        for other in ["", TO, "x $JS.ACK.a", "9 "] {
            assert_eq!(Receipt::of_header(other, "in"), None, "{other}");
        }
    }

    #[test]
    fn a_consumer_of_another_shape_is_refused() {
        let fit = || consumer_config(DeliverPolicy::All).into_consumer_config();
        assert_eq!(unfit(&fit(), "in"), None);
        let refused = |change: fn(&mut AnyConsumer), word: &str| {
            let mut config = fit();
            change(&mut config);
            let why = unfit(&config, "in").unwrap_or_default();
            assert!(why.contains(word), "{word}: {why}");
        };
        refused(
            |it| it.deliver_subject = Some("x".into()),
            "deliver_subject",
        );
        refused(|it| it.ack_policy = AckPolicy::All, "ack_policy");
        refused(|it| it.ack_policy = AckPolicy::None, "ack_policy");
        refused(|it| it.filter_subject = "x".into(), "filter_subject");
        refused(|it| it.filter_subjects = vec!["x".into()], "filter_subject");
        refused(|it| it.max_deliver = 5, "max_deliver");
        refused(|it| it.headers_only = true, "headers_only");
        refused(
            |it| it.replay_policy = ReplayPolicy::Original,
            "replay_policy",
        );
        const HOUR: Duration = Duration::from_hours(1);
        refused(|it| it.ack_wait = HOUR, "ack_wait");
        refused(|it| it.backoff = vec![ACK_WAIT, HOUR], "backoff");
        refused(|it| it.inactive_threshold = HOUR, "inactive_threshold");
        refused(|it| it.memory_storage = true, "memory_storage");
        refused(|it| it.durable_name = None, "durable");
    }
}
