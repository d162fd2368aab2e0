//! The host as a process: `presence run` in a site, and its other commands.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::Value;

use crate::process::Process;
use crate::site::Site;
use crate::{http, tools, wait};

/// A running host.
#[derive(Debug)]
pub struct Host {
    /// The process, with its log.
    pub process: Process,
    http_port: u16,
}

impl Host {
    /// Starts a host and waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends or doesn't get ready; the error carries the end of its log.
    pub async fn start(site: &Site) -> Result<Self> {
        let mut host = Self::spawn(site)?;
        host.ready().await?;
        Ok(host)
    }

    /// As [`Self::start`], with another binary.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_of(site: &Site, binary: &Path) -> Result<Self> {
        let mut host = Self::spawn_as(site, command_of(site, &["run"], binary))?;
        host.ready().await?;
        Ok(host)
    }

    /// Starts a host.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn(site: &Site) -> Result<Self> {
        Self::spawn_as(site, command(site, &["run"])?)
    }

    /// As [`Self::spawn`], with further variables in its environment.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn_with(site: &Site, variables: &[(&OsStr, &OsStr)]) -> Result<Self> {
        let mut command = command(site, &["run"])?;
        command.envs(variables.iter().copied());
        Self::spawn_as(site, command)
    }

    /// As [`Self::spawn`], with at most this many file descriptors.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn_within(site: &Site, files_max: u32) -> Result<Self> {
        Self::spawn_under(site, &format!("ulimit -n {files_max}"))
    }

    /// As [`Self::spawn`], with a limit on the length of files of 4 or 8 MiB (shells differ), as on
    /// a full disk. [`Self::limit_files`] lifts the limit.
    ///
    /// # Errors
    /// When it can't be started.
    pub fn spawn_on_full_disk(site: &Site) -> Result<Self> {
        Self::spawn_under(site, "ulimit -S -f 8192")
    }

    /// Limits the length of the host's files. `None` lifts the limit.
    ///
    /// # Errors
    /// When the system doesn't permit it.
    pub fn limit_files(&self, bytes: Option<u64>) -> Result<()> {
        let id = i32::try_from(self.process.id())
            .ok()
            .and_then(Pid::from_raw);
        let maximum = getrlimit(Resource::Fsize).maximum;
        let limit = Rlimit {
            current: bytes.or(maximum),
            maximum,
        };
        prlimit(id, Resource::Fsize, limit).context("limiting the files' size")?;
        Ok(())
    }

    /// As [`Self::spawn`], after a shell's command has been run in the same process.
    fn spawn_under(site: &Site, first: &str) -> Result<Self> {
        let host = command(site, &["run"])?;
        let mut shell = Command::new("sh");
        let script = format!("{first} && exec \"$0\" \"$@\"");
        shell.arg("-c").arg(script).arg(host.get_program());
        shell.args(host.get_args());
        for (name, value) in host.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        Self::spawn_as(site, shell)
    }

    fn spawn_as(site: &Site, mut command: Command) -> Result<Self> {
        let process = Process::spawn("presence", &mut command)?;
        Ok(Self {
            process,
            http_port: site.http_port(),
        })
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// When the host ends, or doesn't get ready.
    pub async fn ready(&mut self) -> Result<()> {
        self.answers("/readyz", 200).await
    }

    /// Waits until `/readyz` answers 503: the host has noticed a problem.
    ///
    /// # Errors
    /// When the host ends, or stays ready.
    pub async fn unready(&mut self) -> Result<()> {
        self.answers("/readyz", 503).await
    }

    /// Waits until a path answers with a status.
    ///
    /// # Errors
    /// When the host ends, or the answer doesn't become this one.
    pub async fn answers(&mut self, path: &str, status: u16) -> Result<()> {
        let what = format!("presence to answer {path} with {status}");
        let answered = wait::until(&what, async || {
            if let Some(status) = self.process.ended()? {
                bail!("it ended: {status}");
            }
            let answer = http::get(self.http_port, path).await;
            Ok(answer
                .is_ok_and(|answer| answer.status == status)
                .then_some(()))
        })
        .await;
        answered.with_context(|| self.process.log_tail())
    }

    /// Waits until `/readyz` answers 503, with a reason that contains `why`.
    ///
    /// # Errors
    /// When the host ends, or doesn't answer this.
    pub async fn unready_because(&mut self, why: &str) -> Result<()> {
        let what = format!("presence not to be ready, since {why}");
        let said = wait::until(&what, async || {
            if let Some(status) = self.process.ended()? {
                bail!("it ended: {status}");
            }
            let answer = http::get(self.http_port, "/readyz").await;
            let is = |answer: http::Response| answer.status == 503 && answer.body.contains(why);
            Ok(answer.is_ok_and(is).then_some(()))
        })
        .await;
        said.with_context(|| self.process.log_tail())
    }

    /// What `/metrics` says now.
    ///
    /// # Errors
    /// When it doesn't answer.
    pub async fn metrics(&self) -> Result<String> {
        let answer = http::get(self.http_port, "/metrics")
            .await
            .context("reading /metrics")?;
        Ok(answer.body)
    }

    /// What `/status` says now.
    ///
    /// # Errors
    /// When it doesn't answer in JSON.
    pub async fn status(&self) -> Result<Value> {
        let answer = http::get(self.http_port, "/status").await;
        let answer = answer.context("reading /status")?;
        serde_json::from_str(&answer.body).context(answer.body)
    }

    /// A metric's value now: the sum of its samples with these labels.
    ///
    /// # Errors
    /// As [`Self::metrics`].
    pub async fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(http::metric(&self.metrics().await?, name, labels))
    }

    /// Waits until `is` holds for a metric's value.
    ///
    /// # Errors
    /// When it doesn't hold in time.
    pub async fn until_metric(
        &self,
        name: &str,
        labels: &[&str],
        is: impl Fn(f64) -> bool,
    ) -> Result<()> {
        wait::until(&format!("{name} to be as it should be"), async || {
            Ok(is(self.metric(name, labels).await?).then_some(()))
        })
        .await
    }

    /// Waits until it has written this many records of its state since it started.
    ///
    /// # Errors
    /// When it doesn't in time.
    pub async fn until_saved(&self, records: f64) -> Result<()> {
        self.until_metric("presence_state_records_total", &[], |it| it >= records)
            .await
    }

    /// How many lines the log has. Later lines are found from this number on.
    #[must_use]
    pub fn log_len(&self) -> usize {
        self.process.stderr().len()
    }

    /// Waits for a line of the log, from line `from` on, that holds all of
    /// `words`, whatever their case.
    ///
    /// # Errors
    /// When the host ends without one, or doesn't write one in time.
    pub async fn wait_for_log(&mut self, from: usize, words: &[&str]) -> Result<String> {
        let what = format!("a log line with {words:?}");
        let wanted = |line: &str| {
            let line = line.to_lowercase();
            words.iter().all(|word| line.contains(&word.to_lowercase()))
        };
        self.process.wait_for_log(&what, from, wanted).await
    }

    /// Stops it as an operator does, and asserts a clean end.
    ///
    /// # Errors
    /// When it ends otherwise than with exit code 0.
    pub async fn stop(mut self) -> Result<()> {
        self.process.stop().await
    }

    /// Kills it without warning.
    ///
    /// # Errors
    /// When it can't be killed.
    pub async fn kill(mut self) -> Result<()> {
        self.process.kill().await
    }
}

