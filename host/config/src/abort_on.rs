//! The rules by which a canary ends itself, as `--abort-on` takes them, such as
//! `errors>0.1%,p99>2x,hidden>1%,shown>1%`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A measure of a canary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CanaryMeasure {
    /// The share of the candidate's calls that fail.
    Errors,
    /// The factor by which the candidate's decisions take longer than those of the active pipeline,
    /// between the 99th percentiles.
    P99,
    /// The share of the users whom somebody may see by the active pipeline, and may not by the
    /// candidate.
    Hidden,
    /// The share of the users whom somebody may see by the candidate, and may not by the active
    /// pipeline.
    Shown,
}

impl CanaryMeasure {
    const ALL: [Self; 4] = [Self::Errors, Self::P99, Self::Hidden, Self::Shown];

    /// The measure as a rule spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Errors => "errors",
            Self::P99 => "p99",
            Self::Hidden => "hidden",
            Self::Shown => "shown",
        }
    }

    /// What the limit in a rule on this measure must be, and an example.
    fn must_be(self) -> (&'static str, &'static str) {
        match self {
            Self::P99 => ("a factor from 1 to 1000 with an `x`", "p99>2x"),
            Self::Errors => ("per cent from 0 to 99.9999 with a `%`", "errors>0.1%"),
            Self::Hidden => ("per cent from 0 to 99.9999 with a `%`", "hidden>1%"),
            Self::Shown => ("per cent from 0 to 99.9999 with a `%`", "shown>1%"),
        }
    }
}

/// A rule: a canary is aborted once a measure is above a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortRule {
    /// What is measured.
    pub measure: CanaryMeasure,
    /// The highest allowed value, in millionths of the whole, or of the factor 1.
    pub millionths: u64,
}

impl AbortRule {
    /// Whether a measured value, a share of the whole or a factor, breaks the rule.
    pub fn is_broken_by(self, value: f64) -> bool {
        value * MILLION as f64 > self.millionths as f64
    }
}

/// The rules of a canary, at most one for each measure. Without rules, only an operator ends it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AbortOn(Vec<AbortRule>);

/// A text that isn't a list of rules: which rule is wrong, and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rule {place}, `{rule}`: {what}")]
pub struct InvalidAbortOn {
    /// The number of the rule, counted from 1.
    place: usize,
    rule: String,
    what: String,
}

const MILLION: u64 = 1_000_000;

impl AbortOn {
    /// The rules, in the order of their measures.
    pub fn rules(&self) -> impl Iterator<Item = AbortRule> {
        self.0.iter().copied()
    }

    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromStr for AbortOn {
    type Err = InvalidAbortOn;

    fn from_str(text: &str) -> Result<Self, InvalidAbortOn> {
        let mut rules: Vec<AbortRule> = Vec::new();
        for (place, text) in text.split(',').enumerate() {
            let rule = text.trim();
            let wrong = |what| InvalidAbortOn {
                place: place + 1,
                rule: rule.into(),
                what,
            };
            let rule = rule_of(rule).map_err(wrong)?;
            if rules.iter().any(|other| other.measure == rule.measure) {
                let measure = rule.measure.as_str();
                return Err(wrong(format!("there is a rule on `{measure}` already")));
            }
            rules.push(rule);
        }
        rules.sort_by_key(|rule| rule.measure);
        Ok(Self(rules))
    }
}

/// Reads one rule.
fn rule_of(text: &str) -> Result<AbortRule, String> {
    let measures = || {
        let examples = CanaryMeasure::ALL.map(|measure| format!("`{}`", measure.must_be().1));
        format!("write rules such as {}", examples.join(", "))
    };
    if text.is_empty() {
        return Err(format!("is empty; {}", measures()));
    }
    let Some((name, limit)) = text.split_once('>') else {
        return Err(format!("has no `>`; {}", measures()));
    };
    let name = name.trim();
    let Some(measure) = CanaryMeasure::ALL
        .into_iter()
        .find(|it| it.as_str() == name)
    else {
        return Err(format!("`{name}` is not measured; {}", measures()));
    };
    let limit = limit.trim();
    let wrong = || {
        let (must_be, example) = measure.must_be();
        format!("`{limit}` is not {must_be}, such as `{example}`")
    };
    let (unit, whole, range) = match measure {
        CanaryMeasure::P99 => ('x', MILLION, MILLION..=1_000 * MILLION),
        CanaryMeasure::Errors | CanaryMeasure::Hidden | CanaryMeasure::Shown => {
            ('%', MILLION / 100, 0..=MILLION - 1)
        }
    };
    let number = limit.strip_suffix(unit).ok_or_else(wrong)?;
    let millionths = millionths(number.trim_end(), whole).ok_or_else(wrong)?;
    if !range.contains(&millionths) {
        return Err(wrong());
    }
    Ok(AbortRule {
        measure,
        millionths,
    })
}

/// Reads a decimal number in millionths, of which the number 1 has `each`. `None` if it isn't a
/// number, or not a whole number of millionths.
fn millionths(text: &str, each: u64) -> Option<u64> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, "0"));
    let are_digits = |text: &str| {
        !text.is_empty() && text.len() <= 9 && text.bytes().all(|it| it.is_ascii_digit())
    };
    if !are_digits(whole) || !are_digits(rest) {
        return None;
    }
    let rest = rest.trim_end_matches('0');
    let scale = 10_u64.checked_pow(u32::try_from(rest.len()).ok()?)?;
    let part = match rest {
        "" => 0,
        digits => digits.parse::<u64>().ok()?.checked_mul(each)?,
    };
    if part % scale != 0 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(each)?;
    whole.checked_add(part / scale)
}

