//! Finds the known names that are close to an unknown one.

/// The names closest to `word`, best first. Empty if none is close.
pub(super) fn similar<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Vec<&'n str> {
    let mut close: Vec<_> = names
        .filter_map(|name| Some((distance_if_close(word, name)?, name)))
        .collect();
    close.sort_unstable();
    let best = close.first().map(|(distance, _)| *distance);
    close
        .into_iter()
        .take_while(|(distance, _)| Some(*distance) == best)
        .take(3)
        .map(|(_, name)| name)
        .collect()
}

/// The question "did you mean …?" with these names. `None` without names.
pub(super) fn did_you_mean<S: AsRef<str>>(names: &[S]) -> Option<String> {
    let quoted: Vec<_> = names
        .iter()
        .map(|name| format!("`{}`", name.as_ref()))
        .collect();
    (!quoted.is_empty()).then(|| format!("did you mean {}?", quoted.join(" or ")))
}

fn distance_if_close(word: &str, name: &str) -> Option<usize> {
    // A forgotten unit or section is a small slip, though many letters are missing.
    if word.len() >= 3 && (name.contains(word) || word.contains(name)) {
        return Some(1);
    }
    let distance = strsim::osa_distance(word, name);
    let longer = word.chars().count().max(name.chars().count());
    (distance <= longer.div_ceil(3)).then_some(distance)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn close_names_are_offered_and_others_are_not() {
        let names = ["timeout_ms", "grace_ms", "broadcast"];
        let similar = |word| similar(word, names.into_iter());
        assert_eq!(similar("timeout"), ["timeout_ms"]);
        assert_eq!(similar("gracems"), ["grace_ms"]);
        assert_eq!(similar("brodcast"), ["broadcast"]);
        assert!(similar("colour").is_empty());
    }
}
