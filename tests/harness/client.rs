//! A NATS client for tests: it publishes inputs, and records what it sees.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use async_nats::{HeaderMap, Subscriber};
use futures_util::StreamExt;
use serde_json::Value;

use crate::wait;

/// A client.
#[derive(Clone, Debug)]
pub struct Client {
    /// The connection itself, for what this type doesn't offer.
    pub nats: async_nats::Client,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When the server can't be reached.
    pub async fn connect(url: &str) -> Result<Self> {
        let options = async_nats::ConnectOptions::new()
            .name("presence-tests")
            // A test that restarts the broker wants to be back at once.
            .reconnect_delay_callback(|_| Duration::from_millis(20))
            .subscription_capacity(1 << 20);
        let nats = options
            .connect(url)
            .await
            .with_context(|| format!("connecting to {url}"))?;
        Ok(Self { nats })
    }

    /// Publishes a JSON body.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn publish(&self, subject: &str, body: &Value) -> Result<()> {
        self.publish_bytes(subject, body.to_string()).await
    }

    /// Publishes bytes.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn publish_bytes(&self, subject: &str, bytes: impl Into<Vec<u8>>) -> Result<()> {
        Ok(self
            .nats
            .publish(subject.to_owned(), bytes.into().into())
            .await?)
    }

    /// Publishes a JSON body with headers.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn publish_with(
        &self,
        subject: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> Result<()> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.insert(*name, *value);
        }
        let bytes = body.to_string().into();
        Ok(self
            .nats
            .publish_with_headers(subject.to_owned(), map, bytes)
            .await?)
    }

    /// Sends a body as a request and returns the answer.
    ///
    /// # Errors
    /// When no answer comes, or it isn't JSON.
    pub async fn request(&self, subject: &str, bytes: impl Into<Vec<u8>>) -> Result<Value> {
        let what = format!("an answer on {subject}");
        let answer = self.nats.request(subject.to_owned(), bytes.into().into());
        let answer = wait::guarded(&what, answer).await?.context(what)?;
        serde_json::from_slice(&answer.payload).context("an answer is JSON")
    }

    /// Publishes an input and waits until the host acknowledges it.
    ///
    /// # Errors
    /// When the host refuses it, or doesn't answer.
    pub async fn input(&self, subject: &str, body: Value) -> Result<()> {
        let answer = self.request(subject, body.to_string()).await?;
        if answer != serde_json::json!({"ok": true}) {
            bail!("the host should take {body} on {subject}, but answered {answer}");
        }
        Ok(())
    }

    /// Waits until the server has acted on all that was sent so far.
    ///
    /// # Errors
    /// When the server doesn't answer.
    pub async fn round_trip(&self) -> Result<()> {
        // Nobody listens on this subject. The server says so after it has handled all that came
        // before.
        let answer = self.nats.request("presence-tests.nobody", "".into());
        wait::guarded("the server to answer", answer)
            .await
            .map(drop)
    }

    /// Records all that is published under a subject from now on.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn record(&self, subject: &str) -> Result<Recording> {
        let subscriber = self.nats.subscribe(subject.to_owned()).await?;
        self.round_trip().await?;
        Ok(Recording {
            subscriber,
            seen: Vec::new(),
        })
    }
}

/// A message that was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct ReceivedMessage {
    /// The subject on which it was published.
    pub subject: String,
    /// The subject for an answer. `None` if no answer is wanted.
    pub reply: Option<String>,
    /// Its headers.
    pub headers: BTreeMap<String, String>,
    /// Its body; null if that isn't JSON.
    pub body: Value,
    /// Its body's bytes.
    pub bytes: Vec<u8>,
    /// When it was seen.
    pub at: SystemTime,
}

impl ReceivedMessage {
    /// Whether the host published it, and not an application or a transport.
    #[must_use]
    pub fn is_from_host(&self) -> bool {
        self.headers.contains_key("Presence-Seq")
    }

    /// The numbering of a host's message: its source, its epoch, and its number. An empty source
    /// and 0 if the host didn't publish it.
    #[must_use]
    pub fn sequence(&self) -> (&str, u64, u64) {
        let header = self.headers.get("Presence-Seq");
        let mut words = header.map_or("", String::as_str).split(' ');
        let source = words.next().unwrap_or_default();
        let mut number = || words.next().and_then(|word| word.parse().ok());
        (
            source,
            number().unwrap_or_default(),
            number().unwrap_or_default(),
        )
    }

    /// A field of its body.
    #[must_use]
    pub fn field(&self, name: &str) -> &Value {
        self.body.get(name).unwrap_or(&Value::Null)
    }

