//! The host's state for one component instance during a call: the event, the directory, and the
//! audiences made so far. It also records what the call reads.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use presence_core::audience::Audience;
use presence_core::directory::{CacheMiss, Directory, Question};
use presence_core::event::Event;
use presence_core::metadata;
use presence_core::names::{Id, Names};
use presence_core::rules::{Context, Reads};
use wasmtime::{Result, bail};

use crate::lines::{LINES_MAX as LINES_MAX_OF_ALL, Lines, WINDOW_MS};
use crate::memory::Memory;
use crate::pause::Deadline;
use crate::recorder::LineKind;
use crate::trace::TraceRecorder;

/// How many audiences one call may make.
const AUDIENCES_MAX: u32 = 65_536;

/// How many new metadata keys and directory questions one call may add to the reads of its
/// decision, which the host keeps with the verdict.
const READS_MAX: usize = 16_384;

/// How many uncached answers one decision may ask for at a time. When they have been fetched, the
/// decision is made again, and may ask for more.
const FETCHED_MAX: usize = 1_024;

/// How many bytes the keys, groups and settings that one call names may have together.
const READ_BYTES_MAX: usize = 65_536;

/// How many renditions a redactor may return, how many keys these may have in all, and how many
/// bytes these keys may have together.
const RENDITIONS_MAX: usize = 256;
const RENDITION_KEYS_MAX: usize = 4_096;
const RENDITION_BYTES_MAX: usize = 65_536;

/// How many log lines and reasons one call may write, and how many bytes of each are kept.
const LINES_MAX: usize = 16;
const LINE_BYTES_MAX: usize = 1_024;

/// How many viewers a recorded reason names at most.
const VIEWERS_NAMED: usize = 10;

/// The data in an instance's store.
pub(crate) struct Call {
    pub(crate) plugin: Arc<str>,
    pub(crate) memory: Memory,
    pub(crate) deadline: Deadline,
    /// The context of the call. It is kept until the next call, which mostly is about the same
    /// directory. `None` while the plugin is configured, or hands over its state.
    context: Option<CallContext>,
    audiences: Vec<Audience>,
    /// The token of the first audience of this call. The tokens of earlier calls are below it, so
    /// that a component can't use one of them for other data.
    base: u32,
    lines: usize,
    /// The last line that this call has logged as an error.
    last_error: Option<ErrorLine>,
    /// The log lines of all instances of the plugin, and the monotonic time of this call, by which
    /// their rate is limited.
    log: Arc<Lines>,
    monotonic: u64,
    /// How many new keys and questions this call has read, and how many bytes they have.
    reads: usize,
    read_bytes: usize,
    /// How large enrichers may make an event's metadata.
    metadata: metadata::Limits,
    /// What this call and the earlier calls of the same decision have read, and their cache misses.
    pub(crate) observed: Observations,
    /// How long the answers of the earlier calls of the same decision hold. It is kept apart, since
    /// `reconsider-at` in this call only holds for the answer of this call.
    earlier_times: Reads,
}

/// A line that a call has logged as an error.
struct ErrorLine {
    text: String,
    /// Whether the log may get it: it is within the limit of lines of the call.
    is_due: bool,
}

/// One call of a stage, for a trace.
#[derive(Clone, Debug)]
pub struct StageCall {
    /// The plugin that was called: the last good generation if it has taken over.
    pub plugin: Arc<str>,
    /// Its role, in one word.
    pub role: &'static str,
    /// When the call began.
    pub began: Instant,
    /// How long it took.
    pub took: Duration,
    /// Whether it failed. The error is left out, since it may name users.
    pub has_failed: bool,
}

