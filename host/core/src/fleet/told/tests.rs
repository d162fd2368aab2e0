use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::event::{Change as EventChange, Event};
use crate::metadata::Metadata;

fn entry(user: &str, timestamp: u64, parts: &[(&[&str], u8)], names: &Names) -> LedgerEntry {
    let (id, name) = names.intern_name(user);
    let event = Event {
        user: id,
        name,
        timestamp,
        change: EventChange::Online,
        metadata: Metadata::parse(r#"{"device":"web"}"#, |_| true),
    };
    let recipients = Recipients::new(parts.iter().map(|(viewers, shown)| {
        let viewers = viewers.iter().map(|viewer| names.intern(viewer)).collect();
        (viewers, ShownDigest::from_bytes([*shown; 8]))
    }));
    LedgerEntry::new(Arc::new(event), recipients)
}

fn online(entry: LedgerEntry) -> Record {
    Record::Ledger {
        user: entry.event.name.clone(),
        entry: Some(entry),
    }
}

fn offline(user: &str, names: &Names) -> Record {
    let user = names.intern_name(user).1;
    Record::Ledger { user, entry: None }
}

/// A key, a value, and viewers by what they were shown.
type Spoken = (Vec<u8>, Option<Vec<u8>>, Vec<(u64, Vec<String>)>);

/// What a record says, by names: the numbers of two nodes differ.
fn said(record: &Record, names: &Names) -> Spoken {
    let mut parts = Vec::new();
    let mut bare = record.clone();
    if let Record::Ledger {
        entry: Some(entry), ..
    } = &mut bare
    {
        for (viewers, shown) in entry.recipients.parts() {
            let ids = viewers
                .ids()
                .map(|id| names.name(id).unwrap().as_str().to_owned());
            let mut ids: Vec<_> = ids.collect();
            ids.sort();
            parts.push((u64::from_le_bytes(shown.to_bytes()), ids));
        }
        parts.sort();
        entry.recipients = Recipients::default();
    }
    let (key, value) = bare.encode(names);
    (key, value, parts)
}

#[test]
fn a_correction_of_one_viewer_names_one_viewer() {
    let (here, there) = (Names::new(), Names::new());
    // The same ids have other numbers there.
    there.intern("someone");
    let (mut ours, mut theirs) = (Books::default(), Books::default());
    let many: Vec<String> = (0..200).map(|viewer| format!("viewer-{viewer}")).collect();
    let all: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut told = |record: Record| {
        let change = ours.note(&record, &here);
        let taken = theirs.take(&change, &there).unwrap();
        assert_eq!(said(&taken, &there), said(&record, &here));
        assert_eq!(ours.digest(), theirs.digest());
        postcard::to_allocvec(&change).unwrap().len()
    };
    let comes = told(online(entry("ann", 5, &[(&all, 2)], &here)));
    let one_less = told(online(entry("ann", 5, &[(&all[1..], 2)], &here)));
    let other_tier = told(online(entry(
        "ann",
        5,
        &[(&all[2..], 2), (&all[1..2], 4)],
        &here,
    )));
    let same = told(online(entry(
        "ann",
        9,
        &[(&all[2..], 2), (&all[1..2], 4)],
        &here,
    )));
    let gone = told(offline("ann", &here));
    assert!(comes > 2_000, "{comes}");
    assert!(one_less < 100 && other_tier < 100 && same < 80 && gone < 20);
}

#[test]
fn what_does_not_fit_is_refused() {
    let names = Names::new();
    let mut ours = Books::default();
    let first = ours.note(
        &online(entry("ann", 5, &[(&["a", "b"], 2)], &names)),
        &names,
    );
    let mut second = ours.note(
        &online(entry("ann", 5, &[(&["a", "c"], 2)], &names)),
        &names,
    );
    // Without the first, the second is a difference to something else.
    let mut theirs = Books::default();
    assert_eq!(theirs.take(&second, &names).unwrap_err(), Mismatch::Base);
    theirs.take(&first, &names).unwrap();
    let digest = theirs.digest();
    second.viewers.as_mut().unwrap().lost.clear();
    assert_eq!(theirs.take(&second, &names).unwrap_err(), Mismatch::Result);
    second.viewers = None;
    assert_eq!(
        theirs.take(&second, &names).unwrap_err(),
        Mismatch::Unreadable
    );
    second.key = vec![200];
    assert_eq!(
        theirs.take(&second, &names).unwrap_err(),
        Mismatch::Unreadable
    );
    assert_eq!(theirs.digest(), digest);
}

#[test]
fn a_message_comes_back_and_a_damaged_one_does_not() {
    let told = Told {
        shard: 3,
        epoch: 17,
        seq: 9,
        node: "a".into(),
        said: Said::Digest {
            ledger: u64::MAX,
            connections: Box::new([7; PARTS]),
        },
    };
    let bytes = told.encode();
    assert_eq!(Told::decode(&bytes), Ok(told));
    assert_eq!(
        Told::decode(&bytes[..bytes.len() - 1]),
        Err(Mismatch::Unreadable)
    );
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(Told::decode(&longer), Err(Mismatch::Unreadable));
}

/// A user, whom each of four viewers sees in one of two ways or not at all; or who goes.
type Step = (usize, Option<[u8; 4]>);

proptest! {
    #[test]
    fn both_sides_hold_the_same_whatever_is_told(
        steps in proptest::collection::vec(
            (0_usize..3, proptest::option::weighted(0.8, proptest::array::uniform4(0_u8..3))),
            1..40,
        ),
    ) {
        let (here, there) = (Names::new(), Names::new());
        there.intern("c");
        let (mut ours, mut theirs) = (Books::default(), Books::default());
        let mut held: std::collections::BTreeMap<usize, LedgerEntry> = Default::default();
        let steps: Vec<Step> = steps;
        for (at, (user, sights)) in steps.into_iter().enumerate() {
            let name = ["ann", "bob", "cyd"][user];
            let record = match sights {
                Some(sights) => {
                    let part = |way| -> Vec<&str> {
                        let viewers = ["a", "b", "c", "d"].into_iter().zip(sights);
                        viewers.filter(|(_, it)| *it == way).map(|(viewer, _)| viewer).collect()
                    };
                    let (one, two) = (part(1), part(2));
                    let entry = entry(name, at as u64, &[(&one, 2), (&two, 4)], &here);
                    held.insert(user, entry.clone());
                    online(entry)
                }
                None => {
                    held.remove(&user);
                    offline(name, &here)
                }
            };
            let change = ours.note(&record, &here);
            let taken = theirs.take(&change, &there).unwrap();
            prop_assert_eq!(said(&taken, &there), said(&record, &here));
            prop_assert_eq!(ours.digest(), theirs.digest());
            // Who begins with a snapshot holds the same.
            prop_assert_eq!(Books::of(held.values(), &here).digest(), ours.digest());
        }
    }
}
