//! Who believes whom to be online, going by what they were told.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};

use super::filtered_event::Change;

/// For each user, the viewers who were told "online" last.
#[derive(Debug, Default)]
pub(crate) struct DeliveryState(BTreeMap<String, BTreeSet<String>>);

impl DeliveryState {
    /// Takes note of what viewers were told.
    ///
    /// # Errors
    /// When one of them is told what they know already.
    pub(crate) fn note(&mut self, change: &Change) -> Result<()> {
        let believers = self.0.entry(change.user.clone()).or_default();
        for viewer in &change.viewers {
            let news = if change.online {
                believers.insert(viewer.clone())
            } else {
                believers.remove(viewer)
            };
            let state = if change.online { "online" } else { "offline" };
            ensure!(
                news,
                "{viewer} knew already that {} is {state}",
                change.user
            );
        }
        Ok(())
    }

    /// Who believes a user to be online.
    pub(crate) fn of(&self, user: &str) -> BTreeSet<String> {
        self.0.get(user).cloned().unwrap_or_default()
    }

    /// Fails if anyone believes that a user is online who isn't.
    ///
    /// # Errors
    /// When somebody does.
    pub(crate) fn check(&self, online: &BTreeSet<String>) -> Result<()> {
        for (user, believers) in self.0.iter().filter(|(user, _)| !online.contains(*user)) {
            ensure!(
                believers.is_empty(),
                "{user} is offline, and {believers:?} were never told"
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_twice_or_left_believing() {
        let change = |online| Change {
            user: "ada".into(),
            online,
            moved: true,
            viewers: ["ben".to_owned()].into(),
        };
        let mut state = DeliveryState::default();
        state.note(&change(true)).unwrap();
        assert!(state.note(&change(true)).is_err());
        assert!(state.check(&BTreeSet::new()).is_err());
        state.note(&change(false)).unwrap();
        state.check(&BTreeSet::new()).unwrap();
        assert!(state.note(&change(false)).is_err());
    }
}
