//! The alerts of nodes, which a stream keeps for the history. Nodes only publish them.

use std::time::Duration;

use anyhow::Context as _;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::CreateStreamErrorKind;
use async_nats::jetstream::stream::{self, DiscardPolicy, StorageType};
use serde_json::Value;

use super::Store;
use super::bucket::read_all;

/// For how long alerts are kept, and up to what size in bytes.
const AGE_MAX: Duration = Duration::from_secs(90 * 24 * 3_600);
const BYTES_MAX: i64 = 16 << 20;

impl Store {
    /// Creates the stream of alerts, if it is missing. If operators have a stream of their own for
    /// these subjects, no second one is created.
    pub(super) async fn make_alerts(&self, replicas: usize) -> anyhow::Result<()> {
        if self.stream(&self.alerts).await?.is_some() {
            return Ok(());
        }
        let made = self.context.create_stream(stream::Config {
            name: self.alerts.clone(),
            description: Some("presence: what operators were alerted to".into()),
            subjects: vec![self.alerts_subject.clone()],
            max_age: AGE_MAX,
            max_bytes: BYTES_MAX,
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            num_replicas: replicas,
            ..stream::Config::default()
        });
        match made.await {
            Ok(_) => Ok(()),
            Err(error) if is_overlap(&error.kind()) => Ok(()),
            Err(error) => {
                Err(error).with_context(|| format!("can't make the stream `{}`", self.alerts))
            }
        }
    }

    /// The kept alerts in order. Empty if this program's stream doesn't exist.
    ///
    /// # Errors
    /// If they can't be read.
    pub async fn alerts(&self) -> anyhow::Result<Vec<Value>> {
        let Some(stream) = self.stream(&self.alerts).await? else {
            return Ok(Vec::new());
        };
        let bytes_max = 2 * BYTES_MAX.unsigned_abs();
        let messages = read_all(&stream, self.alerts_subject.clone(), 0, bytes_max).await;
        let messages =
            messages.with_context(|| format!("can't read the stream `{}`", self.alerts))?;
        let alerts = messages.iter();
        Ok(alerts
            .filter_map(|it| serde_json::from_slice(&it.payload).ok())
            .collect())
    }
}

fn is_overlap(kind: &CreateStreamErrorKind) -> bool {
    match kind {
        CreateStreamErrorKind::JetStream(error) => {
            error.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP
        }
        _ => false,
    }
}
