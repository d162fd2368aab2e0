//! A user's recipients: the viewers who have been told that the user is online, and what each was
//! last shown.
//!
//! What was shown is stored as a digest, which can be compared with what should be shown now, also
//! after a restart. Mostly all viewers are shown the same, or there is one part of them for each
//! tier.

use std::sync::Arc;

use crate::audience::Audience;
use crate::event::Event;
use crate::json;
use crate::names::Id;
use crate::rules::Rendition;
use crate::verdicts::Verdict;

/// A digest of what was shown of a user: the metadata, and whether the viewer will be told when the
/// user was last seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShownDigest(u64);

impl ShownDigest {
    /// The bit that says whether the viewer will be told when the user was last seen.
    const LAST_SEEN: u64 = 1;

    /// The digest of what a rendition shows of an online event. It doesn't depend on the order of
    /// keys.
    pub fn of(event: &Event, rendition: &Rendition) -> Self {
        let entries = event.metadata.entries();
        let visible = entries.filter(|entry| entry.public && rendition.shows(entry.key));
        let content = visible.fold(0_u64, |sum, entry| {
            sum.wrapping_add(json::entry_digest(entry.key, entry.value))
        });
        Self((content & !Self::LAST_SEEN) | u64::from(rendition.last_seen))
    }

    /// Whether the viewer will be told when the user was last seen.
    pub fn last_seen(self) -> bool {
        self.0 & Self::LAST_SEEN != 0
    }

    /// Whether the same metadata was shown.
    pub fn same_content(self, other: Self) -> bool {
        self.0 | Self::LAST_SEEN == other.0 | Self::LAST_SEEN
    }

    /// Encodes the digest for storage.
    pub(crate) fn to_bytes(self) -> [u8; 8] {
        self.0.to_le_bytes()
    }

    /// Decodes what [`Self::to_bytes`] wrote.
    pub(crate) fn from_bytes(bytes: [u8; 8]) -> Self {
        Self(u64::from_le_bytes(bytes))
    }
}

/// Viewers who were all shown the same.
pub type Part = (Audience, ShownDigest);

/// The viewers who have been told of a user, and what each was last shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipients(Parts);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Parts {
    One(Part),
    /// All viewers, and the parts. The parts are disjoint and not empty, and no two were shown the
    /// same.
    Several(Arc<(Audience, Box<[Part]>)>),
}

impl Default for Recipients {
    fn default() -> Self {
        Self(Parts::One(Part::default()))
    }
}

impl Recipients {
    /// Recipients with these parts, which must be disjoint. Parts that were shown the same are
    /// merged.
    pub fn new(parts: impl IntoIterator<Item = Part>) -> Self {
        let mut merged: Vec<Part> = Vec::new();
        for (viewers, shown) in parts {
            if viewers.is_empty() {
                continue;
            }
            match merged.iter_mut().find(|(_, other)| *other == shown) {
                Some((others, _)) => *others = others.union(&viewers),
                None => merged.push((viewers, shown)),
            }
        }
        if merged.len() > 1 {
            let nobody = Audience::nobody();
            let all = merged.iter().fold(nobody, |all, part| all.union(&part.0));
            return Self(Parts::Several(Arc::new((all, merged.into()))));
        }
        Self(Parts::One(merged.pop().unwrap_or_default()))
    }

    /// The recipients according to a verdict: whom it admits to an online event, and what it shows
    /// each of them.
    pub fn by(event: &Event, verdict: &Verdict) -> Self {
        match &*verdict.renditions {
            [rendition] => Self(Parts::One((
                verdict.audience.clone(),
                ShownDigest::of(event, rendition),
            ))),
            renditions => Self::new(renditions.iter().map(|rendition| {
                let shown = ShownDigest::of(event, rendition);
                (rendition.audience.clone(), shown)
            })),
        }
    }

    /// All viewers who have been told.
    pub fn audience(&self) -> &Audience {
        match &self.0 {
            Parts::One((viewers, _)) => viewers,
            Parts::Several(several) => &several.0,
        }
    }

