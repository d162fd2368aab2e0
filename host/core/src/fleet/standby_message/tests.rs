use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::departed::KnownMetadata;
use crate::event::{Change, Event, Reason};
use crate::metadata::Metadata;

fn entry(user: &str, timestamp: u64, parts: &[(&[&str], u8)], names: &Names) -> LedgerEntry {
    let (id, name) = names.intern_name(user);
    let event = Event {
        user: id,
        name,
        timestamp,
        change: Change::Online,
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

/// The departure of a user with these viewers.
fn departed(entry: &LedgerEntry) -> Record {
    let departure = Departure {
        user: entry.event.user,
        reason: Reason::Logout,
        timestamp: entry.event.timestamp,
        last_seen: entry.event.timestamp,
        metadata: Metadata::default(),
        known: KnownMetadata::all(&entry.event.metadata),
        recipients: entry.recipients.clone(),
    };
    Record::Departed {
        user: entry.event.name.clone(),
        departure: Some(departure),
    }
}

fn forgotten(user: &str, names: &Names) -> Record {
    let user = names.intern_name(user).1;
    Record::Departed {
        user,
        departure: None,
    }
}

/// A key, a value, and viewers by the digest of what they were shown.
type EncodedRecord = (Vec<u8>, Option<Vec<u8>>, Vec<(u64, Vec<String>)>);

/// The content of a record, by names, since the numbers of two nodes differ.
fn encoded(record: &Record, names: &Names) -> EncodedRecord {
    let mut parts = Vec::new();
    let mut bare = record.clone();
    let recipients = match &mut bare {
        Record::Ledger {
            entry: Some(entry), ..
        } => Some(&mut entry.recipients),
        Record::Departed {
            departure: Some(departure),
            ..
        } => Some(&mut departure.recipients),
        _ => None,
    };
    if let Some(recipients) = recipients {
        for (viewers, shown) in std::mem::take(recipients).parts() {
            let ids = viewers
                .ids()
                .map(|id| names.name(id).unwrap().as_str().to_owned());
            let mut ids: Vec<_> = ids.collect();
            ids.sort();
            parts.push((u64::from_le_bytes(shown.to_bytes()), ids));
        }
        parts.sort();
    }
    let (key, value) = bare.encode(names);
    (key, value, parts)
}

/// One side tells the other of records. Returns how many bytes that takes.
fn told_both(
    ours: &mut ToldViewers,
    theirs: &mut ToldViewers,
    records: &[Record],
    here: &Names,
    there: &Names,
) -> usize {
    let changes = ours.note(records, here);
    let taken = theirs.take(&changes, there).unwrap();
    let all = |records: &[Record], names| -> Vec<_> {
        records
            .iter()
            .map(|record| encoded(record, names))
            .collect()
    };
    assert_eq!(all(&taken, there), all(records, here));
    assert_eq!(ours.digest(), theirs.digest());
    postcard::to_allocvec(&changes).unwrap().len()
}

#[test]
fn of_who_goes_and_comes_back_to_the_same_viewers_none_is_named() {
    let (here, there) = (Names::new(), Names::new());
    there.intern("someone");
    let (mut ours, mut theirs) = (ToldViewers::default(), ToldViewers::default());
    let many: Vec<String> = (0..200).map(|viewer| format!("viewer-{viewer}")).collect();
    let all: Vec<&str> = many.iter().map(String::as_str).collect();
    let ann = |at, viewers| entry("ann", at, &[(viewers, 3)], &here);
    let mut told = |records: &[Record]| told_both(&mut ours, &mut theirs, records, &here, &there);
    told(&[online(ann(5, &all))]);
    let goes = told(&[offline("ann", &here), departed(&ann(5, &all))]);
    let comes_back = told(&[online(ann(9, &all))]);
    assert!(goes < 100 && comes_back < 80, "{goes} {comes_back}");
    let goes = told(&[offline("ann", &here), departed(&ann(9, &all))]);
    let without_one = told(&[online(ann(12, &all[1..]))]);
    assert!(goes < 100 && without_one < 100, "{goes} {without_one}");
    told(&[offline("ann", &here), forgotten("ann", &here)]);
    let forgotten = told(&[online(ann(15, &all))]);
    assert!(forgotten > 2_000, "{forgotten}");
    // No departure of hers is told, so neither side keeps her viewers.
    told(&[offline("ann", &here)]);
    let unknown = told(&[online(ann(18, &all))]);
    assert!(unknown > 2_000, "{unknown}");
}

#[test]
fn who_knows_less_of_a_departure_names_all_viewers_and_is_understood() {
    let names = Names::new();
    let ann = |at| entry("ann", at, &[(&["a", "b"], 3)], &names);
    let (mut ours, mut theirs) = (ToldViewers::default(), ToldViewers::default());
    theirs.put_record(&departed(&ann(5)), &names);
    told_both(&mut ours, &mut theirs, &[online(ann(9))], &names, &names);
    // A sender that remembers more than the receiver isn't understood.
    let (mut ours, mut theirs) = (ToldViewers::default(), ToldViewers::default());
    ours.put_record(&departed(&ann(5)), &names);
    let changes = ours.note(&[online(ann(9))], &names);
    assert_eq!(theirs.take(&changes, &names).unwrap_err(), Mismatch::Base);
}

#[test]
fn a_correction_of_one_viewer_names_one_viewer() {
    let (here, there) = (Names::new(), Names::new());
    // The same ids have other numbers there.
    there.intern("someone");
    let (mut ours, mut theirs) = (ToldViewers::default(), ToldViewers::default());
    let many: Vec<String> = (0..200).map(|viewer| format!("viewer-{viewer}")).collect();
    let all: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut told = |record: Record| told_both(&mut ours, &mut theirs, &[record], &here, &there);
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
    let mut ours = ToldViewers::default();
    let mut told = |viewers: &[&str]| {
        let record = online(entry("ann", 5, &[(viewers, 2)], &names));
        ours.note(&[record], &names)
    };
    let (first, mut second) = (told(&["a", "b"]), told(&["a", "c"]));
    // Without the first change, the second is a difference to another base.
    let mut theirs = ToldViewers::default();
    assert_eq!(theirs.take(&second, &names).unwrap_err(), Mismatch::Base);
    theirs.take(&first, &names).unwrap();
    let digest = theirs.digest();
    second[0].viewers.as_mut().unwrap().lost.clear();
    assert_eq!(theirs.take(&second, &names).unwrap_err(), Mismatch::Result);
    second[0].viewers = None;
    assert_eq!(
        theirs.take(&second, &names).unwrap_err(),
        Mismatch::Unreadable
    );
    second[0].key = vec![200];
    assert_eq!(
        theirs.take(&second, &names).unwrap_err(),
        Mismatch::Unreadable
    );
    assert_eq!(theirs.digest(), digest);
}

#[test]
fn a_message_comes_back_and_a_damaged_one_does_not() {
    let told = StandbyMessage {
        shard: 3,
        epoch: 17,
        seq: 9,
        node: "a".into(),
        content: StandbyContent::Digest {
            ledger: u64::MAX,
            connections: Box::new([7; PARTS]),
        },
    };
    let bytes = told.encode();
    assert_eq!(StandbyMessage::decode(&bytes), Ok(told));
    assert_eq!(
        StandbyMessage::decode(&bytes[..bytes.len() - 1]),
        Err(Mismatch::Unreadable)
    );
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(StandbyMessage::decode(&longer), Err(Mismatch::Unreadable));
}

/// A user, and how each of four viewers sees them: in one of two ways, or not at all. `None`: the
/// user goes offline; the last field says whether the departure is remembered.
type Step = (usize, Option<[u8; 4]>, bool);

proptest! {
    #[test]
    fn both_sides_hold_the_same_whatever_is_told(
        steps in proptest::collection::vec(
            (
                0_usize..3,
                proptest::option::weighted(0.7, proptest::array::uniform4(0_u8..3)),
                any::<bool>(),
            ),
            1..40,
        ),
    ) {
        let (here, there) = (Names::new(), Names::new());
        there.intern("c");
        let (mut ours, mut theirs) = (ToldViewers::default(), ToldViewers::default());
        let mut held = BTreeMap::<usize, LedgerEntry>::new();
        let mut left = BTreeMap::<usize, Record>::new();
        let steps: Vec<Step> = steps;
        for (at, (user, sights, is_kept)) in steps.into_iter().enumerate() {
            let name = ["ann", "bob", "cyd"][user];
            let records = match sights {
                Some(sights) => {
                    let part = |way| -> Vec<&str> {
                        let viewers = ["a", "b", "c", "d"].into_iter().zip(sights);
                        viewers.filter(|(_, it)| *it == way).map(|(viewer, _)| viewer).collect()
                    };
                    let (one, two) = (part(1), part(2));
                    let entry = entry(name, at as u64, &[(&one, 2), (&two, 5)], &here);
                    held.insert(user, entry.clone());
                    vec![online(entry)]
                }
                None => {
                    let entry = held.remove(&user);
                    let departure = entry.filter(|_| is_kept).map(|entry| departed(&entry));
                    left.remove(&user);
                    left.extend(departure.clone().map(|departure| (user, departure)));
                    vec![offline(name, &here), departure.unwrap_or(forgotten(name, &here))]
                }
            };
            told_both(&mut ours, &mut theirs, &records, &here, &there);
            // A replica that begins with a snapshot holds the same.
            let departures = left.values().filter_map(|record| match record {
                Record::Departed { departure, .. } => departure.as_ref(),
                _ => None,
            });
            let mut copy = ToldViewers::of(held.values(), departures, &here);
            prop_assert_eq!(copy.digest(), ours.digest());
            let comes_back = [online(entry(name, at as u64, &[(&["a", "d"], 2)], &here))];
            let changes = ours.note(&comes_back, &here);
            prop_assert_eq!(copy.note(&comes_back, &here), changes.clone());
            theirs.take(&changes, &there).unwrap();
            held.insert(user, entry(name, at as u64, &[(&["a", "d"], 2)], &here));
        }
    }
}
