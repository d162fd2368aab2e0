//! The contenders that are written here, each run as a process of its own: the raw relay, the
//! native filter, the limit, the subscriber that only counts, and the bare answerer. They are
//! written plainly, without optimizing for benchmarks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use async_nats::{Client, HeaderMap, Message, Subject};
use bytes::Bytes;
use clap::ValueEnum;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

/// The arguments of `cargo xtask bench-contender`.
#[derive(clap::Args)]
pub(crate) struct Args {
    kind: Kind,
    /// The broker.
    #[arg(long)]
    url: String,
    /// What stands in the place of `presence` in the subjects.
    #[arg(long)]
    root: String,
    /// The directory of contacts.
    #[arg(long)]
    directory: Option<PathBuf>,
    /// The folder of what is published for an event: for each of `online` and `offline`
    /// what goes to all (`.events`) and the filtered form (`.filtered`), each with its
    /// headers, if it has any.
    #[arg(long)]
    published: Option<PathBuf>,
    /// How long an answer is.
    #[arg(long, default_value_t = 0)]
    answer_bytes: usize,
}

/// What a contender does.
#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// Publishes an event's bytes again, unread.
    Relay,
    /// Filters an event by the contacts of its user.
    Filter,
    /// Publishes, for each event, what presence published for another: as many messages
    /// of as many bytes, without a decision.
    Limit,
    /// Counts heartbeats.
    Count,
    /// Answers queries, unread, always the same.
    Answer,
    /// As `Answer`, with each query handed to another thread and back, which is the least that a
    /// pool of threads costs.
    AnswerElsewhere,
}

/// Runs a contender until it is killed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(args))
}

async fn serve(args: &Args) -> Result<()> {
    let client = async_nats::connect(&args.url).await?;
    let subject = match args.kind {
        Kind::Relay | Kind::Filter | Kind::Limit => "events.*",
        Kind::Count => "heartbeat",
        Kind::Answer | Kind::AnswerElsewhere => "query",
    };
    let mut messages = client.subscribe(format!("{}.{subject}", args.root)).await?;
    let contacts = match &args.directory {
        Some(path) => contacts(path)?,
        None => HashMap::new(),
    };
    let read = |kind| Published::read(args.published.as_deref(), kind);
    let (online, offline) = (read("online")?, read("offline")?);
    let answer = " ".repeat(args.answer_bytes);
    let elsewhere = match args.kind {
        Kind::AnswerElsewhere => Some(elsewhere(answer.clone())?),
        _ => None,
    };
    client.flush().await?;
    println!("ready");

    let mut counted = 0_u64;
    while let Some(message) = messages.next().await {
        match args.kind {
            Kind::Relay => relay(&client, &args.root, message).await?,
            Kind::Filter => filter(&client, &args.root, &contacts, &message).await?,
            Kind::Limit => {
                let is_online = message.subject.ends_with("online");
                let published = if is_online { &online } else { &offline };
                for (subject, published) in [
                    (format!("{}.events", args.root), &published.0),
                    (filtered(&args.root, &message.subject), &published.1),
                ] {
                    published.publish(&client, subject).await?;
                }
            }
            Kind::Count => {
                counted += 1;
                if let Some(reply) = message.reply {
                    client.publish(reply, counted.to_string().into()).await?;
                }
            }
            Kind::Answer | Kind::AnswerElsewhere => {
                let Some(reply) = message.reply else { continue };
                let answer = match &elsewhere {
                    Some(queries) => {
                        let (done, answered) = oneshot::channel();
                        queries.send(done)?;
                        answered.await?
                    }
                    None => answer.clone(),
                };
                client.publish(reply, answer.into()).await?;
            }
        }
    }
    Ok(())
}

/// Starts a thread that sends the same answer to every query.
fn elsewhere(answer: String) -> Result<mpsc::UnboundedSender<oneshot::Sender<String>>> {
    let (queries, mut asked) = mpsc::unbounded_channel::<oneshot::Sender<String>>();
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    std::thread::spawn(move || {
        runtime.block_on(async {
            while let Some(done) = asked.recv().await {
                // The asker may have given up.
                let _ = done.send(answer.clone());
            }
        });
    });
    Ok(queries)
}

/// A message that presence published.
#[derive(Default)]
struct Published {
    headers: HeaderMap,
    body: Bytes,
}

impl Published {
    /// Reads the two messages that were published for an event: to all, and to its viewers.
    fn read(folder: Option<&Path>, kind: &str) -> Result<(Self, Self)> {
        let Some(folder) = folder else {
            return Ok(Default::default());
        };
        let read = |ending| {
            let text = std::fs::read_to_string(folder.join(format!("{kind}.{ending}")))?;
            Self::parse(&text)
        };
        Ok((read("events")?, read("filtered")?))
    }

    /// Parses a message as it came from the broker: headers, if any, and body.
    fn parse(text: &str) -> Result<Self> {
        let mut headers = HeaderMap::new();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            let body = text.to_owned().into();
            return Ok(Self { headers, body });
        };
        // The first line is the version.
        for line in head.lines().skip(1) {
            let (name, value) = line.split_once(": ").context("a header has a value")?;
            headers.insert(name, value);
        }
        let body = body.to_owned().into();
        Ok(Self { headers, body })
    }

    async fn publish(&self, client: &Client, subject: String) -> Result<()> {
        let body = self.body.clone();
        if self.headers.is_empty() {
            return Ok(client.publish(subject, body).await?);
        }
        let headers = self.headers.clone();
        Ok(client.publish_with_headers(subject, headers, body).await?)
    }
}

async fn relay(client: &Client, root: &str, message: Message) -> Result<()> {
    Ok(client
        .publish(filtered(root, &message.subject), message.payload)
        .await?)
}

async fn filter(
    client: &Client,
    root: &str,
    contacts: &HashMap<String, Vec<String>>,
    message: &Message,
) -> Result<()> {
    let mut event: Value = serde_json::from_slice(&message.payload)?;
    let user = event
        .get("userId")
        .and_then(Value::as_str)
        .context("an event has a user")?;
    let viewers = contacts.get(user).map(Vec::as_slice).unwrap_or_default();
    let viewers = json!(viewers);
    event
        .as_object_mut()
        .context("an event is an object")?
        .insert("visibleTo".into(), viewers);
    let body = serde_json::to_vec(&event)?;
    Ok(client
        .publish(filtered(root, &message.subject), body.into())
        .await?)
}

/// The subject of the filtered form of an event.
fn filtered(root: &str, subject: &Subject) -> String {
    let kind = subject.rsplit('.').next().unwrap_or_default();
    format!("{root}.filtered.{kind}")
}

fn contacts(path: &Path) -> Result<HashMap<String, Vec<String>>> {
    let mut directory: Value = serde_json::from_slice(&std::fs::read(path)?)?;
    let contacts = directory
        .get_mut("contacts")
        .context("a directory has contacts")?;
    Ok(serde_json::from_value(contacts.take())?)
}