/// Runs one of the host's commands to its end, with `--config` for the site.
///
/// # Errors
/// When it can't be run.
pub fn run(site: &Site, args: &[&str]) -> Result<Output> {
    let mut command = command(site, args)?;
    command
        .output()
        .with_context(|| format!("running `{}`", tools::line(&command)))
}

/// Starts one of the host's commands.
///
/// # Errors
/// When it can't be started.
pub fn start(site: &Site, args: &[&str]) -> Result<Process> {
    let name = format!("presence {}", args.first().unwrap_or(&""));
    Process::spawn(name, &mut command(site, args)?)
}

/// One of the host's commands, to be started.
///
/// # Errors
/// When the binary can't be built.
pub fn command(site: &Site, args: &[&str]) -> Result<Command> {
    Ok(command_of(site, args, &binary()?))
}

fn command_of(site: &Site, args: &[&str], binary: &Path) -> Command {
    let mut command = Command::new(binary);
    command.args(args).arg("--config").arg(site.config_path());
    // The environment of the tests must not change what is tested.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PRESENCE_") {
            command.env_remove(name);
        }
    }
    command
        .env("NO_COLOR", "1")
        .env("XDG_STATE_HOME", tools::user_state())
        .env("PRESENCE_CLOCK_OFFSET_FILE", site.clock_offset_path())
        .env_remove("RUST_LOG");
    command
}

/// The host's binary: `PRESENCE_BIN`, or one that is built once per process.
///
/// # Errors
/// When it can't be built.
pub fn binary() -> Result<PathBuf> {
    static BUILT: Mutex<Option<PathBuf>> = Mutex::new(None);
    if let Some(named) = std::env::var_os("PRESENCE_BIN") {
        return Ok(named.into());
    }
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    match &*built {
        Some(path) => Ok(path.clone()),
        None => Ok(built.insert(tools::build("presence", &[])?).clone()),
    }
}
