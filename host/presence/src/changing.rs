//! What all commands have in common that change something in the store: their options, who is
//! said to have made the change, and the question whether to go on.

use std::fmt::Display;
use std::io::{BufRead as _, IsTerminal as _, stdin};

use anyhow::ensure;
use presence_config::escape::{print, say};
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
    /// Why the change is made: in the command's own words, if it has some, and in the operator's.
    ///
    /// # Errors
    /// If that is too long to be kept.
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

    /// Shows what changes, and asks whether it is to be done.
    ///
    /// # Errors
    /// If it isn't, or there is no terminal to ask on.
    pub(crate) fn agree(&self, difference: impl Display, question: &str) -> anyhow::Result<()> {
        if !self.json {
            print(difference)?;
        }
        match self.yes {
            true => Ok(()),
            false => confirm(question),
        }
    }
}

/// Who runs a command: the user of NATS, if that has a name, or else of this machine.
pub(crate) fn who(config: &Config) -> String {
    if let Auth::Password { user, .. } = &config.nats.auth {
        return user.clone();
    }
    let user = ["USER", "LOGNAME"].into_iter().find_map(std::env::var_os);
    let user = user.unwrap_or_else(|| "somebody".into());
    format!("{}@{}", user.to_string_lossy(), config.node.name)
}

/// What is said of a node that others know as one of their fleet, and that doesn't answer.
pub(crate) fn silent_why(takes: &str) -> String {
    format!("it is one of the fleet and doesn't answer; it takes {takes} when it does")
}

/// Asks, and goes on if the answer is yes.
fn confirm(question: &str) -> anyhow::Result<()> {
    ensure!(
        stdin().is_terminal(),
        "there is no terminal to ask on: --yes goes on without asking"
    );
    say(format_args!("{question} [y/N]"));
    let mut answer = String::new();
    stdin().lock().read_line(&mut answer)?;
    ensure!(
        matches!(answer.trim(), "y" | "Y" | "yes"),
        "nothing was changed"
    );
    Ok(())
}
