//! Asks a running node: one connection, one request, one answer. It gives up after a timeout.

use std::future::{Ready, ready};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use async_nats::{Client, Event, Message};
use presence_config::escape::line;
use presence_config::subjects::Subjects;
use presence_config::{Auth, Config};
use presence_core::message::Kind;
use presence_core::token;
use serde_json::Value;

use crate::link::broker::BrokerAccess;
use crate::link::input_stream::KINDS;
use crate::link::request::{self, RequestError};

/// How long a processor has to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How often to check whether the broker has reported an error.
const CHECK_EVERY: Duration = Duration::from_millis(100);

/// A request.
pub struct ClientRequest {
    /// The subject, without a tenant's prefix.
    pub subject: String,
    /// The token of the viewer in whose inbox the answer is to arrive. The broker may permit this
    /// viewer no other inbox.
    pub inbox: Option<String>,
    /// The body.
    pub body: Value,
    /// Recognises an answer among the replies. A refusal is recognised without it.
    pub is_answer: fn(&Value) -> bool,
}

/// Connects, sends a request, and returns the answer.
///
/// # Errors
/// When NATS can't be reached, nobody answers, or the answer is a refusal.
pub fn ask(config: &Config, question: &ClientRequest) -> anyhow::Result<Value> {
    let asked = async {
        let client = RequestClient::open(config, question.inbox.as_deref()).await?;
        client.ask(question).await
    };
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(asked)
}

/// A connection for requests to a running node.
pub struct RequestClient {
    client: Client,
    subjects: Subjects,
    servers: String,
    complaint: LastBrokerError,
    /// The stream from which nodes take connects and disconnects, if they do.
    input: Option<String>,
}

/// The last error that the broker has reported. Without it, a forbidden request would just time
/// out.
#[derive(Clone, Default)]
pub(crate) struct LastBrokerError(Arc<Mutex<Option<String>>>);

impl LastBrokerError {
    /// A callback for the client's events, which notes the errors.
    pub(crate) fn listener(&self) -> impl Fn(Event) -> Ready<()> + Send + Sync + 'static {
        let said = Self::clone(self);
        move |event| {
            if let Event::ServerError(error) = event {
                *said.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
            }
            ready(())
        }
    }

    /// Waits until the broker reports an error that names a subject. A forbidden request gets no
    /// other answer.
    pub(crate) async fn wait_for(&self, subject: &str) -> String {
        let subject = subject.to_lowercase();
        loop {
            let said = self
                .0
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone();
            if let Some(said) = said.filter(|said| said.to_lowercase().contains(&subject)) {
                return said;
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
    }

    pub(crate) fn take(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The prefix of the subjects for answers: one of the allowed prefixes, followed by the viewer's
/// token, or else by the token of the NATS user. So a user needs permission to receive only their
/// own answers.
pub(crate) fn inbox(config: &Config, token: Option<&str>) -> String {
    let usual = "_INBOX.".to_owned();
    let prefixes = &config.nats.reply_prefixes;
    let prefix = match prefixes.contains(&usual) {
        true => &usual,
        false => prefixes.first().unwrap_or(&usual),
    };
    let prefix = prefix.trim_end_matches('.');
    let user = match &config.nats.auth {
        Auth::Password { user, .. } => Some(token::encode(user)),
        _ => None,
    };
    let token = token.map(str::to_owned).or(user);
    token.map_or_else(|| prefix.to_owned(), |token| format!("{prefix}.{token}"))
}

impl RequestClient {
    /// Connects. `viewer`: the token of the viewer in whose inbox answers are to arrive.
    ///
    /// # Errors
    /// When NATS can't be reached.
    pub async fn open(config: &Config, viewer: Option<&str>) -> anyhow::Result<Self> {
        let access = BrokerAccess::new(config);
        let complaint = LastBrokerError::default();
        let options = access
            .options()?
            .name("presence command")
            .custom_inbox_prefix(inbox(config, viewer))
            .event_callback(complaint.listener());
        Ok(Self {
            client: access.connect(options).await?,
            subjects: Subjects::new(config.tenant.prefix.as_deref()),
            servers: access.servers(),
            complaint,
            input: config.input.stream.clone(),
        })
    }

    /// Sends a request, and returns the answer. It arrives in the inbox of the connection: the
    /// request's `inbox` isn't used.
    ///
    /// # Errors
    /// When nobody answers, or the answer is a refusal.
    pub async fn ask(&self, question: &ClientRequest) -> anyhow::Result<Value> {
        let answer = self.request(question).await?;
        if is_refusal(&answer) {
            let error = answer.get("error").and_then(Value::as_str);
            bail!("{}", line(error.unwrap_or("refused, without a reason")));
        }
        Ok(answer)
    }

    async fn request(&self, question: &ClientRequest) -> anyhow::Result<Value> {
        let ClientRequest {
            body, is_answer, ..
        } = question;
        let subject = self.subjects.of(&question.subject);
        // If input comes from a stream, the stream acknowledges the message, and no node answers.
        let kind = Kind::of_subject(&question.subject);
        let is_stored = kind.is_some_and(|kind| KINDS.contains(&kind));
        let stream = self.input.as_ref().filter(|_| is_stored);
        let read = |reply: &Message| {
            let stored = request::acknowledging_stream(&reply.payload);
            let is_stored = stored.is_some() && stored.as_ref() == stream;
            let mut reply: Value = serde_json::from_slice(&reply.payload).ok()?;
            if let Some(fields) = reply.as_object_mut().filter(|_| is_stored) {
                fields.insert("ok".into(), true.into());
            }
            (is_refusal(&reply) || is_answer(&reply)).then_some(reply)
        };
        let body = body.to_string().into();
        let error = match request::ask(&self.client, &subject, body, TIMEOUT, read).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        match (&error, self.complaint.take()) {
            (RequestError::Nobody { .. }, _) => bail!(
                "no processor answers on {subject} at {}: is `presence run` up there, \
                 with the same [tenant] prefix?",
                self.servers
            ),
            (RequestError::None { .. }, Some(said)) => bail!("NATS says: {said}"),
            (RequestError::None { passed_over, .. }, None) if passed_over.is_none() => bail!(
                "no answer on {subject} within {} s: the processor is too busy, or NATS forbids it to answer",
                TIMEOUT.as_secs()
            ),
            _ => Err(error.into()),
        }
    }
}

/// Whether the answer is a refusal.
fn is_refusal(reply: &Value) -> bool {
    reply.get("ok") == Some(&Value::Bool(false)) && reply.get("reason").is_some()
}
