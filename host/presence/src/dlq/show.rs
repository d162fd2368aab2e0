//! `presence dlq show`

use anyhow::bail;
use presence_config::escape::{line, print, print_json};
use presence_kit::text;
use presence_node::link::dlq_stream::DeadLetter;

use super::StreamArgs;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Its number in the stream, as `presence dlq list` prints it.
    number: u64,
    /// Prints the dead letter as it was published, as one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    place: StreamArgs,
}

/// Prints one dead letter.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let (_, letters) = args.place.open().await?;
    let mut found = None;
    let read = letters.read(args.number, |letter| {
        found = (letter.number == args.number).then_some(letter);
        Ok(false)
    });
    read.await?;
    let Some(letter) = found else {
        bail!(
            "there is no dead letter {} in the stream `{}`",
            args.number,
            letters.name()
        );
    };
    if args.json {
        print_json(&letter.body)?;
    } else {
        print(described(&letter))?;
    }
    Ok(())
}

fn described(letter: &DeadLetter) -> String {
    let content = &letter.content;
    let node = letter.body.get("node").map(text::plain).unwrap_or_default();
    let mut rows = vec![
        ["number".to_owned(), letter.number.to_string()],
        ["time".to_owned(), text::time(content.timestamp)],
        ["node".to_owned(), node],
        ["subject".to_owned(), line(&content.subject)],
        ["reason".to_owned(), line(&content.reason)],
        ["error".to_owned(), line(&content.error)],
    ];
    if let Some(plugin) = letter.plugin() {
        rows.push(["plugin".to_owned(), line(plugin)]);
    }
    let message = match letter.payload() {
        Ok(payload) => match std::str::from_utf8(&payload) {
            Ok(text) => line(text),
            Err(_) => format!(
                "{} bytes that are not UTF-8; --json prints them",
                payload.len()
            ),
        },
        Err(error) => format!("{error:#}; --json prints it"),
    };
    rows.push(["message".to_owned(), message]);
    text::columns(&rows)
}
