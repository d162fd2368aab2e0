//! Checks the prefixes of reply subjects.

/// How a reply subject never begins: like the broker's own subjects, or those of this program.
pub const RESERVED: [&str; 2] = ["$", "presence"];

/// What is wrong with a prefix of reply subjects. `None` if nothing is.
pub fn problem(prefix: &str) -> Option<&'static str> {
    let Some(tokens) = prefix.strip_suffix('.') else {
        return Some("must end with a dot");
    };
    let is_token = |token: &str| {
        let bad = |character: char| character.is_whitespace() || matches!(character, '*' | '>');
        !token.is_empty() && !token.contains(bad)
    };
    if !tokens.split('.').all(is_token) {
        return Some("must be the beginning of a subject, without wildcards");
    }
    RESERVED
        .iter()
        .any(|reserved| prefix.starts_with(reserved))
        .then_some("must not begin with `$` or `presence`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_that_could_reach_other_subjects_is_none() {
        for (prefix, fine) in [
            ("_INBOX.", true),
            ("_R_.", true),
            ("my.replies.", true),
            ("_INBOX", false),
            ("", false),
            (".", false),
            ("a..", false),
            ("*.", false),
            ("a.>.", false),
            ("a b.", false),
            ("$KV.", false),
            ("presence.", false),
            ("presence-directory.", false),
        ] {
            assert_eq!(problem(prefix).is_none(), fine, "{prefix}");
        }
    }
}
