//! A child process. Its output is recorded line by line, its end can be asserted, and it is killed
//! when dropped.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, kill_process};

pub use rustix::process::Signal;

use crate::{tools, wait};

/// A child process and its output so far: standard output and standard error, each in its order.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    stdout: Lines,
    stderr: Lines,
}

impl Process {
    /// Starts a command, with nothing on its standard input.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn(name: impl Into<String>, command: &mut Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let line = tools::line(command);
        let mut child = command
            .spawn()
            .with_context(|| format!("starting `{line}`"))?;
        let stdout = Lines::of(child.stdout.take());
        let stderr = Lines::of(child.stderr.take());
        Ok(Self {
            name: name.into(),
            child,
            stdout,
            stderr,
        })
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line on standard output that `wanted` accepts.
    ///
    /// # Errors
    /// When the process ends without one, or doesn't write one in time.
    pub async fn wait_for_stdout(
        &mut self,
        what: &str,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        self.wait_for(what, |process| process.stdout.find(0, &wanted))
            .await
    }

    /// Waits for a line on standard error, from the line numbered `from`, that
    /// `wanted` accepts.
    ///
    /// # Errors
    /// When the process ends without one, or doesn't write one in time.
    pub async fn wait_for_log(
        &mut self,
        what: &str,
        from: usize,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<String> {
        self.wait_for(what, |process| process.stderr.find(from, &wanted))
            .await
    }

    /// Waits for a line with these words, on standard output or standard error.
    ///
    /// # Errors
    /// When the process ends without one, or doesn't write one in time.
    pub async fn wait_for_words(&mut self, words: &str) -> Result<String> {
        let says = |line: &str| line.contains(words);
        let what = format!("a line with `{words}`");
        let find = |process: &Self| {
            let stdout = process.stdout.find(0, says);
            stdout.or_else(|| process.stderr.find(0, says))
        };
        self.wait_for(&what, find).await
    }

    /// What it has written to standard output.
    #[must_use]
    pub fn stdout(&self) -> Vec<String> {
        self.stdout.lock().clone()
    }

    /// What it has written to standard error.
    #[must_use]
    pub fn stderr(&self) -> Vec<String> {
        self.stderr.lock().clone()
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// When the system doesn't say.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it ends, and until all its output is read.
    ///
    /// # Errors
    /// When it doesn't end in time.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        let what = format!("{} to end", self.name);
        let ended = wait::until(&what, async || self.ended()).await;
        let status = ended.with_context(|| self.log_tail())?;
        self.stdout.finish();
        self.stderr.finish();
        Ok(status)
    }

    /// Sends it SIGTERM, as an operator's service manager does.
    ///
    /// # Errors
    /// When it can't be signalled.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// Sends it SIGTERM, and waits for a clean end.
    ///
    /// # Errors
    /// When its exit code isn't 0, or it doesn't end.
    pub async fn stop(&mut self) -> Result<()> {
        self.terminate()?;
        let status = self.wait().await?;
        if !status.success() {
            bail!(
                "{} should exit 0 on SIGTERM, but: {status}\n{}",
                self.name,
                self.log_tail()
            );
        }
        Ok(())
    }

    /// Kills it without warning.
    ///
    /// # Errors
    /// When it can't be killed.
    pub async fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.wait().await.map(drop)
    }

    /// The end of its log, for errors.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let lines = self.stderr.lock();
        let last = lines.iter().skip(lines.len().saturating_sub(15));
        let text = last
            .map(|line| format!("  | {line}"))
            .collect::<Vec<_>>()
            .join("\n");
        format!("the end of {}'s log:\n{text}", self.name)
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it can't be signalled.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).with_context(|| format!("signalling {}", self.name))
    }

    async fn wait_for<T>(&mut self, what: &str, probe: impl Fn(&Self) -> Option<T>) -> Result<T> {
        let what = format!("{}: {what}", self.name);
        let found = wait::until(&what, async || {
            // Checks the end first: then all that was written before the end is there.
            let ended = self.ended()?;
            if ended.is_some() {
                self.stdout.finish();
                self.stderr.finish();
            }
            match (probe(self), ended) {
                (Some(answer), _) => Ok(Some(answer)),
                (None, None) => Ok(None),
                (None, Some(status)) => bail!("{} ended ({status}) before: {what}", self.name),
            }
        })
        .await;
        found.with_context(|| self.log_tail())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already. If it can't be killed, there is nobody to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Lines that a thread reads from a pipe.
#[derive(Debug)]
struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Lines {
    fn of(pipe: Option<impl Read + Send + 'static>) -> Self {
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let sink = Arc::clone(&lines);
        let reader = pipe.map(|pipe| {
            std::thread::spawn(move || {
                for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    sink.lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(line);
                }
            })
        });
        Self { lines, reader }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, from: usize, wanted: impl Fn(&str) -> bool) -> Option<String> {
        self.lock()
            .iter()
            .skip(from)
            .find(|line| wanted(line))
            .cloned()
    }

    /// Waits for the pipe's end, after its writer has ended.
    fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
