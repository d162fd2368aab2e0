//! A reader for as much of PromQL as shows what a query asks for. `promtool` checks whether it is
//! valid.

use anyhow::{Context, Result, bail, ensure};

/// What a query asks for.
#[derive(Debug, Default)]
pub(super) struct Query {
    pub(super) selectors: Vec<Selector>,
    /// The labels that its results are grouped by.
    pub(super) groups: Vec<String>,
}

/// One metric, some series of it.
#[derive(Debug)]
pub(super) struct Selector {
    pub(super) metric: String,
    /// Label, operator and value.
    pub(super) matchers: Vec<(String, String, String)>,
    /// The function that it is the argument of.
    pub(super) function: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    /// Of one or two characters.
    Mark(String),
}

/// The words that are neither functions nor metrics.
const WORDS: [&str; 5] = ["and", "or", "unless", "bool", "offset"];

/// Words that are followed by labels in parentheses.
const GROUPING: [&str; 6] = [
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
];

/// Reads a query in which no variable of a dashboard is left.
///
/// # Errors
/// When it isn't understood.
pub(super) fn read(text: &str) -> Result<Query> {
    let tokens = tokens(text).with_context(|| text.to_owned())?;
    let mut query = Query::default();
    let mut functions: Vec<Option<String>> = Vec::new();
    let mut tokens = tokens.into_iter().peekable();
    let mut pending = None;
    while let Some(token) = tokens.next() {
        let word = match token {
            Token::Word(word) => word,
            Token::Mark(mark) => {
                match &*mark {
                    "(" => functions.push(pending.take()),
                    ")" => drop(functions.pop()),
                    _ => {}
                }
                continue;
            }
            Token::Text(_) => continue,
        };
        let opens = tokens.peek() == Some(&Token::Mark("(".into()));
        if GROUPING.contains(&&*word) {
            ensure!(opens, "{text}: labels stand in brackets");
            for token in tokens.by_ref() {
                match token {
                    Token::Word(label) => query.groups.push(label),
                    Token::Mark(mark) if mark == ")" => break,
                    _ => {}
                }
            }
        } else if WORDS.contains(&&*word) {
        } else if opens || tokens.peek().is_some_and(is_grouping) {
            pending = Some(word);
        } else {
            let mut matchers = Vec::new();
            if tokens.next_if_eq(&Token::Mark("{".into())).is_some() {
                while tokens.next_if_eq(&Token::Mark("}".into())).is_none() {
                    match (tokens.next(), tokens.next(), tokens.next()) {
                        (
                            Some(Token::Word(label)),
                            Some(Token::Mark(operator)),
                            Some(Token::Text(value)),
                        ) => {
                            matchers.push((label, operator, value));
                        }
                        other => bail!("{text}: {other:?} is no matcher"),
                    }
                    tokens.next_if_eq(&Token::Mark(",".into()));
                }
            }
            query.selectors.push(Selector {
                metric: word,
                matchers,
                function: functions.last().cloned().flatten(),
            });
        }
    }
    Ok(query)
}

fn is_grouping(token: &Token) -> bool {
    matches!(token, Token::Word(word) if GROUPING.contains(&&**word))
}

fn tokens(text: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |it: char| it.is_ascii_alphanumeric() || it == '_' || it == ':';
        let end = if first == '"' {
            let end = rest[1..].find('"').context("a text ends")? + 2;
            tokens.push(Token::Text(rest[1..end - 1].to_owned()));
            end
        } else if first == '[' {
            // A span of time.
            rest.find(']').context("a span ends")? + 1
        } else if first.is_ascii_digit() {
            let end = rest.find(|it: char| !(it.is_ascii_alphanumeric() || it == '.'));
            end.unwrap_or(rest.len())
        } else if is_word(first) {
            let end = rest.find(|it| !is_word(it)).unwrap_or(rest.len());
            tokens.push(Token::Word(rest[..end].to_owned()));
            end
        } else {
            ensure!("(){},=!~<>+-*/%^".contains(first), "{first} means nothing");
            let two = ["=~", "!~", "!=", "==", ">=", "<="];
            let end = two
                .iter()
                .find(|two| rest.starts_with(**two))
                .map_or(1, |two| two.len());
            tokens.push(Token::Mark(rest[..end].to_owned()));
            end
        };
        rest = rest[end..].trim_start();
    }
    Ok(tokens)
}

#[test]
fn what_a_query_asks_for_is_found() -> Result<()> {
    let query = read(
        "histogram_quantile(0.99, sum by (plugin, le) (rate(a_bucket{job=\"x\", b=~\"y|z\"}[5m]))) \
         > 64 * 1024 and on (c) sum(d) unless absent(e{} == bool 0)",
    )?;
    let found: Vec<_> = query
        .selectors
        .iter()
        .map(|it| (&*it.metric, it.matchers.len(), it.function.as_deref()))
        .collect();
    let expected = [
        ("a_bucket", 2, Some("rate")),
        ("d", 0, Some("sum")),
        ("e", 0, Some("absent")),
    ];
    assert_eq!(found, expected);
    assert_eq!(query.groups, ["plugin", "le", "c"]);
    assert_eq!(query.selectors[0].matchers[1].1, "=~");
    assert!(read("a{b}").is_err() && read("a; b").is_err());
    Ok(())
}
