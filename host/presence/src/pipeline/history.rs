//! `presence pipeline history`

use presence_config::escape::{eprint_line, line, print, print_json};
use presence_config::revision::{Entry, Revision};
use presence_kit::text;
use serde_json::json;

use super::change::StoreSession;
use crate::arguments::Output;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many of the newest are listed.
    #[arg(long, value_name = "N", default_value_t = 50)]
    last: usize,
    #[command(flatten)]
    output: Output,
}

/// Lists the revisions.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = StoreSession::open(&args.output.config).await?;
    let earlier = session.revisions.len().saturating_sub(args.last);
    if args.output.json {
        let listed = session
            .revisions
            .iter()
            .skip(earlier)
            .map(|found| match &found.revision {
                Ok(revision) => json!(revision),
                Err(error) => json!({"revision": found.number, "error": format!("{error:#}")}),
            });
        let listed: Vec<_> = listed.collect();
        print_json(json!({"revisions": listed, "earlier": earlier}))?;
        return Ok(());
    }
    if session.revisions.is_empty() {
        print("no revisions\n")?;
        return Ok(());
    }
    let mut before: Option<&Revision> = None;
    let mut rows = Vec::new();
    for found in &session.revisions {
        let number = found.number.to_string();
        rows.push(match &found.revision {
            Ok(revision) => {
                let chain = before.map_or(&[][..], |it| &it.chain);
                let changed = changed(chain, &revision.chain);
                before = Some(revision);
                let (who, why) = (line(&revision.who), line(&revision.why));
                [number, text::time(revision.when), who, changed, why]
            }
            Err(error) => {
                let why = line(format_args!("{error:#}"));
                [
                    number,
                    String::new(),
                    String::new(),
                    "unreadable".into(),
                    why,
                ]
            }
        });
    }
    let titles = ["REVISION", "TIME", "WHO", "CHANGED", "WHY"];
    print(text::table(titles, rows.get(earlier..).unwrap_or_default()))?;
    if earlier > 0 {
        eprint_line(format_args!(
            "{earlier} earlier ones are not listed: --last lists more"
        ));
    }
    Ok(())
}

/// What is different between two chains, in a few words.
fn changed(old: &[Entry], new: &[Entry]) -> String {
    let mut words = Vec::new();
    let count = |chain: &[Entry], name: &str| {
        let of_name = chain.iter().filter(|entry| entry.plugin == name);
        of_name.count()
    };
    for entry in new {
        let name = &entry.plugin;
        let before = old.iter().find(|before| before.plugin == *name);
        let word = match before {
            None => format!("+{name}"),
            Some(before) if before.digest != entry.digest => {
                format!("{name} {}", entry.digest.short())
            }
            Some(before) if before != entry => format!("{name} settings"),
            Some(_) if count(old, name) != count(new, name) => format!("{name} stages"),
            Some(_) => continue,
        };
        if !words.contains(&word) {
            words.push(word);
        }
    }
    let gone = old.iter().filter(|entry| count(new, &entry.plugin) == 0);
    words.extend(gone.map(|entry| format!("-{}", entry.plugin)));
    let are_same = |a: &Entry, b: &Entry| a.plugin == b.plugin;
    if words.is_empty() && !old.iter().zip(new).all(|(a, b)| are_same(a, b)) {
        words.push("order".into());
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use presence_config::digest::Digest;

    use super::*;

    fn entry(plugin: &str, digit: &str) -> Entry {
        Entry {
            plugin: plugin.into(),
            digest: Digest::of_hex(&digit.repeat(64)).unwrap(),
            config: serde_json::Map::new(),
            grants: Vec::new(),
            on_failure: None,
        }
    }

    #[test]
    fn what_changed_is_said_in_a_few_words() {
        let (a, b) = (entry("a", "0"), entry("b", "0"));
        let mut configured = b.clone();
        configured.config.insert("x".into(), 1.into());
        let old = [a.clone(), b.clone()];
        for (new, words) in [
            (vec![a.clone(), b.clone()], ""),
            (vec![b.clone(), a.clone()], "order"),
            (vec![a.clone(), configured], "b settings"),
            (vec![a.clone()], "-b"),
            (
                vec![entry("a", "1"), b.clone(), entry("c", "0")],
                "a sha256:111111111111, +c",
            ),
            (vec![a.clone(), b.clone(), b.clone()], "b stages"),
        ] {
            assert_eq!(changed(&old, &new), words);
        }
        assert_eq!(changed(&[], &old), "+a, +b");
    }
}