impl fmt::Display for AbortRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (each, unit) = match self.measure {
            CanaryMeasure::P99 => (MILLION, 'x'),
            CanaryMeasure::Errors | CanaryMeasure::Hidden | CanaryMeasure::Shown => {
                (MILLION / 100, '%')
            }
        };
        let (whole, part) = (self.millionths / each, self.millionths % each);
        write!(f, "{}>{whole}", self.measure.as_str())?;
        if part > 0 {
            let digits = each.ilog10() as usize;
            let part = format!("{part:0digits$}");
            write!(f, ".{}", part.trim_end_matches('0'))?;
        }
        write!(f, "{unit}")
    }
}

impl fmt::Display for AbortOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, rule) in self.0.iter().enumerate() {
            let comma = if place == 0 { "" } else { "," };
            write!(f, "{comma}{rule}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for AbortOn {
    type Error = InvalidAbortOn;

    fn try_from(text: String) -> Result<Self, InvalidAbortOn> {
        match text.as_str() {
            "" => Ok(Self::default()),
            text => text.parse(),
        }
    }
}

impl From<AbortOn> for String {
    fn from(rules: AbortOn) -> Self {
        rules.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_and_written() {
        for (text, written) in [
            (
                "errors>0.1%,p99>2x,hidden>1%,shown>1%",
                "errors>0.1%,p99>2x,hidden>1%,shown>1%",
            ),
            (" shown > 12.50 % , errors>0%", "errors>0%,shown>12.5%"),
            ("p99>1.25x", "p99>1.25x"),
            ("p99>1000x", "p99>1000x"),
            ("hidden>0.0001%", "hidden>0.0001%"),
            ("hidden>99.9999%", "hidden>99.9999%"),
        ] {
            let rules: AbortOn = text.parse().unwrap();
            assert_eq!(rules.to_string(), written);
            assert_eq!(written.parse(), Ok(rules.clone()));
            let json = serde_json::to_string(&rules).unwrap();
            assert_eq!(serde_json::from_str::<AbortOn>(&json).unwrap(), rules);
        }
        let none: AbortOn = serde_json::from_str("\"\"").unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn a_limit_is_the_highest_that_is_allowed() {
        let rule = |text: &str| text.parse::<AbortOn>().unwrap().rules().next().unwrap();
        assert!(!rule("errors>0.1%").is_broken_by(0.001));
        assert!(rule("errors>0.1%").is_broken_by(0.001_001));
        assert!(!rule("errors>0%").is_broken_by(0.0));
        assert!(rule("p99>2x").is_broken_by(2.1));
        assert!(!rule("p99>2x").is_broken_by(2.0));
    }

    #[test]
    fn what_is_wrong_is_said_with_where_and_what_is_allowed() {
        for (text, place, what) in [
            ("", "rule 1, ``", "is empty"),
            ("errors>1%,", "rule 2, ``", "is empty"),
            ("errors", "rule 1, `errors`", "has no `>`"),
            ("errors<1%", "rule 1", "has no `>`"),
            ("errors>=1%", "rule 1", "`=1%` is not per cent"),
            (
                "p99>2x,latency>2x",
                "rule 2, `latency>2x`",
                "`latency` is not measured",
            ),
            ("Errors>1%", "rule 1", "`Errors` is not measured"),
            ("errors>1", "rule 1", "`1` is not per cent"),
            ("errors>1x", "rule 1", "such as `errors>0.1%`"),
            (
                "errors>100%",
                "rule 1",
                "`100%` is not per cent from 0 to 99.9999",
            ),
            ("errors>-1%", "rule 1", "`-1%`"),
            ("errors>1e3%", "rule 1", "`1e3%`"),
            ("errors>NaN%", "rule 1", "`NaN%`"),
            ("hidden>0.00001%", "rule 1", "`0.00001%`"),
            (
                "p99>0.5x",
                "rule 1",
                "`0.5x` is not a factor from 1 to 1000",
            ),
            ("p99>2%", "rule 1", "such as `p99>2x`"),
            ("p99>99999999999999999999x", "rule 1", "is not a factor"),
            ("p99>.x", "rule 1", "`.x`"),
            (
                "p99>2x,p99>3x",
                "rule 2, `p99>3x`",
                "a rule on `p99` already",
            ),
        ] {
            let error = text.parse::<AbortOn>().unwrap_err().to_string();
            assert!(
                error.contains(place) && error.contains(what),
                "{text}: {error}"
            );
        }
    }
}
