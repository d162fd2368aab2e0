//! Runs a page's blocks, one after the other, in a folder of their own.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use presence_tests::process::Process;
use presence_tests::{host, kit, nats, node, tools};
use serde_json::Value;
use tempfile::TempDir;

use super::page::Block;

/// The state of a reader who follows a page.
pub(super) struct Script {
    /// The commands that run in other terminals, with their processes. The newest is first.
    terminals: Vec<(String, Process)>,
    around: TempDir,
    /// The current folder.
    at: PathBuf,
    variables: Vec<(&'static str, OsString)>,
    /// The output of the last command.
    output: String,
    /// The last file that was written, if nothing has been done with it yet.
    untried: Option<String>,
    /// Whether plugins are written in Rust, and the turns to build them (see `kit::turn`).
    is_rust: bool,
    turns: Vec<File>,
}

impl Script {
    /// A reader who has a language's tools, and doesn't have `presence` yet.
    pub(super) fn new(language: &str) -> Result<Self> {
        let around = tempfile::Builder::new()
            .prefix("presence-guide-")
            .tempdir()?;
        let at = around.path().join("work");
        let bin = around.path().join("bin");
        fs::create_dir(&at)?;
        fs::create_dir(&bin)?;
        let mut variables = Vec::new();
        // The pages of other languages install their tools.
        if language == "rust" {
            variables = kit::variables(language)?;
        }
        let mut path = vec![bin];
        path.extend(std::env::split_paths(
            &std::env::var_os("PATH").unwrap_or_default(),
        ));
        variables.push(("PATH", std::env::join_paths(path)?));
        let port = tools::free_port()?;
        let url = format!("nats://127.0.0.1:{port}");
        variables.push(("PRESENCE_NATS_URL", url.into()));
        variables.push(("PRESENCE_PLUGINS_CACHE", tools::compiled().into()));
        let script = Self {
            terminals: Vec::new(),
            around,
            at,
            variables,
            output: String::new(),
            untried: None,
            is_rust: language == "rust",
            turns: Vec::new(),
        };
        script.stand_ins(port)?;
        Ok(script)
    }

