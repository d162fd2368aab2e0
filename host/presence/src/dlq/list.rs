//! `presence dlq list`

use std::collections::VecDeque;
use std::fmt::Display;

use presence_config::escape::{eprint_line, line, print, print_json};
use presence_kit::text;
use presence_node::link::dlq_stream::DeadLetter;
use serde_json::json;

use super::StreamArgs;
use super::filter::Filter;

/// The longest user, subject and error in a row, in characters. The rest is cut off.
const CHARS_MAX: usize = 100;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    filter: Filter,
    /// How many of the newest are listed.
    #[arg(long, value_name = "N", default_value_t = 100)]
    last: usize,
    /// Prints them as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: StreamArgs,
}

/// Lists the newest dead letters that the filter takes.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let (_, letters) = args.place.open().await?;
    let mut newest = VecDeque::new();
    let mut earlier = 0_u64;
    let read = letters.read(1, |letter| {
        if args.filter.takes(&letter) {
            newest.push_back(letter);
            if newest.len() > args.last {
                newest.pop_front();
                earlier += 1;
            }
        }
        Ok(true)
    });
    read.await?;
    if args.json {
        let listed = newest.iter().map(|letter| {
            json!({"number": letter.number, "plugin": letter.plugin(), "letter": letter.body})
        });
        let listed: Vec<_> = listed.collect();
        print_json(json!({"deadLetters": listed, "earlier": earlier}))?;
        return Ok(());
    }
    if newest.is_empty() && earlier == 0 {
        print("no dead letters\n")?;
        return Ok(());
    }
    let rows: Vec<_> = newest.iter().map(row).collect();
    print(text::table(
        ["NUMBER", "TIME", "REASON", "SUBJECT", "USER", "ERROR"],
        &rows,
    ))?;
    if earlier > 0 {
        eprint_line(format_args!(
            "{earlier} earlier ones are not listed: --last lists more"
        ));
    }
    Ok(())
}

fn row(letter: &DeadLetter) -> [String; 6] {
    let content = &letter.content;
    let user = letter.user().map(brief).unwrap_or_default();
    [
        letter.number.to_string(),
        text::time(content.timestamp),
        line(&content.reason),
        brief(&content.subject),
        user,
        brief(&content.error),
    ]
}

/// The beginning of a text: at most `CHARS_MAX` characters.
fn brief(text: impl Display) -> String {
    let mut text = line(text);
    if let Some((end, _)) = text.char_indices().nth(CHARS_MAX) {
        text.truncate(end);
        text.push('…');
    }
    text
}