    /// A field of its body that is a string; empty if it is none.
    #[must_use]
    pub fn text(&self, name: &str) -> &str {
        self.field(name).as_str().unwrap_or_default()
    }

    /// The names in its body, in their order.
    #[must_use]
    pub fn fields(&self) -> Vec<&str> {
        let object = self.body.as_object();
        object
            .map(|object| object.keys().map(String::as_str).collect())
            .unwrap_or_default()
    }

    /// Who may see it, sorted.
    #[must_use]
    pub fn visible_to(&self) -> Vec<&str> {
        let viewers = self.field("visibleTo").as_array();
        let viewers = viewers.into_iter().flatten().filter_map(Value::as_str);
        let mut viewers = viewers.collect::<Vec<_>>();
        viewers.sort_unstable();
        viewers
    }
}

/// What was published under a subject, in the order in which it came.
#[derive(Debug)]
pub struct Recording {
    subscriber: Subscriber,
    seen: Vec<ReceivedMessage>,
}

impl Recording {
    /// All that has been received so far, also by [`Self::next`].
    #[must_use]
    pub fn seen(&self) -> &[ReceivedMessage] {
        &self.seen
    }

    /// Records until a message is the one that is waited for, and returns it. Messages that were
    /// recorded before don't count.
    ///
    /// # Errors
    /// When it doesn't come in time; the error lists what came instead.
    pub async fn next(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&ReceivedMessage) -> bool,
    ) -> Result<ReceivedMessage> {
        let begin = Instant::now();
        loop {
            let seen = self.take(what, begin).await?;
            if wanted(&seen) {
                return Ok(seen);
            }
        }
    }

    /// Records until a condition over all that was recorded holds.
    ///
    /// # Errors
    /// When the condition doesn't hold in time; the error lists what came instead.
    pub async fn until(
        &mut self,
        what: &str,
        mut holds: impl FnMut(&[ReceivedMessage]) -> bool,
    ) -> Result<()> {
        let begin = Instant::now();
        while !holds(&self.seen) {
            self.take(what, begin).await?;
        }
        Ok(())
    }

    /// Records until the host has published `count` messages on a subject, and
    /// returns them.
    ///
    /// # Errors
    /// As [`Self::until`].
    pub async fn hosts(&mut self, subject: &str, count: usize) -> Result<Vec<ReceivedMessage>> {
        let on = |seen: &&ReceivedMessage| seen.is_from_host() && seen.subject == subject;
        let what = format!("{count} of the host's messages on {subject}");
        self.until(&what, |seen| seen.iter().filter(on).count() >= count)
            .await?;
        Ok(self.seen.iter().filter(on).cloned().collect())
    }

    /// Records all that the server has got by now.
    ///
    /// # Errors
    /// As [`Self::until`].
    pub async fn catch_up(&mut self, client: &Client) -> Result<()> {
        let mark = serde_json::json!({"mark": self.seen.len()});
        client.publish("presence.mark", &mark).await?;
        self.next("the mark", |seen| seen.body == mark)
            .await
            .map(drop)
    }

    /// Records the next message. The time limit counts from `begin`, however many messages come.
    async fn take(&mut self, what: &str, begin: Instant) -> Result<ReceivedMessage> {
        let left = wait::GUARD.saturating_sub(begin.elapsed());
        let next = tokio::time::timeout(left, self.subscriber.next()).await;
        let waited = || format!("waited {} s for {what}", wait::GUARD.as_secs());
        let next = next.with_context(waited).with_context(|| self.listing())?;
        let message = next.with_context(|| format!("the subscription ended before {what}"))?;
        let headers = message.headers.iter().flat_map(HeaderMap::iter);
        let headers = headers
            .filter_map(|(name, values)| Some((name.to_string(), values.first()?.to_string())));
        let seen = ReceivedMessage {
            subject: message.subject.to_string(),
            reply: message.reply.map(|reply| reply.to_string()),
            headers: headers.collect(),
            body: serde_json::from_slice(&message.payload).unwrap_or_default(),
            bytes: message.payload.to_vec(),
            at: SystemTime::now(),
        };
        self.seen.push(seen.clone());
        Ok(seen)
    }

    /// The last messages that were recorded, for errors.
    fn listing(&self) -> String {
        let mut text = format!("{} messages were seen, the last of them:", self.seen.len());
        for seen in self.seen.iter().rev().take(20).rev() {
            let source = if seen.is_from_host() { "host" } else { "other" };
            let body: String = String::from_utf8_lossy(&seen.bytes)
                .chars()
                .take(300)
                .collect();
            let _ = write!(text, "\n  {source} {} {body}", seen.subject);
        }
        text
    }
}

/// Now, in milliseconds since the Unix epoch.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