/// What the calls of one decision have read, and their cache misses.
#[derive(Default)]
pub(crate) struct Observations {
    pub(crate) reads: Reads,
    pub(crate) cache_misses: BTreeSet<Question>,
    /// Set for an explanation: records what the stages do to one viewer, and why.
    pub(crate) trace: Option<Box<TraceRecorder>>,
    /// The fuel that the calls used.
    pub(crate) fuel: u64,
    /// Whether the calls are left out of the health of their plugins: neither failures nor
    /// latencies are counted.
    pub(crate) is_uncounted: bool,
    /// The calls, if they are noted. `None` otherwise.
    pub(crate) calls: Option<Vec<StageCall>>,
}

impl Observations {
    /// Whether an answer wasn't cached, so that the decision will be made again.
    pub(crate) fn is_speculative(&self) -> bool {
        !self.cache_misses.is_empty()
    }
}

pub(crate) struct CallContext {
    pub(crate) now: u64,
    pub(crate) event: Arc<Event>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) names: Arc<Names>,
}

impl Call {
    /// The data in a new store of this plugin. `log` has the plugin's log lines.
    pub(crate) fn new(
        plugin: Arc<str>,
        log: Arc<Lines>,
        memory: Memory,
        deadline: Deadline,
        metadata: metadata::Limits,
    ) -> Self {
        Self {
            plugin,
            log,
            monotonic: 0,
            memory,
            deadline,
            context: None,
            audiences: Vec::new(),
            base: 1,
            lines: 0,
            last_error: None,
            reads: 0,
            read_bytes: 0,
            metadata,
            observed: Observations::default(),
            earlier_times: Reads::default(),
        }
    }

    /// Begins a call. Takes over what the earlier calls of the decision have observed, and adds to
    /// it.
    pub(crate) fn begin(&mut self, context: Context<'_>, observed: &mut Observations) {
        match &mut self.context {
            Some(kept) => {
                kept.now = context.now;
                share(&mut kept.event, context.event);
                share(&mut kept.directory, context.directory);
                share(&mut kept.names, context.names);
            }
            None => {
                self.context = Some(CallContext {
                    now: context.now,
                    event: Arc::clone(context.event),
                    directory: Arc::clone(context.directory),
                    names: Arc::clone(context.names),
                });
            }
        }
        (self.lines, self.reads, self.read_bytes) = (0, 0, 0);
        self.last_error = None;
        self.monotonic = context.monotonic;
        if let Some(left_out) = self.log.left_out(self.monotonic) {
            let plugin = &*self.plugin;
            tracing::warn!(
                plugin,
                left_out,
                "it wrote more than {LINES_MAX_OF_ALL} lines in {} s, and the rest were left out",
                WINDOW_MS / 1_000
            );
        }
        self.observed = std::mem::take(observed);
        self.earlier_times = self.observed.reads.take_times();
    }

    /// Begins a call that is about no event.
    pub(crate) fn begin_without_event(&mut self) {
        self.context = None;
        self.lines = 0;
        self.last_error = None;
    }

    /// Ends a call: makes its tokens invalid, and gives back what was observed.
    pub(crate) fn end(&mut self, observed: &mut Observations) {
        *observed = std::mem::take(&mut self.observed);
        // Adds the questions and keys to `earlier_times`, which has none: appending to an empty set
        // costs nothing.
        let reads = std::mem::replace(&mut observed.reads, std::mem::take(&mut self.earlier_times));
        observed.reads.add(reads);
        self.base = self.next_token();
        self.audiences.clear();
    }

    /// Whether enough tokens are left for another call. No token is used twice in an instance,
    /// since a component could have kept it.
    pub(crate) fn has_tokens(&self) -> bool {
        self.base < u32::MAX - AUDIENCES_MAX
    }

    pub(crate) fn context(&self) -> Result<&CallContext> {
        match &self.context {
            Some(context) => Ok(context),
            None => bail!(
                "there is no event to ask about while a plugin is configured or hands over its state"
            ),
        }
    }

    pub(crate) fn put(&mut self, audience: Audience) -> Result<u32> {
        let token = self.next_token();
        if token - self.base >= AUDIENCES_MAX {
            bail!("made more than {AUDIENCES_MAX} audiences in one call");
        }
        self.audiences.push(audience);
        Ok(token)
    }

