//! Creates the streams that commands set up, and changes their limits.

use std::time::Duration;

use anyhow::{Context as _, anyhow, ensure};
use async_nats::Client;
use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{self, DiscardPolicy, StorageType};
use async_nats::jetstream::{self, ErrorCode};
use presence_config::Config;

use crate::link::broker::BrokerAccess;
use crate::link::request_client::{self, LastBrokerError};

/// The limits of a stream.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// Its size in bytes. The oldest messages are removed first.
    pub bytes_max: u64,
    /// How old a message may become.
    pub age_max: Duration,
    /// On how many servers of a cluster it is kept.
    pub replicas: usize,
}

/// A command's connection to JetStream.
pub(super) struct StreamAccess {
    pub(super) client: Client,
    pub(super) context: jetstream::Context,
    complaint: LastBrokerError,
}

impl StreamAccess {
    /// Connects.
    ///
    /// # Errors
    /// If NATS can't be reached.
    pub(super) async fn connect(config: &Config, name: &str) -> anyhow::Result<Self> {
        let access = BrokerAccess::new(config);
        let complaint = LastBrokerError::default();
        let options = access
            .options()?
            .name(name)
            .custom_inbox_prefix(request_client::inbox(config, None))
            .event_callback(complaint.listener());
        let client = access.connect(options).await?;
        Ok(Self {
            context: jetstream::new(client.clone()),
            client,
            complaint,
        })
    }

    /// Creates a stream, or changes the limits of an existing one. Returns whether it was created.
    ///
    /// # Errors
    /// If the server refuses, or a stream of that name has other subjects.
    pub(super) async fn make(
        &self,
        wanted: stream::Config,
        retention: Retention,
    ) -> anyhow::Result<bool> {
        let name = wanted.name.clone();
        let wanted = stream::Config {
            max_bytes: i64::try_from(retention.bytes_max)
                .map_err(|_| anyhow!("a stream keeps less than 8 EiB"))?,
            max_age: retention.age_max,
            num_replicas: retention.replicas,
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            ..wanted
        };
        match self.context.get_stream(&name).await {
            Ok(found) => {
                let found = found.cached_info();
                let sorted = |config: &stream::Config| {
                    let mut subjects = config.subjects.clone();
                    subjects.sort_unstable();
                    subjects
                };
                ensure!(
                    sorted(&found.config) == sorted(&wanted),
                    "the stream `{name}` exists, and keeps {:?}, not {}: presence doesn't change it",
                    found.config.subjects,
                    wanted.subjects.join(" and ")
                );
                let changed = stream::Config {
                    max_bytes: wanted.max_bytes,
                    max_age: wanted.max_age,
                    num_replicas: wanted.num_replicas,
                    ..found.config.clone()
                };
                let updated = self.context.update_stream(changed).await;
                let updated = updated.map_err(|error| self.with_broker_error(error.into()));
                updated.with_context(|| format!("can't change the stream `{name}`"))?;
                Ok(false)
            }
            Err(error) if is_missing(&error.kind()) => {
                let subjects = wanted.subjects.join(" and ");
                let created = self.context.create_stream(wanted).await;
                let created = created.map_err(|error| match is_overlap(&error.kind()) {
                    true => anyhow!(
                        "another stream has subjects among {subjects}: use that one (`--stream` of the \
                         commands for dead letters, `[input] stream` for input)"
                    ),
                    false => self.with_broker_error(error.into()),
                });
                created.with_context(|| format!("can't make the stream `{name}`"))?;
                Ok(true)
            }
            Err(error) => Err(self.unreadable(&name, error)),
        }
    }

    /// The error that the broker has reported, or else the given one.
    pub(super) fn with_broker_error(&self, error: anyhow::Error) -> anyhow::Error {
        match self.complaint.take() {
            Some(said) => anyhow!("NATS says: {said}"),
            None => error,
        }
    }

    pub(super) fn unreadable(
        &self,
        name: &str,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> anyhow::Error {
        self.with_broker_error(error.into()).context(format!(
            "can't reach the stream `{name}`: does the server have JetStream (`nats-server --jetstream \
             --store_dir FOLDER`), and may this user use it?"
        ))
    }
}

/// Whether the error is that another stream has some of the subjects.
fn is_overlap(kind: &CreateStreamErrorKind) -> bool {
    matches!(kind, CreateStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP)
}

/// Whether there is no such stream.
pub(super) fn is_missing(kind: &GetStreamErrorKind) -> bool {
    matches!(kind, GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND)
}