    /// The parts, none of which is empty.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        let parts = match &self.0 {
            Parts::One(part) => std::slice::from_ref(part),
            Parts::Several(several) => &*several.1,
        };
        parts.iter().filter(|(viewers, _)| !viewers.is_empty())
    }

    /// Whether nobody has been told.
    pub fn is_empty(&self) -> bool {
        self.audience().is_empty()
    }

    /// Whether a viewer has been told.
    pub fn contains(&self, viewer: Id) -> bool {
        self.audience().contains(viewer)
    }

    /// The viewers who will be told when the user was last seen.
    pub fn may_know_last_seen(&self) -> Audience {
        let parts = self.parts().filter(|(_, shown)| shown.last_seen());
        parts.fold(Audience::nobody(), |all, (viewers, _)| all.union(viewers))
    }

    /// The recipients without some viewers.
    #[must_use]
    pub fn without(&self, viewers: &Audience) -> Self {
        if viewers.is_empty() {
            return self.clone();
        }
        let parts = self.parts();
        Self::new(parts.map(|(part, shown)| (part.difference(viewers), *shown)))
    }

    /// Of `viewers`, those who have been told and were shown other metadata.
    pub fn shown_differently(&self, viewers: &Audience, shown: ShownDigest) -> Audience {
        let others = self.parts().filter(|(_, was)| !was.same_content(shown));
        others.fold(Audience::nobody(), |all, (part, _)| {
            all.union(&part.intersection(viewers))
        })
    }

    /// Whether the two are the same, found without comparing viewers. If it is false, they may
    /// still be equal.
    pub fn same(&self, other: &Self) -> bool {
        let same = |(a, b): (&Part, &Part)| a.1 == b.1 && a.0.same(&b.0);
        match (&self.0, &other.0) {
            (Parts::One(a), Parts::One(b)) => same((a, b)),
            (Parts::Several(a), Parts::Several(b)) => {
                a.1.len() == b.1.len() && a.1.iter().zip(&b.1).all(same)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Change;
    use crate::metadata::Metadata;
    use crate::names::Names;

    fn viewers(ids: &[u32]) -> Audience {
        ids.iter().map(|id| Id(*id)).collect()
    }

    fn shown(metadata: &str, keys: &[&str], last_seen: bool) -> ShownDigest {
        let names = Names::new();
        let (user, name) = names.intern_name("ann");
        let event = Event {
            user,
            name,
            timestamp: 1,
            change: Change::Online,
            metadata: Metadata::parse(metadata, |key| key != "ip"),
        };
        let rendition = Rendition {
            audience: Audience::nobody(),
            keys: keys.iter().map(|key| (*key).into()).collect(),
            last_seen,
        };
        ShownDigest::of(&event, &rendition)
    }

    #[test]
    fn what_was_shown_is_the_visible_metadata_and_nothing_else() {
        let all = ["device", "mood", "ip"];
        let base = shown(r#"{"device":"web","mood":1}"#, &all, true);
        for (metadata, keys, same) in [
            (r#"{"mood":1,"device":"web"}"#, &all[..], true),
            (r#"{"device":"web","mood":1,"ip":"::1"}"#, &all, true),
            (r#"{"device":"web","mood":1,"secret":2}"#, &all, true),
            (r#"{"device":"web","mood":2}"#, &all, false),
            (r#"{"device":"web","mood":1}"#, &["device"], false),
            (r#"{"device":"web"}"#, &all, false),
            (r#"{"device":1,"mood":"web"}"#, &all, false),
            ("{}", &all, false),
        ] {
            let other = shown(metadata, keys, false);
            assert_eq!(base.same_content(other), same, "{metadata}");
            assert_ne!(base, other);
            assert_eq!(ShownDigest::from_bytes(other.to_bytes()), other);
        }
        assert!(base.last_seen() && !shown("{}", &[], false).last_seen());
    }

    #[test]
    fn parts_that_were_shown_the_same_are_one() {
        let (a, b) = (shown("{}", &[], true), shown("{}", &[], false));
        let told = Recipients::new([
            (viewers(&[1, 2]), a),
            (viewers(&[]), b),
            (viewers(&[3]), b),
            (viewers(&[4]), a),
        ]);
        let parts: Vec<_> = told.parts().cloned().collect();
        assert_eq!(parts, [(viewers(&[1, 2, 4]), a), (viewers(&[3]), b)]);
        assert_eq!(*told.audience(), viewers(&[1, 2, 3, 4]));
        assert_eq!(told.may_know_last_seen(), viewers(&[1, 2, 4]));
        assert_eq!(
            told.without(&viewers(&[1, 2, 4])),
            Recipients::new([(viewers(&[3]), b)])
        );
        assert!(Recipients::default().is_empty() && Recipients::default().parts().next().is_none());
    }

    #[test]
    fn those_are_found_who_were_shown_something_else() {
        let [a, b] = [1, 2].map(|mood| shown(&format!("{{\"mood\":{mood}}}"), &["mood"], true));
        let told = Recipients::new([(viewers(&[1, 2]), a), (viewers(&[3]), b)]);
        assert_eq!(
            told.shown_differently(&viewers(&[2, 3, 9]), a),
            viewers(&[3])
        );
        assert_eq!(
            told.shown_differently(&viewers(&[2, 3, 9]), b),
            viewers(&[2])
        );
        assert!(
            Recipients::default()
                .shown_differently(&viewers(&[1]), a)
                .is_empty()
        );
    }
}
