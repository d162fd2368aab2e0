//! How the story looks: numbered titles, aligned lines, and colour on a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use super::filtered_event::Phrase;

/// How long a reader gets for a few lines. Nothing is waited for by it: the story
/// would hold without.
const TO_READ: Duration = Duration::from_millis(1_100);

/// How long somebody in the story takes between two things they do.
const TO_ACT: Duration = Duration::from_millis(350);

/// How wide what happened is.
const LEFT: usize = 20;

/// How wide who is told of it is.
const RIGHT: usize = 28;

/// A colour, or what comes nearest to one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ink {
    Bold,
    Faint,
    Red,
    Green,
    Yellow,
    Cyan,
}

/// Where the story is written.
#[derive(Debug)]
pub(crate) struct Page {
    colour: bool,
    steps: usize,
}

impl Page {
    /// Standard output; in colour on a terminal, unless `NO_COLOR` is set.
    pub(crate) fn open() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            colour: std::io::stdout().is_terminal() && !refused,
            steps: 0,
        }
    }

    /// A title without a number.
    pub(crate) fn heading(&self, text: &str) {
        println!("\n{}", self.ink(Ink::Bold, text));
    }

    /// The title of the next step with what there is to know, and time to read.
    pub(crate) async fn step(&mut self, title: &str, lines: &[&str]) {
        self.steps += 1;
        self.heading(&format!("{}. {title}", self.steps));
        for line in lines {
            println!("   {line}");
        }
        tokio::time::sleep(TO_READ).await;
    }

    /// A line by itself.
    pub(crate) fn say(&self, text: &str) {
        println!("{text}");
    }

    /// Somebody does something, after a moment.
    pub(crate) async fn act(&self, subject: &str, what: &str) {
        tokio::time::sleep(TO_ACT).await;
        println!(
            "   {}",
            self.ink(Ink::Faint, &format!("{subject:<20} {what}"))
        );
    }

    /// What came of it.
    pub(crate) fn tell(&self, phrase: &Phrase) {
        let left = self.ink(phrase.ink, &format!("{:<LEFT$}", phrase.left));
        let arrow = self.ink(Ink::Faint, "→");
        if phrase.detail.is_empty() {
            println!("     {left} {arrow} {}", phrase.right);
        } else {
            let detail = self.ink(Ink::Faint, &format!("({})", phrase.detail));
            println!("     {left} {arrow} {:<RIGHT$} {detail}", phrase.right);
        }
    }

    /// What there is to notice.
    pub(crate) fn note(&self, text: &str) {
        println!("     {}", self.ink(Ink::Faint, text));
    }

    /// A row of a table: what it is, a figure, and what belongs to it.
    pub(crate) fn row(&self, title: &str, figure: &str, rest: &str) {
        let figure = self.ink(Ink::Bold, &format!("{figure:>9}"));
        let rest = self.ink(Ink::Faint, rest);
        println!("{}", format!("   {title:<20}{figure}   {rest}").trim_end());
    }

    /// A text in a colour.
    pub(crate) fn ink(&self, ink: Ink, text: &str) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        let code = match ink {
            Ink::Bold => 1,
            Ink::Faint => 2,
            Ink::Red => 31,
            Ink::Green => 32,
            Ink::Yellow => 33,
            Ink::Cyan => 36,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}