    /// Commands that run the real ones, except for what a test can't have: minutes of compiling, a
    /// toolchain of its own, NATS on its usual port, and the `nats` command, for which npm's client
    /// stands in.
    fn stand_ins(&self, port: u16) -> Result<()> {
        let quoted = |path: &Path| format!("'{}'", path.display());
        // A version manager's shim may search the path for what it runs, and would find the
        // stand-in there. So the stand-in gets the original path.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        // The absolute path: the stand-in comes first on the path.
        let mut folders = std::env::split_paths(&path).map(|folder| folder.join(&cargo));
        let cargo = folders.find(|it| it.is_file()).context("finding cargo")?;
        let nats = tools::root().join("tests/node/nats.js");
        for (name, text) in [
            (
                "cargo",
                format!(
                    "if [ \"$*\" = 'install --locked --path host/presence' ]; then\n  \
                     grep -q '^name = \"presence\"' host/presence/Cargo.toml\n  \
                     ln -s {} {}\nelse\n  exec {} \"$@\"\nfi",
                    quoted(&host::binary()?),
                    quoted(&self.bin("presence")),
                    quoted(Path::new(&cargo)),
                ),
            ),
            (
                "rustup",
                "test \"$*\" = 'target add wasm32-unknown-unknown'".into(),
            ),
            (
                "nats-server",
                format!(
                    "PATH={} exec {} --addr 127.0.0.1 --port {port} \"$@\"",
                    quoted(Path::new(&path)),
                    quoted(&nats::find()?)
                ),
            ),
            (
                "nats",
                format!(
                    "NODE_PATH={} exec node {} \"$@\"",
                    quoted(&node::modules()?),
                    quoted(&nats)
                ),
            ),
        ] {
            let place = self.bin(name);
            fs::write(&place, format!("#!/bin/sh\nset -e\n{text}\n"))?;
            fs::set_permissions(&place, fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    }

    fn bin(&self, name: &str) -> PathBuf {
        self.around.path().join("bin").join(name)
    }

    /// Has `presence` as the tutorial installs it.
    pub(super) fn install(&self) -> Result<()> {
        Ok(symlink(host::binary()?, self.bin("presence"))?)
    }

    /// Does what a block says.
    ///
    /// # Errors
    /// When it can't be done, the result isn't what the block says, or nothing can be done with a
    /// block of this kind.
    pub(super) async fn run(&mut self, block: &Block) -> Result<()> {
        if block.orders.stop {
            ensure!(!self.terminals.is_empty(), "{}: nothing runs", block.place);
            self.terminals.remove(0).1.stop().await?;
        }
        if let Some(words) = &block.orders.logged {
            let logged = self.wait_for_log(words).await;
            logged.with_context(|| block.place.clone())?;
        }
        if self.is_rust
            && block.language == "sh"
            && let Some((_, after)) = block.code.split_once("presence plugin new ")
            && let Some(name) = after.split_whitespace().next()
        {
            self.turns.push(kit::turn(name)?);
        }
        let done = match (&*block.language, &block.orders.file) {
            (_, Some(path)) => self.write(path, block),
            ("text", None) if block.orders.picture => Ok(()),
            ("text", None) if block.orders.printed.is_some() => self.printed(block).await,
            ("sh", None) if block.orders.elsewhere => of_xtask(&block.code),
            (_, None) if block.orders.part.is_some() => self.find(block),
            ("diff", None) => self.change(block),
            ("sh", None) if block.orders.terminal.is_some() => self.terminal(block).await,
            ("sh", None) => self.shell(block),
            ("text", None) => self.compare(block),
            ("toml", None) => self.check(block),
            ("json", None) => read_json(&block.code),
            ("mermaid", None) => is_diagram(&block.code),
            ("js", None) => self
                .command("node", &["--eval", &block.code])
                .and_then(|mut node| tools::run(&mut node).map(drop)),
            (other, None) => Err(anyhow::anyhow!("nobody checks a block of `{other}`")),
        };
        done.with_context(|| block.place.clone())
    }

    /// Ends. Fails if a file was written and not used.
    pub(super) fn end(self) -> Result<()> {
        match self.untried {
            Some(path) => bail!("nothing is done with {path} as it is at the end"),
            None => Ok(()),
        }
    }

    fn write(&mut self, path: &str, block: &Block) -> Result<()> {
        let place = self.at.join(path);
        let folder = place.parent().context("a file has a folder")?;
        ensure!(folder.is_dir(), "there is no {}", folder.display());
        if block.language == "json" {
            read_json(&block.code)?;
        }
        fs::write(place, &block.code)?;
        self.untried = Some(path.into());
        Ok(())
    }

    /// Changes a file. The block has `--- PATH`, and lines that stay, are removed (`-`), or are
    /// added (`+`).
    fn change(&mut self, block: &Block) -> Result<()> {
        let (path, lines) = block.code.split_once('\n').context("a path comes first")?;
        let path = path.strip_prefix("--- ").context("a path comes first")?;
        let side = |other: char| -> String {
            let lines = lines.lines().filter(|line| !line.starts_with(other));
            lines.map(|line| format!("{}\n", &line[1..])).collect()
        };
        let (before, after) = (side('+'), side('-'));
        let place = self.at.join(path);
        let text = fs::read_to_string(&place).with_context(|| path.to_owned())?;
        ensure!(
            text.matches(&before).count() == 1,
            "{path} should have this once:\n{before}"
        );
        fs::write(place, text.replace(&before, &after))?;
        self.untried = Some(path.into());
        Ok(())
    }

    /// Checks that the block is in a file.
    fn find(&self, block: &Block) -> Result<()> {
        let path = block.orders.part.as_deref().unwrap_or_default();
        let text = fs::read_to_string(self.at.join(path)).with_context(|| path.to_owned())?;
        ensure!(text.contains(&block.code), "{path} doesn't have this");
        Ok(())
    }

    fn shell(&mut self, block: &Block) -> Result<()> {
        let note = self.around.path().join("at");
        let code = format!("set -e\n{}pwd > '{}'\n", block.code, note.display());
        let mut bash = self.command("bash", &["-c", &code])?;
        if block.orders.clone {
            bash.current_dir(tools::root());
        }
        let Output {
            status,
            stdout,
            stderr,
        } = bash.output()?;
        self.output = String::from_utf8(stdout)?;
        ensure!(
            status.success() != block.orders.fails,
            "{status}\n{}{}",
            self.output,
            String::from_utf8_lossy(&stderr)
        );
        if status.success() && !block.orders.clone {
            self.at = fs::read_to_string(note)?.trim_end().into();
        }
        self.untried = None;
        Ok(())
    }

    async fn terminal(&mut self, block: &Block) -> Result<()> {
        let words = block.orders.terminal.as_deref().unwrap_or_default();
        let words: Vec<_> = words.split(" | ").collect();
        let commands: Vec<_> = match words.len() {
            1 => vec![&*block.code],
            _ => block.code.lines().collect(),
        };
        ensure!(
            commands.len() == words.len(),
            "each terminal says something"
        );
        for (command, words) in commands.into_iter().zip(words) {
            self.start(command, words).await?;
        }
        self.untried = None;
        Ok(())
    }

    /// Starts a command in a terminal of its own, and waits until it says these words.
    async fn start(&mut self, command: &str, words: &str) -> Result<()> {
        // With `exec`, the process is the command, and not its shell.
        let code = format!("exec {command}");
        let mut bash = self.command("bash", &["-c", &code])?;
        let mut process = Process::spawn(command.trim(), &mut bash)?;
        process.wait_for_words(words).await?;
        let name = command.split('#').next().unwrap_or_default().trim();
        self.terminals.insert(0, (name.to_owned(), process));
        Ok(())
    }

    fn running(&mut self, command: &str) -> Result<&mut Process> {
        let mut terminals = self.terminals.iter_mut();
        let found = terminals.find(|(name, _)| name == command);
        let (_, process) = found.with_context(|| format!("`{command}` doesn't run"))?;
        Ok(process)
    }

    async fn wait_for_log(&mut self, order: &str) -> Result<()> {
        let (command, words) = order.split_once(": ").context("a command and words")?;
        let process = self.running(command)?;
        let says = |line: &str| line.contains(words);
        let what = format!("a log line with `{words}`");
        process.wait_for_log(&what, 0, says).await?;
        self.untried = None;
        Ok(())
    }

    /// Waits until a running command prints the block. Times of day may differ.
    async fn printed(&mut self, block: &Block) -> Result<()> {
        let command = block.orders.printed.clone().unwrap_or_default();
        for line in block.code.lines() {
            let process = self.running(&command)?;
            let is_like = |printed: &str| time_aside(printed) == time_aside(line);
            process.wait_for_stdout(line, is_like).await?;
        }
        Ok(())
    }

    fn compare(&self, block: &Block) -> Result<()> {
        let expected: Vec<_> = block.code.lines().collect();
        let found: Vec<_> = self.output.trim_end().lines().map(str::trim_end).collect();
        let before = match block.orders.last {
            true => found.len().saturating_sub(expected.len()),
            false => 0,
        };
        let found = &found[before..];
        let same = |(expected, found): (&&str, &&str)| match block.orders.figures {
            true => words(expected) == words(found),
            false => expected == found,
        };
        ensure!(
            expected.len() == found.len() && expected.iter().zip(found).all(same),
            "this came out:\n{}",
            self.output
        );
        Ok(())
    }

    /// Checks a configuration that stands alone.
    fn check(&self, block: &Block) -> Result<()> {
        let folder = tempfile::tempdir_in(self.around.path())?;
        let file = folder.path().join("presence.toml");
        fs::write(&file, &block.code)?;
        let mut check = self.command("presence", &["check", "--config"])?;
        tools::run(check.arg(file)).map(drop)
    }

    fn command(&self, program: &str, args: &[&str]) -> Result<Command> {
        let mut command = Command::new(program);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("PRESENCE_") || text.starts_with("CARGO_PKG_") {
                command.env_remove(name);
            }
        }
        command
            .args(args)
            .envs(self.variables.iter().cloned())
            .env("NO_COLOR", "1")
            .current_dir(&self.at);
        Ok(command)
    }
}

/// Checks that this is a diagram of a kind that GitHub draws.
fn is_diagram(code: &str) -> Result<()> {
    let kind = code.lines().next().unwrap_or_default();
    ensure!(
        ["stateDiagram-v2", "sequenceDiagram"].contains(&kind),
        "`{kind}` is no kind of diagram"
    );
    Ok(())
}

/// Checks that these are only commands of `cargo xtask`.
fn of_xtask(code: &str) -> Result<()> {
    let mut lines = code.lines();
    ensure!(
        lines.all(|line| line.starts_with("cargo xtask ")),
        "it is run nowhere"
    );
    Ok(())
}

/// Checks that this is JSON, or lines of JSON.
fn read_json(text: &str) -> Result<()> {
    for value in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
        value?;
    }
    Ok(())
}

/// A line without the time of day at its beginning.
fn time_aside(line: &str) -> &str {
    match line.split_once("  ") {
        Some((time, rest)) if time.len() == 8 && time.matches(':').count() == 2 => rest,
        _ => line,
    }
}

/// A line's words. All figures, all digests and all units are the same word.
fn words(line: &str) -> Vec<&str> {
    let words = line.split_whitespace();
    let word = |word| match word {
        "ns" | "µs" | "ms" | "s" | "B" | "KiB" | "MiB" => "unit",
        word if word.contains("sha256:") => "digest",
        word if word.starts_with(|first: char| first.is_ascii_digit()) => "figure",
        word => word,
    };
    words.map(word).collect()
}
