//! Filters of the log.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::Log;

/// The variable that stands in for `[log] level`.
pub const VARIABLE: &str = "PRESENCE_LOG";

/// What to write instead of a filter that is wrong.
pub const FIX: &str =
    "write error, warn, info, debug or trace, or a filter such as `info,presence=debug`";

/// The filter of the log: from `PRESENCE_LOG`, or else from the configuration.
///
/// # Errors
/// If `PRESENCE_LOG` is no filter. A value that is empty or isn't UTF-8 counts as not set.
pub fn level(log: &Log) -> anyhow::Result<String> {
    let set = std::env::var(VARIABLE).ok().filter(|text| !text.is_empty());
    let Some(text) = set else {
        return Ok(log.level.clone());
    };
    match parse(&text) {
        Ok(_) => Ok(text),
        Err(what) => Err(anyhow::anyhow!("{VARIABLE} {what}; {FIX}")),
    }
}

/// Reads a filter. A single word must be a level. The filter's own syntax would take it for the
/// name of a module, but it is most likely a misspelt level.
///
/// # Errors
/// What is wrong with it, as the end of a sentence.
pub fn parse(text: &str) -> Result<EnvFilter, String> {
    for directive in text.split(',').map(str::trim) {
        let is_word = !directive.contains(['=', '[']);
        if is_word && !directive.is_empty() && directive.parse::<LevelFilter>().is_err() {
            return Err(format!("is `{text}`, and `{directive}` is no level"));
        }
    }
    let filter = EnvFilter::builder().parse(text);
    filter.map_err(|error| format!("is `{text}` ({error})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_that_is_misspelt_is_no_filter() {
        for text in ["info", "WARN", "off", "info,presence=debug", "a=info,debug"] {
            assert!(parse(text).is_ok(), "{text}");
        }
        for text in ["debgu", "info,presence", "presence=debgu", "info debug"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
