//! Allowed reply subjects. The client that sends a request chooses the reply subject, and the node
//! publishes there with its own permissions. Without a limit, a client that may only send requests
//! could make the node write to a bucket, or forge filtered events.

use std::sync::atomic::{AtomicU64, Ordering};

use presence_config::reply_prefix::RESERVED;
use presence_config::subjects::Subjects;
use presence_config::{Config, Directory};

use crate::clock;

/// The least time between two log lines about refused reply subjects.
const LOG_EVERY_MS: u64 = 60_000;

/// The prefix of the reply subject that JetStream sets on messages of a consumer. Such a message
/// doesn't ask for an answer.
const ACKNOWLEDGEMENT: &str = "$JS.ACK";

/// Decides on which reply subjects the node answers requests.
#[derive(Debug)]
pub(crate) struct ReplyGuard {
    /// Allowed reply subjects begin with one of these prefixes.
    prefixes: Box<[String]>,
    /// Reply subjects that begin with one of these prefixes are refused, even if `prefixes` allows
    /// them.
    reserved: Box<[String]>,
    refused: AtomicU64,
    /// When the last refusal was logged, in milliseconds of the node's clock; 0 if none was.
    logged_at: AtomicU64,
}

impl ReplyGuard {
    /// Takes the allowed prefixes from the configuration of the tenant with these subjects.
    pub(crate) fn new(config: &Config, subjects: &Subjects) -> Self {
        let mut reserved: Vec<_> = RESERVED.map(String::from).into();
        reserved.push(subjects.of("presence"));
        if let Directory::Request(request) = &config.directory {
            reserved.push(subjects.of(&request.subject));
        }
        Self {
            prefixes: config.nats.reply_prefixes.clone().into(),
            reserved: reserved.into(),
            refused: AtomicU64::new(0),
            logged_at: AtomicU64::new(0),
        }
    }

    /// Returns the reply subject of a message if it is allowed. `None` if the message has none, has
    /// JetStream's own, or has one that is refused. A refusal is counted and logged.
    pub(crate) fn accept<T: AsRef<str>>(&self, reply: Option<T>) -> Option<T> {
        let to = reply.filter(|to| !to.as_ref().starts_with(ACKNOWLEDGEMENT))?;
        if self.allows(to.as_ref()) {
            return Some(to);
        }
        self.refuse(to.as_ref());
        None
    }

    /// How many messages had a reply subject that was refused.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    fn allows(&self, to: &str) -> bool {
        let begins = |prefix: &String| to.starts_with(prefix);
        self.prefixes.iter().any(begins) && !self.reserved.iter().any(begins)
    }

    fn refuse(&self, to: &str) {
        let refused = self.refused.fetch_add(1, Ordering::Relaxed) + 1;
        let now = clock::now_ms();
        let due = |at: u64| (at == 0 || now >= at + LOG_EVERY_MS).then_some(now);
        let (order, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        if self.logged_at.fetch_update(order, failure, due).is_ok() {
            tracing::warn!(
                subject = ?to,
                refused,
                "a request's reply subject is not below [nats] reply_prefixes: it is not answered"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies(prefixes: &[&str], subjects: &Subjects) -> ReplyGuard {
        let mut config = Config::default();
        config.nats.reply_prefixes = prefixes.iter().map(|it| (*it).into()).collect();
        ReplyGuard::new(&config, subjects)
    }

    #[test]
    fn answers_go_below_the_prefixes_alone_and_all_else_is_counted() {
        let subjects = Subjects::new(Some("acme"));
        let replies = replies(&["_INBOX.", "acme."], &subjects);
        for to in ["_INBOX.a.1", "acme.replies.1"] {
            assert_eq!(replies.accept(Some(to)), Some(to));
        }
        let refused = [
            "$KV.presence-directory.settings.12345",
            "$JS.API.STREAM.DELETE.x",
            "presence.filtered.user_online",
            "acme.presence.inbox.ben",
            "acme.presence-directory.invalidate",
            "_INBOX",
            "other.1",
            "",
        ];
        for to in refused {
            assert_eq!(replies.accept(Some(to)), None, "{to}");
        }
        assert_eq!(replies.refused(), refused.len() as u64);
        assert_eq!(replies.accept(Some("$JS.ACK.s.c.1.2.3.4.5")), None);
        assert_eq!(replies.accept(None::<&str>), None);
        assert_eq!(replies.refused(), refused.len() as u64);
    }
}
