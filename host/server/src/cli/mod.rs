//! The commands that ask a running processor: one connection, one request, one
//! answer. Nothing is tried for ever.

pub(crate) mod config;
pub(crate) mod explain;
pub(crate) mod figures;
pub(crate) mod query;
pub(crate) mod status;
pub(crate) mod text;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::bail;
use async_nats::{Event, Message};
use serde_json::Value;

use crate::ConfigArg;
use crate::broker::Access;
use crate::config::{Config, variables};
use crate::escape::{line, print, print_json};
use crate::request::{self, NoAnswer};
use crate::wire::Subjects;

/// How long a processor has to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How the answer is wanted, and from whom.
#[derive(clap::Args)]
struct Common {
    /// Prints the answer as it came, one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArg,
}

/// What is asked, and where.
struct Question {
    /// The subject, without a tenant's prefix.
    subject: String,
    /// The token of the viewer in whose inbox the answer is to come, where the broker may
    /// permit no other.
    inbox: Option<String>,
    body: Value,
    /// Tells an answer, unless it is a refusal, from what others reply.
    is_answer: fn(&Value) -> bool,
}

/// Asks, and prints the answer: as it came, or as a text.
fn answer(common: &Common, question: &Question, text: fn(&Value) -> String) -> anyhow::Result<()> {
    let config = Config::load(common.config.config.as_deref(), variables())?;
    let answer = ask(&config, question)?;
    if common.json {
        print_json(answer)?;
    } else {
        print(text(&answer))?;
    }
    Ok(())
}

/// Asks, and returns the answer.
///
/// # Errors
/// When NATS can't be reached, nobody answers, or the answer is a refusal.
fn ask(config: &Config, question: &Question) -> anyhow::Result<Value> {
    let answer = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(request(config, question))?;
    if is_refusal(&answer) {
        let error = answer.get("error").and_then(Value::as_str);
        bail!("{}", line(error.unwrap_or("refused, and nothing says why")));
    }
    Ok(answer)
}

/// What the subject of the answer begins with: one of those that answers may go to.
fn inbox(config: &Config, token: Option<&str>) -> String {
    let usual = "_INBOX.".to_owned();
    let prefixes = &config.nats.reply_prefixes;
    let prefix = match prefixes.contains(&usual) {
        true => &usual,
        false => prefixes.first().unwrap_or(&usual),
    };
    let prefix = prefix.trim_end_matches('.');
    token.map_or_else(|| prefix.to_owned(), |token| format!("{prefix}.{token}"))
}

async fn request(config: &Config, question: &Question) -> anyhow::Result<Value> {
    let Question {
        body, is_answer, ..
    } = question;
    let subject = Subjects::new(config.tenant.prefix.as_deref()).of(&question.subject);
    let access = Access::new(config);
    // What the broker says of it: a forbidden subject is else only never answered.
    let said = Arc::new(Mutex::new(None));
    let hear = Arc::clone(&said);
    let options = access
        .options()?
        .name("presence command")
        .custom_inbox_prefix(inbox(config, question.inbox.as_deref()))
        .event_callback(move |event| {
            if let Event::ServerError(error) = event {
                *hear.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string());
            }
            std::future::ready(())
        });
    let client = access.connect(options).await?;
    let read = |reply: &Message| {
        let reply: Value = serde_json::from_slice(&reply.payload).ok()?;
        (is_refusal(&reply) || is_answer(&reply)).then_some(reply)
    };
    let error = match request::ask(&client, &subject, body.to_string().into(), TIMEOUT, read).await
    {
        Ok(answer) => return Ok(answer),
        Err(error) => error,
    };
    let said = said.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (&error, said) {
        (NoAnswer::Nobody { .. }, _) => bail!(
            "no processor answers on {subject} at {}: is `presence run` up there, \
             with the same [tenant] prefix?",
            access.servers()
        ),
        (NoAnswer::None { .. }, Some(said)) => bail!("NATS says: {said}"),
        (NoAnswer::None { passed_over, .. }, None) if passed_over.is_none() => bail!(
            "no answer on {subject} within {} s: the processor is too busy, or NATS forbids it to answer",
            TIMEOUT.as_secs()
        ),
        _ => Err(error.into()),
    }
}

/// Whether a processor says no.
fn is_refusal(reply: &Value) -> bool {
    reply.get("ok") == Some(&Value::Bool(false)) && reply.get("reason").is_some()
}
