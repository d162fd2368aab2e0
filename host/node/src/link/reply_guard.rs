//! Allowed reply subjects. The client that sends a request chooses the reply subject, and the node
//! publishes there with its own permissions. Without a limit, a client that may only send requests
//! could make the node write to a bucket, or forge filtered events.

use std::sync::atomic::{AtomicU64, Ordering};

use presence_config::reply_prefix::RESERVED;
use presence_config::subjects::Subjects;
use presence_config::{Config, Directory};

use crate::clock;

/// How often the log tells of refused reply subjects, at most.
const LOG_EVERY_MS: u64 = 60_000;

/// What JetStream has a consumer's messages bear. It is no request for an answer.
const ACKNOWLEDGEMENT: &str = "$JS.ACK";

/// Judges the subjects that requests ask to be answered on.
#[derive(Debug)]
pub(crate) struct ReplyGuard {
    /// What an answer's subject begins with: one of these.
    prefixes: Box<[String]>,
    /// What it doesn't begin with all the same.
    reserved: Box<[String]>,
    refused: AtomicU64,
    /// When the log last told of one, in milliseconds of the node's clock.
    logged_at: AtomicU64,
}

impl ReplyGuard {
    /// By the configuration of a tenant with these subjects.
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

    /// The subject to answer a message on, if it asks for an answer and may have one
    /// there. One that may not is counted, and the log says so.
    pub(crate) fn accept<T: AsRef<str>>(&self, reply: Option<T>) -> Option<T> {
        let to = reply.filter(|to| !to.as_ref().starts_with(ACKNOWLEDGEMENT))?;
        if self.allows(to.as_ref()) {
            return Some(to);
        }
        self.refuse(to.as_ref());
        None
    }

    /// How many messages asked to be answered where no answer may go.
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
