//! `cargo xtask simulate`: runs the simulator of a fleet over a range of seeds. With a single seed,
//! it prints all that happens.

use anyhow::{Context, Result, ensure};
use presence_tests::tools;

/// Runs the simulator of a fleet over more seeds than the tests do.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The seeds: the first one, and the one behind the last, such as 2001..20001; or one seed.
    #[arg(long, value_parser = seeds)]
    seeds: Seeds,
}

/// The first seed, and the one after the last.
type Seeds = (u64, u64);

/// Runs the task.
///
/// # Errors
/// If a promise is broken in one of the seeds.
pub(crate) fn run(args: &Args) -> Result<()> {
    let (from, to) = args.seeds;
    // Only this package is selected, so that the core is built for this alone, optimized.
    let status = tools::cargo()
        .args(["test", "--quiet", "--release", "--package", "presence-core"])
        .args(["--test", "fleet", "--", "--nocapture", "promises_hold"])
        .env("SIMULATE", format!("{from}..{to}"))
        .current_dir(tools::root())
        .status();
    ensure!(
        status.context("running cargo")?.success(),
        "a promise was broken: run the seed alone to see all that happened in it"
    );
    Ok(())
}

fn seeds(text: &str) -> Result<Seeds, String> {
    let number = |text: &str| {
        let number = text.parse::<u64>();
        number.map_err(|_| format!("`{text}` is no number of a seed"))
    };
    let (from, to) = match text.split_once("..") {
        Some((from, to)) => (number(from)?, number(to)?),
        None => (number(text)?, number(text)?.saturating_add(1)),
    };
    match from < to {
        true => Ok((from, to)),
        false => Err(format!("there is no seed in `{text}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::seeds;

    #[test]
    fn seeds_are_a_range_or_one() {
        assert_eq!(seeds("3..7"), Ok((3, 7)));
        assert_eq!(seeds("12"), Ok((12, 13)));
        assert!(seeds("7..7").unwrap_err().contains("no seed"));
        assert!(seeds("a..7").unwrap_err().contains("`a`"));
    }
}
