use super::*;
use crate::recipients::ShownDigest;

fn offline(names: &Names, user: &str, at: u64) -> Event {
    let (user, name) = names.intern_name(user);
    Event {
        user,
        name,
        timestamp: at,
        change: Change::Offline {
            last_seen: at - 1,
            reason: Reason::Timeout,
        },
        metadata: Metadata::parse(r#"{"timeoutDuration":5}"#, |_| true),
    }
}

fn note(departed: &mut Departed, event: &Event) {
    departed.note(
        event,
        KnownMetadata::all(&Metadata::default()),
        Recipients::default(),
    );
}

fn remembered(departed: &Departed, names: &Names) -> Vec<(String, u64)> {
    let mut ids: Vec<_> = departed.ids().into_iter().map(Id).collect();
    ids.sort_unstable();
    let events = ids.into_iter().filter_map(|id| departed.event(id, names));
    events
        .map(|event| (event.name.as_str().to_owned(), event.timestamp))
        .collect()
}

fn pairs(pairs: &[(&str, u64)]) -> Vec<(String, u64)> {
    pairs
        .iter()
        .map(|(user, at)| ((*user).into(), *at))
        .collect()
}

#[test]
fn the_last_departure_of_a_user_is_remembered_as_announced() {
    let names = Names::new();
    let mut departed = Departed::new(10);
    let event = offline(&names, "a", 7);
    note(&mut departed, &event);
    let found = departed.event(event.user, &names).unwrap();
    assert_eq!(
        (found.timestamp, found.change, found.metadata),
        (7, event.change, event.metadata)
    );
    note(&mut departed, &offline(&names, "a", 9));
    assert_eq!(remembered(&departed, &names), pairs(&[("a", 9)]));
}

#[test]
fn a_departure_that_is_forgotten_leaves_its_place_to_another() {
    let names = Names::new();
    let mut departed = Departed::new(2);
    let first = offline(&names, "a", 7);
    note(&mut departed, &first);
    departed.forget(first.user);
    assert!(departed.event(first.user, &names).is_none());
    for (user, at) in [("b", 8), ("c", 9)] {
        note(&mut departed, &offline(&names, user, at));
    }
    let kept = [("b", 8), ("c", 9)];
    assert_eq!(remembered(&departed, &names), pairs(&kept));
    departed.forget(first.user);
    assert_eq!(remembered(&departed, &names), pairs(&kept));
}

#[test]
fn one_that_follows_remembers_what_the_other_does_in_whatever_order_it_is_told() {
    let names = Names::new();
    let (mut owner, mut standby) = (Departed::new(2), Departed::new(2));
    let told = |owner: &Departed, user: &str| owner.departure(names.intern(user)).unwrap().clone();
    note(&mut owner, &offline(&names, "b", 7));
    note(&mut owner, &offline(&names, "a", 8));
    // Departures that are told at once come in the order of the users.
    standby.restore(told(&owner, "a"), &names);
    standby.restore(told(&owner, "b"), &names);
    for (user, at, forgotten) in [("c", 9, "b"), ("a", 10, ""), ("d", 11, "c"), ("e", 12, "a")] {
        note(&mut owner, &offline(&names, user, at));
        if !forgotten.is_empty() {
            standby.forget(names.intern(forgotten));
        }
        standby.restore(told(&owner, user), &names);
        assert_eq!(
            remembered(&standby, &names),
            remembered(&owner, &names),
            "{user}"
        );
    }
    // It remembers as many departures when it leads, and notes others itself.
    note(&mut standby, &offline(&names, "f", 13));
    assert_eq!(remembered(&standby, &names).len(), 2);
    standby.resize(1);
    assert_eq!(remembered(&standby, &names), pairs(&[("f", 13)]));
}

#[test]
fn departures_are_read_as_they_were_whatever_takes_their_place() {
    let names = Names::new();
    let mut departed = Departed::new(2);
    let viewers = [names.intern("viewer")].into_iter().collect();
    let shown = Recipients::new([(viewers, ShownDigest::from_bytes([1; 8]))]);
    let note = |departed: &mut Departed, user: &str, at: u64| {
        let known = KnownMetadata::all(&Metadata::default());
        departed.note(&offline(&names, user, at), known, shown.clone());
    };
    for (user, at) in [("a", 6), ("a", 7), ("b", 8)] {
        note(&mut departed, user, at);
    }
    let point = ReadPoint::default();
    departed.begin_read(&point);
    for (user, at) in [("b", 9), ("b", 10), ("c", 11), ("d", 12)] {
        note(&mut departed, user, at);
    }
    departed.resize(0);
    let mut read = Vec::new();
    while departed.read(&point, 1, |departure| read.push(departure.timestamp)) {}
    read.sort_unstable();
    assert_eq!(read, [7, 8]);
}

#[test]
fn a_user_who_comes_and_goes_makes_no_other_departure_forgotten() {
    let names = Names::new();
    let mut departed = Departed::new(2);
    note(&mut departed, &offline(&names, "a", 1));
    for at in 2..99 {
        note(&mut departed, &offline(&names, "b", at));
    }
    let both = [("a", 1), ("b", 98)];
    assert_eq!(remembered(&departed, &names), pairs(&both));
}

#[test]
fn of_departures_that_are_restored_in_any_order_the_newest_stay() {
    let names = Names::new();
    let mut before = Departed::new(9);
    let (mut after, mut records) = (Departed::new(2), Vec::new());
    for (user, at) in [("a", 7), ("b", 9), ("c", 8)] {
        let event = offline(&names, user, at);
        note(&mut before, &event);
        after.restore(before.departure(event.user).unwrap().clone(), &names);
    }
    assert_eq!(remembered(&after, &names), pairs(&[("b", 9), ("c", 8)]));
    // The record of the third is removed.
    after.take_changed(|user, departure| records.push((user, departure.is_some())));
    assert_eq!(records, [(names.intern_name("a").1, false)]);
}

#[test]
fn what_was_decided_holds_for_that_departure_alone() {
    let names = Names::new();
    let mut departed = Departed::new(2);
    let first = offline(&names, "a", 7);
    note(&mut departed, &first);
    let reads = Reads {
        timestamp: true,
        ..Reads::default()
    };
    departed.keep(8, &first, Vec::new(), reads);
    assert!(departed.verdict(8, &first).is_some());
    let second = offline(&names, "a", 9);
    note(&mut departed, &second);
    assert!(departed.verdict(9, &second).is_none());
    departed.keep(9, &second, Vec::new(), Reads::default());
    for user in ["b", "c"] {
        note(&mut departed, &offline(&names, user, 10));
    }
    assert!(departed.verdict(10, &second).is_none(), "it is forgotten");
}

#[test]
fn the_oldest_departures_are_forgotten_for_the_newest() {
    let names = Names::new();
    let mut departed = Departed::new(3);
    for (user, at) in [("a", 1), ("b", 2), ("c", 3), ("a", 4), ("d", 5)] {
        note(&mut departed, &offline(&names, user, at));
    }
    assert_eq!(
        remembered(&departed, &names),
        pairs(&[("a", 4), ("c", 3), ("d", 5)])
    );
    departed.resize(2);
    assert_eq!(remembered(&departed, &names), pairs(&[("a", 4), ("d", 5)]));
    departed.resize(3);
    note(&mut departed, &offline(&names, "b", 6));
    note(&mut departed, &offline(&names, "c", 7));
    assert_eq!(
        remembered(&departed, &names),
        pairs(&[("b", 6), ("c", 7), ("d", 5)])
    );
    departed.resize(0);
    note(&mut departed, &offline(&names, "b", 8));
    assert_eq!(remembered(&departed, &names), []);
}