    pub(crate) fn audience(&self, token: u32) -> Result<&Audience> {
        let place = token.checked_sub(self.base).map(|place| place as usize);
        match place.and_then(|place| self.audiences.get(place)) {
            Some(audience) => Ok(audience),
            None => bail!("used an audience that is not of this call"),
        }
    }

    /// The interned number of a user. A new id is interned, unless it is too many.
    pub(crate) fn user(&self, name: &str) -> Result<Id> {
        let context = self.context()?;
        if context.event.name.is(name) {
            return Ok(context.event.user);
        }
        let Some(id) = context.names.intern_named(name) else {
            bail!(
                "named more new ids than there is room for: those of no use are freed in seconds"
            );
        };
        Ok(id)
    }

    /// The interned number of a user. `None` if the id is not interned.
    pub(crate) fn known_user(&self, name: &str) -> Result<Option<Id>> {
        Ok(self.context()?.names.find(name))
    }

    /// Asks the directory. If the answer isn't cached, the call goes on with an empty audience, and
    /// its outcome is discarded.
    pub(crate) fn ask(&mut self, question: Question) -> Result<u32> {
        let answer = self.context()?.directory.audience(&question);
        self.read(question, answer.is_ok())?;
        self.put(answer.unwrap_or_else(|CacheMiss| Audience::nobody()))
    }

    /// Records a question to the directory, and whether its answer was cached.
    pub(crate) fn read(&mut self, question: Question, is_cached: bool) -> Result<()> {
        if !is_cached && !self.observed.cache_misses.contains(&question) {
            if self.observed.cache_misses.len() >= FETCHED_MAX {
                bail!("asked for more than {FETCHED_MAX} answers that are not at hand");
            }
            self.observed.cache_misses.insert(question.clone());
        }
        let bytes = match &question {
            Question::Members(group) => group.len(),
            Question::WithSetting(setting) => setting.key().len() + setting.value().len(),
            _ => 0,
        };
        let is_new = self.observed.reads.questions.insert(question);
        self.count_read(is_new, bytes)
    }

    /// Records that the metadata under a key is read.
    pub(crate) fn read_key(&mut self, key: Box<str>) -> Result<()> {
        let bytes = key.len();
        let is_new = self.observed.reads.keys.insert(key);
        self.count_read(is_new, bytes)
    }

    fn count_read(&mut self, is_new: bool, bytes: usize) -> Result<()> {
        if is_new {
            self.reads += 1;
            self.read_bytes += bytes;
        }
        if self.reads > READS_MAX {
            bail!("read more than {READS_MAX} keys and answers in one call");
        }
        if self.read_bytes > READ_BYTES_MAX {
            bail!(
                "named keys, groups and settings of more than {READ_BYTES_MAX} bytes in one call"
            );
        }
        Ok(())
    }

    /// Fails if an enricher makes too many changes. The limit is twice that of the metadata: all
    /// old keys may be removed, and as many new ones set.
    pub(crate) fn check_changes(&self, changes: usize, bytes: usize) -> Result<()> {
        let (max, bytes_max) = (2 * self.metadata.keys, 2 * self.metadata.bytes);
        if changes > max {
            bail!("made {changes} changes in one call, and may make {max}");
        }
        if bytes > bytes_max {
            bail!("made changes of {bytes} bytes in one call, and may make {bytes_max}");
        }
        Ok(())
    }

    /// Fails if the answer of a redactor is too large.
    pub(crate) fn check_renditions(&self, parts: usize, keys: usize, bytes: usize) -> Result<()> {
        for (what, has, max) in [
            ("renditions", parts, RENDITIONS_MAX),
            ("keys in its renditions", keys, RENDITION_KEYS_MAX),
            (
                "bytes of keys in its renditions",
                bytes,
                RENDITION_BYTES_MAX,
            ),
        ] {
            if has > max {
                bail!("answered with {has} {what}, and may with {max}");
            }
        }
        Ok(())
    }

