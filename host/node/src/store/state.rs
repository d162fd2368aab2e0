//! The node's state with regard to the plugin store: which revision is in force, which one was
//! refused, and whether the store can be read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use presence_config::revision::Revision;
use serde_json::{Value, json};

/// What a node knows of the store.
#[derive(Debug, Default)]
pub(crate) struct StoreState(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    in_force: Option<Arc<Revision>>,
    /// The number of the last refused revision, and why. `None` once it or a later one is in force.
    refused: Option<(u64, String)>,
    /// The refused revisions that an alert has reported, each with the reason.
    alerted: BTreeMap<u64, String>,
    /// Why the store can't be read. `None` if it can.
    unreadable: Option<String>,
}

impl StoreState {
    /// Notes that a revision is in force.
    pub(crate) fn set_in_force(&self, revision: Arc<Revision>) {
        let mut known = self.known();
        known
            .refused
            .take_if(|(number, _)| *number <= revision.revision);
        known
            .alerted
            .retain(|number, _| *number > revision.revision);
        known.in_force = Some(revision);
    }

    /// Whether the refusal of a revision for this reason has not been reported by an alert. Notes
    /// that it is now.
    pub(crate) fn mark_alerted(&self, number: u64, why: &str) -> bool {
        let before = self.known().alerted.insert(number, why.to_owned());
        before.is_none_or(|before| before != why)
    }

    /// Has refusals reported by alerts again.
    pub(crate) fn forget_alerted(&self) {
        self.known().alerted.clear();
    }

    /// Notes that a revision can't be put in force.
    pub(crate) fn refuse(&self, number: u64, why: String) {
        self.known().refused = Some((number, why));
    }

    /// Forgets the last refusal: a newer revision is there.
    pub(crate) fn forget_refusal(&self) {
        self.known().refused = None;
    }

    /// Notes why the store can't be read. `None`: it can.
    pub(crate) fn set_unreadable(&self, why: Option<String>) {
        self.known().unreadable = why;
    }

    /// The revision that is in force.
    pub(crate) fn in_force(&self) -> Option<Arc<Revision>> {
        self.known().in_force.clone()
    }

    /// The number of the last refused revision, and why. `None` once it or a later one is in force.
    pub(crate) fn refused(&self) -> Option<(u64, String)> {
        self.known().refused.clone()
    }

    /// The number of the revision in force and why its canary was refused. `None` if nothing was
    /// refused.
    pub(crate) fn without_canary(&self) -> Option<(u64, String)> {
        let known = self.known();
        let number = known.in_force.as_ref()?.revision;
        known
            .refused
            .clone()
            .filter(|(refused, _)| *refused == number)
    }

    /// Why the store can't be read. `None` if it can.
    pub(crate) fn unreadable(&self) -> Option<String> {
        self.known().unreadable.clone()
    }

    /// Why no revision is in force, so that nobody is visible. `None` if one is in force.
    pub(crate) fn why_none_in_force(&self) -> Option<String> {
        let known = self.known();
        if known.in_force.is_some() {
            return None;
        }
        let why = match (&known.refused, &known.unreadable) {
            (Some((number, why)), _) => format!("revision {number} is refused: {why}"),
            (None, Some(why)) => why.clone(),
            (None, None) => "there is none: `presence pipeline apply FILE` makes one (of one of several tenants: with --tenant NAME)".into(),
        };
        Some(format!(
            "no pipeline revision is in force, and nobody sees anybody: {why}"
        ))
    }

    /// Whether the store can be read, but has no revision that could be put in force.
    pub(crate) fn lacks_pipeline(&self) -> bool {
        let known = self.known();
        known.in_force.is_none() && known.unreadable.is_none()
    }

    /// The JSON for `/status` and the admin service.
    pub(crate) fn to_json(&self) -> Value {
        let known = self.known();
        let refused = known.refused.as_ref();
        json!({
            "revision": known.in_force.as_ref().map(|it| it.revision),
            "canary": known.in_force.as_ref().and_then(|it| it.candidate.as_ref()),
            "refused": refused.map(|(revision, why)| json!({"revision": revision, "why": why})),
            "away": known.unreadable,
        })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revision(number: u64) -> Arc<Revision> {
        let text = format!(r#"{{"revision": {number}, "chain": [], "who": "", "when": 1}}"#);
        Revision::parse(text.as_bytes()).unwrap().into()
    }

    #[test]
    fn a_refusal_holds_until_that_revision_or_a_later_one_is_in_force() {
        let state = StoreState::default();
        assert!(
            state
                .why_none_in_force()
                .unwrap()
                .contains("presence pipeline apply")
        );
        assert!(state.lacks_pipeline());
        state.set_unreadable(Some("no answer".into()));
        assert!(!state.lacks_pipeline());
        state.set_unreadable(None);
        state.refuse(3, "broken".into());
        assert!(
            state
                .why_none_in_force()
                .unwrap()
                .contains("revision 3 is refused: broken")
        );
        state.set_in_force(revision(2));
        assert_eq!(state.why_none_in_force(), None);
        assert!(!state.lacks_pipeline());
        assert_eq!(state.to_json()["refused"]["revision"], 3);
        state.set_in_force(revision(3));
        assert_eq!(state.to_json()["refused"], Value::Null);
        // A revision that was in force can be refused later, and is then reported anew.
        assert!(state.mark_alerted(4, "broken") && !state.mark_alerted(4, "broken"));
        assert!(state.mark_alerted(5, "broken") && state.mark_alerted(4, "worse"));
        state.set_in_force(revision(4));
        assert!(state.mark_alerted(4, "worse") && !state.mark_alerted(5, "broken"));
        state.forget_alerted();
        assert!(state.mark_alerted(5, "broken"));
        // Somebody else has written something under a high number.
        state.refuse(9, "no revision".into());
        state.forget_refusal();
        state.set_in_force(revision(4));
        assert_eq!(state.to_json()["refused"], Value::Null);
    }
}
