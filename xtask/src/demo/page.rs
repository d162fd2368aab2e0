//! How the story looks: numbered titles, aligned lines, and colour on a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use super::filtered_event::Phrase;

/// A pause to read a few lines. The story doesn't depend on it.
const TO_READ: Duration = Duration::from_millis(1_100);

/// The pause between two actions in the story.
const TO_ACT: Duration = Duration::from_millis(350);

/// The width of the column that says what happened.
const LEFT: usize = 20;

/// The width of the column that says who is told.
const RIGHT: usize = 28;

/// A colour or a style.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Style {
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

    /// Prints a title without a number.
    pub(crate) fn heading(&self, text: &str) {
        println!("\n{}", self.styled(Style::Bold, text));
    }

    /// Prints the title of the next step and its explanation, and pauses for reading.
    pub(crate) async fn step(&mut self, title: &str, lines: &[&str]) {
        self.steps += 1;
        self.heading(&format!("{}. {title}", self.steps));
        for line in lines {
            println!("   {line}");
        }
        tokio::time::sleep(TO_READ).await;
    }

    /// Prints a line by itself.
    pub(crate) fn print_line(&self, text: &str) {
        println!("{text}");
    }

    /// Prints what somebody does, after a pause.
    pub(crate) async fn act(&self, subject: &str, what: &str) {
        tokio::time::sleep(TO_ACT).await;
        println!(
            "   {}",
            self.styled(Style::Faint, &format!("{subject:<20} {what}"))
        );
    }

    /// Prints what viewers are told.
    pub(crate) fn print_phrase(&self, phrase: &Phrase) {
        let left = self.styled(phrase.style, &format!("{:<LEFT$}", phrase.left));
        let arrow = self.styled(Style::Faint, "→");
        if phrase.detail.is_empty() {
            println!("     {left} {arrow} {}", phrase.right);
        } else {
            let detail = self.styled(Style::Faint, &format!("({})", phrase.detail));
            println!("     {left} {arrow} {:<RIGHT$} {detail}", phrase.right);
        }
    }

    /// Prints a remark.
    pub(crate) fn note(&self, text: &str) {
        println!("     {}", self.styled(Style::Faint, text));
    }

    /// Prints a row of a table: a title, a figure, and an explanation.
    pub(crate) fn row(&self, title: &str, figure: &str, rest: &str) {
        let figure = self.styled(Style::Bold, &format!("{figure:>9}"));
        let rest = self.styled(Style::Faint, rest);
        println!("{}", format!("   {title:<20}{figure}   {rest}").trim_end());
    }

    /// A text in a colour or a style.
    pub(crate) fn styled(&self, style: Style, text: &str) -> String {
        if !self.colour || text.is_empty() {
            return text.to_owned();
        }
        let code = match style {
            Style::Bold => 1,
            Style::Faint => 2,
            Style::Red => 31,
            Style::Green => 32,
            Style::Yellow => 33,
            Style::Cyan => 36,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}
