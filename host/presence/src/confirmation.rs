//! What all commands that change something in the store have in common: their options, the author
//! of the change, and the confirmation.

use std::fmt::Display;
use std::io::{BufRead as _, IsTerminal as _, stdin};

use anyhow::ensure;
use presence_config::escape::{eprint_line, print};
use presence_config::revision::WORDS_BYTES_MAX;
use presence_config::{Auth, Config};
use presence_kit::ConfigArg;

/// How a change is made.
#[derive(clap::Args)]
pub(crate) struct ChangeOptions {
    /// Why, for those who look at it later.
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    why: String,
    /// Doesn't ask first.
    #[arg(long)]
    yes: bool,
    /// Prints one JSON object; needs --yes.
    #[arg(long, requires = "yes")]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) config: ConfigArg,
}

impl ChangeOptions {
    /// The reason for the change: `own`, the command's own words, and the operator's `--why`.
    /// Either may be empty.
    ///
    /// # Errors
    /// If the operator's and the command's words together are too long to be kept.
    pub(crate) fn why(&self, own: &str) -> anyhow::Result<String> {
        let why = match (self.why.as_str(), own) {
            ("", why) | (why, "") => why.to_owned(),
            (said, own) => format!("{own}: {said}"),
        };
        ensure!(
            why.len() <= WORDS_BYTES_MAX,
            "--why is longer than {WORDS_BYTES_MAX} bytes"
        );
        Ok(why)
    }

    /// Prints the difference (without `--json`), and asks for confirmation (without `--yes`).
    ///
    /// # Errors
    /// If the answer isn't yes, or there is no terminal to ask on.
    pub(crate) fn confirm_change(
        &self,
        difference: impl Display,
        question: &str,
    ) -> anyhow::Result<()> {
        if !self.json {
            print(difference)?;
        }
        match self.yes {
            true => Ok(()),
            false => confirm(question),
        }
    }
}

/// Who runs a command: the NATS user, if the configuration has one with a password; otherwise the
/// user of this machine, with the node's name.
pub(crate) fn who(config: &Config) -> String {
    if let Auth::Password { user, .. } = &config.nats.auth {
        return user.clone();
    }
    let user = ["USER", "LOGNAME"].into_iter().find_map(std::env::var_os);
    let user = user.unwrap_or_else(|| "somebody".into());
    format!("{}@{}", user.to_string_lossy(), config.node.name)
}

/// The message about a fleet member that doesn't answer. `takes`: what it will take once it
/// answers.
pub(crate) fn unanswered_message(takes: &str) -> String {
    format!("it is one of the fleet and doesn't answer; it takes {takes} when it does")
}

/// Asks for confirmation on the terminal. Fails unless the answer is yes.
fn confirm(question: &str) -> anyhow::Result<()> {
    ensure!(
        stdin().is_terminal(),
        "there is no terminal to ask on: --yes goes on without asking"
    );
    eprint_line(format_args!("{question} [y/N]"));
    let mut answer = String::new();
    stdin().lock().read_line(&mut answer)?;
    ensure!(
        matches!(answer.trim(), "y" | "Y" | "yes"),
        "nothing was changed"
    );
    Ok(())
}
