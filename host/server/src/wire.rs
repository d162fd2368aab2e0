//! A tenant's subjects and the headers of what a node publishes.

use async_nats::HeaderMap;
use presence_core::message::Kind;
use presence_core::publish::{Publication, Subject};

/// Where a message comes from. What bears it came from a node, and is not input.
pub(crate) const SOURCE: &str = "Presence-Source";

/// A tenant's subjects.
#[derive(Clone, Debug)]
pub(crate) struct Subjects {
    prefix: String,
}

impl Subjects {
    pub(crate) fn new(prefix: Option<&str>) -> Self {
        Self {
            prefix: prefix.map_or_else(String::new, |prefix| format!("{prefix}.")),
        }
    }

    /// A tenant's subject for one of the default tenant's.
    pub(crate) fn of(&self, subject: &str) -> String {
        format!("{}{subject}", self.prefix)
    }

    pub(crate) fn publication(&self, subject: Subject) -> String {
        self.of(subject.as_str())
    }

    /// What kind of input a subject carries.
    pub(crate) fn kind(&self, subject: &str) -> Option<Kind> {
        Kind::of_subject(subject.strip_prefix(&self.prefix)?)
    }
}

/// One worker of a node, since its start.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Node and worker.
    pub(crate) name: String,
    /// When the source started, in milliseconds since the Unix epoch.
    pub(crate) epoch: String,
}

impl Source {
    pub(crate) fn new(node: &str, worker: usize, epoch_ms: u64) -> Self {
        Self {
            name: format!("{node}/{worker}"),
            epoch: epoch_ms.to_string(),
        }
    }

    /// The headers of a publication, as pairs.
    pub(crate) fn headers(
        &self,
        subject: &str,
        publication: &Publication,
    ) -> [(&'static str, String); 4] {
        let Self { name, epoch } = self;
        let seq = publication.seq;
        [
            (SOURCE, name.clone()),
            ("Presence-Epoch", epoch.clone()),
            ("Presence-Seq", seq.to_string()),
            ("Nats-Msg-Id", format!("{epoch}-{name}-{subject}-{seq}")),
        ]
    }

    /// The headers of a publication, for the broker.
    pub(crate) fn header_map(&self, subject: &str, publication: &Publication) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in self.headers(subject, publication) {
            headers.insert(name, value);
        }
        headers
    }
}