    /// Counts a log line or a reason. Returns whether this call may write it.
    pub(crate) fn admit_line(&mut self) -> bool {
        self.lines += 1;
        self.lines <= LINES_MAX
    }

    /// Counts a log line of the plugin, over all its calls. Returns whether the log has room for
    /// it.
    pub(crate) fn has_room_in_log(&self) -> bool {
        self.log.admit(self.monotonic)
    }

    /// Keeps a line of level `error`, to be written when the call ends. Writes the one that was
    /// kept before.
    pub(crate) fn note_error(&mut self, text: String, is_due: bool) {
        self.log_error();
        self.last_error = Some(ErrorLine { text, is_due });
    }

    /// The last line that this call has logged as an error.
    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_ref().map(|line| &*line.text)
    }

    /// Writes the kept line of level `error` to the log, because it isn't the reason of a failure.
    pub(crate) fn log_error(&self) {
        if let Some(line) = &self.last_error
            && line.is_due
            && tracing::enabled!(target: "plugin", tracing::Level::ERROR)
            && self.has_room_in_log()
        {
            tracing::error!(target: "plugin", plugin = &*self.plugin, "{}", line.text);
        }
    }

    /// Passes a line to the recorder, if an author tries the plugin.
    pub(crate) fn record(&self, kind: LineKind, text: &str) {
        self.log.record(kind, text);
    }

    /// Passes a reason to the recorder, if an author tries the plugin. It is about these viewers
    /// alone, or about the event if `viewers` is `None`.
    pub(crate) fn record_reason(&self, viewers: Option<&Audience>, reason: &str) {
        if !self.log.is_recorded() {
            return;
        }
        let (Some(viewers), Some(context)) = (viewers, &self.context) else {
            return self.record(LineKind::Explained, reason);
        };
        let names = context.names.read();
        let named = viewers
            .ids()
            .take(VIEWERS_NAMED)
            .filter_map(|id| names.name(id));
        let mut named: Vec<_> = named.map(|name| name.as_str()).collect();
        if viewers.len() > VIEWERS_NAMED as u64 {
            named.push("…");
        }
        let whom = named.join(", ");
        self.record(LineKind::ExplainedFor, &format!("{whom}: {reason}"));
    }

    /// Adds a reason to the explanation, if there is one. It is about these viewers alone, or about
    /// the event if `viewers` is `None`.
    pub(crate) fn give_reason(&mut self, viewers: Option<&Audience>, reason: String) {
        if let Some(trace) = &mut self.observed.trace {
            trace.add_reason(viewers, reason);
        }
    }

    fn next_token(&self) -> u32 {
        let made = u32::try_from(self.audiences.len()).unwrap_or(u32::MAX);
        self.base.saturating_add(made)
    }
}

/// Replaces `kept` by `given`, unless they are the same: comparing is cheaper than counting
/// references.
fn share<T>(kept: &mut Arc<T>, given: &Arc<T>) {
    if !Arc::ptr_eq(kept, given) {
        *kept = Arc::clone(given);
    }
}

/// The beginning of a line, up to `LINE_BYTES_MAX` bytes.
pub(crate) fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(LINE_BYTES_MAX))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_token_is_used_twice_however_many_are_made() {
        let mut call = Call::new(
            "rule".into(),
            Arc::default(),
            Memory::new(0, &Default::default()),
            Deadline::default(),
            Default::default(),
        );
        call.base = u32::MAX - AUDIENCES_MAX - 1;
        assert!(call.has_tokens());
        let first = call.put(Audience::nobody()).unwrap();
        for _ in 1..AUDIENCES_MAX {
            call.put(Audience::nobody()).unwrap();
        }
        assert!(call.put(Audience::nobody()).is_err());
        assert!(call.audience(first).is_ok());
        call.end(&mut Observations::default());
        assert!(!call.has_tokens());
        assert!(call.audience(first).is_err());
    }
}
