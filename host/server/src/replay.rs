//! `presence replay`: recorded input in, publications out, in virtual time.

use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use base64::Engine as _;
use bytes::Bytes;
use presence_core::directory::Directory;
use presence_core::message::Message;
use presence_core::names::Names;
use presence_core::{Input, Output, Shard};
use presence_sandbox::Pipeline;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::config::{self, Config};
use crate::loader::{self, Loader};
use crate::wire::{SOURCE, Source, Subjects};
use crate::{broker, directory, tenant};

/// How long after the last line time goes on at most, in milliseconds: a day. A
/// decision that fails whenever it is tried again, or a rule that always asks
/// to be asked again, would have it go on for ever.
const SETTLE_MS_MAX: u64 = 24 * 60 * 60 * 1_000;

/// The node's name in a replay, the same on every machine.
const NODE: &str = "replay";

#[derive(Deserialize)]
struct Line {
    at: Option<u64>,
    subject: String,
    data: Option<Box<RawValue>>,
    payload: Option<String>,
    encoding: Option<String>,
    headers: Option<Map<String, Value>>,
}

#[derive(Serialize)]
struct Published<'a> {
    at: u64,
    subject: &'a str,
    headers: Map<String, Value>,
    data: &'a RawValue,
}

/// Runs a recording, and prints what is published.
pub(crate) fn run(file: &Path, config: Option<&Path>) -> anyhow::Result<()> {
    let config = Config::load(config, std::env::vars())?;
    let input =
        std::fs::File::open(file).with_context(|| format!("can't read {}", file.display()))?;
    let mut replay = Replay::new(&config, BufWriter::new(std::io::stdout().lock()))?;
    for (number, line) in BufReader::new(input).lines().enumerate() {
        let line = line.with_context(|| format!("can't read {}", file.display()))?;
        if !line.trim().is_empty() {
            replay
                .line(&line)
                .with_context(|| format!("{}:{}", file.display(), number + 1))?;
        }
    }
    replay.finish()
}

struct Replay<W> {
    now: u64,
    shard: Shard,
    rules: Pipeline,
    subjects: Subjects,
    source: Option<Source>,
    out: W,
}

impl<W: Write> Replay<W> {
    fn new(config: &Config, out: W) -> anyhow::Result<Self> {
        let names = Arc::new(Names::new());
        let content = match &config.directory {
            config::Directory::File { path } => {
                if let Some(what) = directory::missing(path) {
                    eprintln!("warning: {what}");
                }
                directory::read_file(path, &names)?
            }
            config::Directory::Kv { .. } | config::Directory::Request(_) => {
                bail!("a replay has no broker: use [directory] source = \"file\"")
            }
        };
        let (directory, _) = content.replace(&Directory::new());
        let blueprint = Loader::new()?.load(config, false, None);
        let rules = blueprint.map_err(loader::together)?.instantiate()?;
        let mut settings = tenant::settings(config, broker::BODY_BYTES_MAX);
        settings.node = NODE.into();
        Ok(Self {
            now: 0,
            shard: Shard::new(settings, names, Arc::new(directory)),
            rules,
            subjects: Subjects::new(config.tenant.prefix.as_deref()),
            source: None,
            out,
        })
    }

    fn line(&mut self, line: &str) -> anyhow::Result<()> {
        anyhow::ensure!(
            line.trim_start().starts_with('{'),
            "a recorded line is a JSON object with `subject` and `data`"
        );
        let line: Line = serde_json::from_str(line).context("not a recorded line")?;
        let payload = match (&line.data, &line.payload) {
            (Some(data), None) => Bytes::copy_from_slice(data.get().as_bytes()),
            (None, Some(text)) => match line.encoding.as_deref() {
                Some("base64") => base64::engine::general_purpose::STANDARD
                    .decode(text)
                    .context("`payload` is not base64")?
                    .into(),
                None | Some("utf8") => text.clone().into_bytes().into(),
                Some(other) => bail!("`encoding` must be utf8 or base64, not {other}"),
            },
            _ => bail!("a line has either `data` or `payload`"),
        };
        let stamp = || {
            serde_json::from_slice::<Value>(&payload)
                .ok()?
                .get("timestamp")?
                .as_u64()
        };
        let at = line
            .at
            .or_else(stamp)
            .context("neither `at` nor a timestamp says when")?;
        self.advance_to(at)?;
        // What a node published is no input.
        if line
            .headers
            .is_some_and(|headers| headers.contains_key(SOURCE))
        {
            return Ok(());
        }
        let Some(kind) = self.subjects.kind(&line.subject) else {
            return Ok(());
        };
        let input = match Message::parse(kind, &payload, broker::BODY_BYTES_MAX) {
            Ok(message) => Input::Message {
                message,
                reply: None,
            },
            Err(rejection) => Input::Rejected {
                subject: line.subject,
                payload,
                rejection,
                reply: None,
            },
        };
        self.step(|shard, now, rules, out| shard.handle(now, input, rules, out))
    }

    fn finish(mut self) -> anyhow::Result<()> {
        let end = self.now.saturating_add(SETTLE_MS_MAX);
        while let Some(deadline) = self.shard.next_deadline()
            && deadline <= end
        {
            self.now = self.now.max(deadline);
            self.step(|shard, now, rules, out| shard.advance(now, rules, out))?;
        }
        Ok(self.out.flush()?)
    }

    /// Does what falls due before `at`. What arrives at a deadline comes before it.
    fn advance_to(&mut self, at: u64) -> anyhow::Result<()> {
        let subjects = &self.subjects;
        self.source
            .get_or_insert_with(|| Source::new(NODE, 0, at, subjects));
        while let Some(deadline) = self.shard.next_deadline()
            && deadline < at
        {
            self.now = self.now.max(deadline);
            self.step(|shard, now, rules, out| shard.advance(now, rules, out))?;
        }
        self.now = self.now.max(at);
        Ok(())
    }

    fn step(
        &mut self,
        act: impl FnOnce(&mut Shard, u64, &mut Pipeline, &mut Vec<Output>),
    ) -> anyhow::Result<()> {
        let mut outputs = Vec::new();
        act(&mut self.shard, self.now, &mut self.rules, &mut outputs);
        for output in outputs {
            let Some(source) = &self.source else { continue };
            let (subject, headers, body) = match output {
                Output::Publish(publication) => {
                    let standing = source.standing_headers();
                    let standing = standing.map(|(name, value)| (name, value.to_owned()));
                    let own = source.own_headers(&publication);
                    let subject = source.subject(&publication).to_string();
                    let headers: Vec<_> = standing.into_iter().chain(own).collect();
                    (subject, headers, publication.body)
                }
                Output::Deliver(delivery) => {
                    let (subject, headers) = source.delivery(&delivery);
                    (subject, headers.into(), delivery.body)
                }
                Output::Reply(..) | Output::Fetch(_) => continue,
            };
            let headers = headers.into_iter();
            let data: &RawValue = serde_json::from_slice(&body)?;
            let published = Published {
                at: self.now,
                subject: &subject,
                headers: headers
                    .map(|(name, value)| (name.into(), value.into()))
                    .collect(),
                data,
            };
            serde_json::to_writer(&mut self.out, &published)?;
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }
}
