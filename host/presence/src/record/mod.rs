//! `presence record`: writes the input of a live system to a file, for a replay.

mod limits;
mod redact;

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::builder::RangedU64ValueParser;
use presence_config::Config;
use presence_config::capture::{self, Recorded};
use presence_config::directory::Export;
use presence_config::escape::{eprint_line, json_output};
use presence_config::subjects::Subjects;
use presence_core::names::Names;
use presence_kit::ConfigArg;
use presence_kit::figures;
use presence_node::clock;
use presence_node::link::tap::{Tap, TappedMessage};
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments;
use crate::tenant;
use limits::{Budget, EndReason};
use redact::Redaction;

/// How often buffered lines are flushed, so that the file can be followed.
const FLUSH_EVERY: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The file to write, which must not exist yet, or - for standard output.
    file: PathBuf,
    /// For how long to record at most: 500ms, 90s, 15m, 2h.
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = limits::span)]
    time: Duration,
    /// How many messages to record at most.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = RangedU64ValueParser::<u64>::new().range(1..))]
    messages: u64,
    /// How many bytes to write at most: 65536, 500k, 64MiB. KiB, MiB and GiB count in
    /// powers of 1024; k, M and G (or kB, MB and GB) in powers of 1000.
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = arguments::size)]
    bytes: u64,
    /// Also writes the directory as it is when the recording begins, to a file that must not exist
    /// yet.
    #[arg(long, value_name = "FILE")]
    directory: Option<PathBuf>,
    /// Replaces ids by pseudonyms, and leaves out metadata, settings that no built-in plugin
    /// reads, and messages that the processor would refuse.
    #[arg(long)]
    redact: bool,
    /// A metadata key or a setting that --redact keeps. Can be given several times.
    #[arg(long, value_name = "KEY", requires = "redact")]
    keep: Vec<String>,
    #[command(flatten)]
    config: ConfigArg,
}

/// Records until the first limit is reached, or a signal arrives.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let config = tenant::load_now(&args.config)?;
    crate::runtime::wait_for(record(args, &config))
}

async fn record(args: &Args, config: &Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let redaction = args.redact.then(|| Redaction::new(&args.keep));
    let redaction = redaction.transpose()?;
    let subjects = Subjects::new(config.tenant.prefix.as_deref());
    // One subscription for all subjects, as in the processor itself, keeps the order between
    // subjects.
    let subject = subjects.of("presence.>");
    let mut tap = Tap::open(config, "presence record", &subject).await?;
    if let Some(path) = &args.directory {
        write_directory(path, config, &tap, redaction.as_ref()).await?;
    }
    let (out, place): (Box<dyn Write>, _) = if args.file == Path::new("-") {
        (Box::new(json_output()), "standard output".into())
    } else {
        let file = capture::create(&args.file)?;
        (Box::new(file), args.file.display().to_string())
    };
    eprint_line(format_args!("recording {subject} to {place}"));
    let begin = Instant::now();
    let mut recorder = Recorder {
        subjects,
        redaction,
        budget: Budget {
            messages_max: args.messages,
            bytes_max: args.bytes,
            messages: 0,
            bytes: 0,
        },
        left_out: 0,
        out: BufWriter::new(out),
    };
    let time_is_up = tokio::time::sleep(args.time);
    tokio::pin!(time_is_up);
    let mut flush = tokio::time::interval(FLUSH_EVERY);
    let ended = loop {
        let received = tokio::select! {
            biased;
            _ = terminate.recv() => break EndReason::Signal,
            _ = interrupt.recv() => break EndReason::Signal,
            () = &mut time_is_up => break EndReason::Time,
            _ = flush.tick() => {
                recorder.flush()?;
                continue;
            }
            received = tap.next() => received,
        };
        let Some(received) = received else {
            break EndReason::Closed;
        };
        if let Some(ended) = recorder.take(received)? {
            break ended;
        }
    };
    recorder.flush()?;
    let Budget {
        messages, bytes, ..
    } = recorder.budget;
    eprint_line(format_args!(
        "recorded {} message{} ({}) in {}: {}",
        figures::grouped(messages),
        if messages == 1 { "" } else { "s" },
        figures::bytes(bytes),
        figures::time(begin.elapsed()),
        ended.as_str()
    ));
    for warning in recorder.left_out().into_iter().chain(tap.gaps()) {
        eprint_line(format_args!("warning: {warning}"));
    }
    Ok(())
}

struct Recorder<W: Write> {
    subjects: Subjects,
    redaction: Option<Redaction>,
    budget: Budget,
    /// How many messages couldn't be redacted.
    left_out: u64,
    out: BufWriter<W>,
}

impl<W: Write> Recorder<W> {
    /// Writes a message to the file if it is input, and not from a node. Returns the reason if the
    /// recording ends.
    fn take(&mut self, received: TappedMessage) -> anyhow::Result<Option<EndReason>> {
        let kind = self.subjects.kind(&received.subject);
        let Some(kind) = kind.filter(|_| !received.is_nodes) else {
            return Ok(None);
        };
        let mut recorded = Recorded {
            at: clock::now_ms(),
            subject: received.subject,
            payload: received.payload,
            is_from_node: received.is_nodes,
        };
        if let Some(redaction) = &self.redaction {
            let Some(body) = redaction.body(kind, &recorded.payload) else {
                self.left_out += 1;
                return Ok(None);
            };
            recorded.payload = body.into();
        }
        let line = recorded.line()?;
        if let Err(ended) = self.budget.take(line.len()) {
            return Ok(Some(ended));
        }
        self.out.write_all(&line).context(CANT_WRITE)?;
        Ok(self.budget.is_full().then_some(EndReason::Messages))
    }

    fn flush(&mut self) -> anyhow::Result<()> {
        self.out.flush().context(CANT_WRITE)
    }

    fn left_out(&self) -> Option<String> {
        let left_out = figures::grouped(self.left_out);
        (self.left_out > 0).then(|| {
            format!("left out, since presence would refuse them and what they hold can't be told: {left_out}")
        })
    }
}

const CANT_WRITE: &str = "can't write what is recorded";

/// Writes the directory as it is now.
async fn write_directory(
    path: &Path,
    config: &Config,
    tap: &Tap,
    redaction: Option<&Redaction>,
) -> anyhow::Result<()> {
    let names = Names::new();
    let directory = tap.directory(config, &names).await?;
    let mut export = Export::of(&directory, &names);
    if let Some(redaction) = redaction {
        export = redaction.directory(export);
    }
    let mut out = BufWriter::new(capture::create(path)?);
    let written = serde_json::to_writer(&mut out, &export).map_err(Into::into);
    let written = written.and_then(|()| out.flush());
    written.with_context(|| format!("can't write {}", path.display()))
}
