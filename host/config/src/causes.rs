//! An error with its causes as one text, each only once. The errors of some libraries contain the
//! text of their source already.

use std::fmt;

/// Displays an error and its causes, from the outermost in, with colons between them.
pub struct Causes<'a>(pub &'a anyhow::Error);

impl fmt::Display for Causes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = String::new();
        for (number, cause) in self.0.chain().enumerate() {
            let cause = cause.to_string();
            if number == 0 {
                f.write_str(&cause)?;
            } else if !before.ends_with(&cause) {
                write!(f, ": {cause}")?;
            }
            before = cause;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context as _;

    use super::*;

    /// Contains the text of its source, as the errors of the NATS client do.
    #[derive(Debug, thiserror::Error)]
    #[error("IO error: {0}")]
    struct RepeatsSource(#[source] io::Error);

    #[test]
    fn a_cause_that_was_said_is_not_said_again() {
        let refused = io::Error::from_raw_os_error(111);
        let error: Result<(), _> = Err(RepeatsSource(refused));
        let error = error
            .context("can't ask")
            .context("can't start")
            .unwrap_err();
        assert_eq!(
            Causes(&error).to_string(),
            "can't start: can't ask: IO error: Connection refused (os error 111)"
        );
        let plain = anyhow::anyhow!("b").context("a");
        assert_eq!(Causes(&plain).to_string(), "a: b");
        assert_eq!(Causes(&anyhow::anyhow!("")).to_string(), "");
    }
}
