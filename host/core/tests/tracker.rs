//! Tests of the presence tracker from outside: named timelines that can be read as its
//! specification, a simple model with which it must agree, and tests of what neither of them
//! covers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

#[path = "tracker/agreement.rs"]
mod agreement;
#[path = "tracker/model.rs"]
mod model;
#[path = "tracker/timeline.rs"]
mod timeline;

use std::path::Path;

use presence_core::tracker::{Effect, Reason, Tracker, TrackerRecord, TrackerSettings, Transition};

#[test]
fn timelines_run_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/timelines");
    let entries = std::fs::read_dir(&folder).expect("tests/timelines can be read");
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(
        paths.len() >= 25,
        "only {} timelines in {}",
        paths.len(),
        folder.display()
    );

    let failures: Vec<_> = paths
        .iter()
        .filter_map(|path| timeline::check(path).err())
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn where_a_further_connection_is_not_shown_the_next_newest_is_when_the_shown_one_goes() {
    let mut tracker = Tracker::new(TrackerSettings {
        shows_newest: false,
        ..TrackerSettings::default()
    });
    for (now, conn) in [(0, "a"), (1, "b"), (2, "c")] {
        tracker.connect(now, "alice", conn, now, || conn);
        assert_eq!(tracker.shown("alice"), Some(&"a"));
    }
    assert_eq!(tracker.take_reshown(), None);
    tracker.disconnect(3, "alice", "b", 3, Reason::Disconnect);
    assert_eq!(tracker.take_reshown(), None);
    tracker.disconnect(4, "alice", "a", 4, Reason::Disconnect);
    assert!(tracker.take_reshown().is_some());
    assert_eq!(tracker.shown("alice"), Some(&"c"));
    // An adopted connection has nothing to show, and is replaced by one that has.
    let mut tracker = Tracker::new(TrackerSettings {
        shows_newest: false,
        ..TrackerSettings::default()
    });
    tracker.heartbeat(0, "alice", "a", 0, || "adopted");
    tracker.connect(1, "alice", "b", 1, || "b");
    assert_eq!(tracker.shown("alice"), Some(&"b"));
}

#[test]
fn the_order_in_which_connections_were_opened_outlives_what_stays_before_it() {
    let first = TrackerSettings {
        shows_newest: false,
        ..TrackerSettings::default()
    };
    let mut tracker = Tracker::new(first);
    tracker.keep_records(true);
    for (now, conn) in [(0, "a"), (1, "b"), (2, "c")] {
        tracker.connect(now, "alice", conn, now, || conn.to_owned());
    }
    let stored = tracker.take_records(1);
    for settings in [first, TrackerSettings::default()] {
        let mut tracker = Tracker::new(settings);
        for record in stored.clone() {
            tracker.restore(10, 0, record);
        }
        tracker.finish_restore();
        let shown = |tracker: &Tracker<String>| tracker.shown("alice").cloned().unwrap();
        assert_eq!(tracker.has_reshown(), settings.shows_newest);
        let order = if settings.shows_newest {
            ["c", "b", "a"]
        } else {
            ["a", "c", "b"]
        };
        for (number, conn) in order.into_iter().enumerate() {
            assert_eq!(shown(&tracker), conn);
            tracker.disconnect(11, "alice", conn, 11, Reason::Disconnect);
            assert_eq!(tracker.connections(), 2 - number);
        }
        // A new connection comes after all earlier ones.
        tracker.connect(20, "alice", "d", 20, || "d".to_owned());
        tracker.connect(21, "alice", "e", 21, || "e".to_owned());
        assert_eq!(
            shown(&tracker),
            if settings.shows_newest { "e" } else { "d" }
        );
    }
}

/// A tracker that was started with these records, and notes changes from here on.
fn started(now: u64, records: Vec<TrackerRecord<()>>) -> Tracker<()> {
    started_with(TrackerSettings::default(), now, records)
}

fn started_with(
    settings: TrackerSettings,
    now: u64,
    records: Vec<TrackerRecord<()>>,
) -> Tracker<()> {
    let mut tracker = Tracker::new(settings);
    tracker.keep_records(true);
    for record in records {
        tracker.restore(now, 0, record);
    }
    tracker.finish_restore();
    tracker.renew_leases(now);
    tracker
}

/// Updates the store's content for one connection by newer records.
fn last_of_each(stored: &mut Vec<TrackerRecord<()>>, records: Vec<TrackerRecord<()>>) {
    for record in records {
        stored.retain(|it| std::mem::discriminant(it) != std::mem::discriminant(&record));
        stored.push(record);
    }
    stored.sort_by_key(|record| !matches!(record, TrackerRecord::Connection { .. }));
}

#[test]
fn a_host_that_starts_again_and_again_keeps_no_ghost_and_nobody_who_speaks_goes() {
    for speaks in [false, true] {
        let mut stored = Vec::new();
        let mut tracker = started(0, Vec::new());
        tracker.connect(0, "alice", "web", 0, || ());
        last_of_each(&mut stored, tracker.take_records(1));
        let mut gone_at = None;
        // The host starts every ten seconds, and hears nothing for one second each time.
        for start in 1..12 {
            let now = start * 10_000;
            let mut tracker = started(now, stored.clone());
            last_of_each(&mut stored, tracker.take_records(1));
            if speaks {
                tracker.heartbeat(now + 5_000, "alice", "web", now + 5_000, || ());
            }
            if tracker.expire(now + 9_000).is_some() {
                gone_at = Some(now);
                break;
            }
            last_of_each(&mut stored, tracker.take_records(1));
        }
        // It takes a timeout, and at most one more for all the starts together.
        assert_eq!(gone_at.is_none(), speaks, "{gone_at:?}");
        assert!(gone_at.is_none_or(|at| at <= 60_000), "{gone_at:?}");
    }
}

#[test]
fn a_long_time_down_leaves_everyone_a_whole_lease() {
    let mut tracker = started(0, Vec::new());
    tracker.connect(0, "alice", "web", 0, || ());
    let records = tracker.take_records(1);
    let day = 24 * 60 * 60 * 1_000;
    let mut tracker = started(day, records);
    assert_eq!(tracker.expire(day + 29_999), None);
    assert!(tracker.expire(day + 30_000).is_some());
}

#[test]
fn a_second_start_after_a_long_time_down_leaves_time_to_be_heard_and_ghosts_end() {
    let mut stored = Vec::new();
    let mut tracker = started(0, Vec::new());
    tracker.connect(0, "alice", "web", 0, || ());
    last_of_each(&mut stored, tracker.take_records(1));
    // Each run lasts for a second, and the host is down for an hour after each.
    let hour = 60 * 60 * 1_000;
    let lived = (1..20).take_while(|start| {
        let now = start * hour;
        let mut tracker = started(now, stored.clone());
        last_of_each(&mut stored, tracker.take_records(1));
        tracker.expire(now + 999).is_none()
    });
    // The thirty seconds are halved each time, until they are shorter than a run.
    assert_eq!(lived.count(), 5);
}

#[test]
fn runs_too_short_to_hear_anything_in_keep_no_ghost() {
    let settings = TrackerSettings {
        receive_step_ms: Some(500),
        ..TrackerSettings::default()
    };
    let mut stored = Vec::new();
    let mut tracker = Tracker::new(settings);
    tracker.keep_records(true);
    tracker.connect(0, "alice", "web", 0, || ());
    last_of_each(&mut stored, tracker.take_records(1));
    let ends = |start: &u64| {
        let now = start * 3_000;
        let mut tracker = started_with(settings, now, stored.clone());
        last_of_each(&mut stored, tracker.take_records(1));
        // The broker answers once.
        tracker.received_up_to(now + 100, now + 50);
        tracker.expire(now + 100).is_some()
    };
    let last = (1..100).find(ends);
    assert!(last.is_some_and(|last| last <= 20), "{last:?}");
}

#[test]
fn a_heartbeat_with_the_timestamp_of_the_close_counts_by_its_arrival() {
    let mut tracker = Tracker::new(TrackerSettings::default());
    tracker.connect(10, "alice", "web", 10, || ());
    tracker.disconnect(10, "alice", "web", 10, Reason::Disconnect);
    let older = tracker.heartbeat(11, "alice", "web", 9, || ());
    assert_eq!(older.effect, Effect::Stale);
    let tie = tracker.heartbeat(11, "alice", "web", 10, || ());
    assert_eq!(tie.effect, Effect::Adopted);
    // The adopted connection can be closed with the same timestamp.
    let end = tracker.disconnect(11, "alice", "web", 10, Reason::Disconnect);
    assert_eq!(end.effect, Effect::Closed);
    // Long afterwards, the same heartbeat is recognized as a repetition.
    let late = tracker.heartbeat(5_000, "alice", "web", 10, || ());
    assert_eq!(late.effect, Effect::Stale);
}

#[test]
fn a_sender_whose_clock_is_behind_is_believed_at_the_second_sign_of_life() {
    const HOUR: u64 = 3_600_000;
    for connects in [true, false] {
        let mut tracker = Tracker::new(TrackerSettings::default());
        tracker.connect(2 * HOUR, "alice", "web", 2 * HOUR, || ());
        let at = 2 * HOUR + 1_000;
        tracker.disconnect(at, "alice", "web", at, Reason::Disconnect);
        if connects {
            let again = tracker.connect(at + 500, "alice", "web", HOUR, || ());
            assert_eq!(again.effect, Effect::Stale);
        }
        let mut beat = |after: u64| {
            let now = at + after;
            let handled = tracker.heartbeat(now, "alice", "web", HOUR + after, || ());
            handled.effect
        };
        // The first heartbeat may be a late one among others.
        assert_eq!(beat(1_500), Effect::Stale);
        assert_eq!(beat(11_500), Effect::Adopted);
        assert_eq!(beat(21_500), Effect::Renewed);
        let now = at + 22_000;
        let end = tracker.disconnect(now, "alice", "web", HOUR + 22_000, Reason::Disconnect);
        assert_eq!(end.effect, Effect::Closed);
    }
}

#[test]
fn a_grace_goes_on_over_restarts_and_pauses_where_it_was() {
    let settings = TrackerSettings {
        grace_ms: 6_000,
        receive_step_ms: Some(500),
        ..TrackerSettings::default()
    };
    let hear = |tracker: &mut Tracker<()>, from: u64, to: u64| {
        for now in (from..=to).step_by(250) {
            tracker.received_up_to(now, now);
            if tracker.expire(now).is_some() {
                return Some(now);
            }
        }
        None
    };
    let mut tracker = Tracker::new(settings);
    tracker.keep_records(true);
    hear(&mut tracker, 0, 1_000);
    assert_eq!(tracker.graces_at(), None);
    tracker.connect(1_000, "alice", "web", 1_000, || ());
    tracker.disconnect(1_000, "alice", "web", 1_000, Reason::Disconnect);
    let mut stored = Vec::new();
    last_of_each(&mut stored, tracker.take_records(1));
    assert_eq!(hear(&mut tracker, 1_250, 3_000), None);
    // A pause of a minute.
    assert_eq!(hear(&mut tracker, 63_000, 64_000), None);
    last_of_each(&mut stored, tracker.take_records(1));
    assert_eq!(hear(&mut tracker, 64_250, 65_000), None);
    let saved_at = tracker.graces_at().unwrap();
    assert_eq!(saved_at, 65_000);

    // About two seconds of the grace are left, an hour later, and again an hour after that.
    let mut saved_at = saved_at;
    let mut start = |stored: &mut Vec<TrackerRecord<()>>| {
        let now = saved_at + 3_600_000;
        let mut tracker = Tracker::new(settings);
        tracker.keep_records(true);
        for record in stored.clone() {
            tracker.restore(now, now - saved_at, record);
        }
        tracker.finish_restore();
        tracker.renew_leases(now);
        last_of_each(stored, tracker.take_records(1));
        saved_at = tracker.graces_at().unwrap();
        (now, tracker)
    };
    start(&mut stored);
    let (now, mut tracker) = start(&mut stored);
    let gone = hear(&mut tracker, now, now + 10_000).unwrap() - now;
    assert!((1_000..3_000).contains(&gone), "{gone}");
}

#[test]
fn answers_that_a_stopped_broker_gives_all_at_once_take_nobody_offline() {
    const STEP_MS: u64 = 500;
    let mut tracker = Tracker::new(TrackerSettings {
        receive_step_ms: Some(STEP_MS),
        ..TrackerSettings::default()
    });
    tracker.connect(0, "alice", "web", 0, || ());
    let hear = |tracker: &mut Tracker<()>, now, at| {
        tracker.received_up_to(now, at);
        tracker.expire(now)
    };
    for at in (0..10_000).step_by(250) {
        assert_eq!(hear(&mut tracker, at, at), None);
    }
    // The broker is stopped. It is probed all the while, and answers when it continues, before the
    // host has read what alice sent meanwhile.
    for at in (10_000..35_000).step_by(250) {
        assert_eq!(hear(&mut tracker, 35_000, at), None, "{at}");
    }
    // From here on, she is really silent.
    let after = (35_250..).step_by(250);
    let gone = after.map(|at| hear(&mut tracker, at, at).map(|_| at));
    // A lease, and one step that may have been heard before it was reported.
    assert_eq!(gone.flatten().next(), Some(55_250));
}

#[test]
fn a_heartbeat_of_a_live_connection_asks_for_no_metadata_and_needs_no_new_deadline() {
    let mut tracker = Tracker::new(TrackerSettings::default());
    tracker.connect(0, "alice", "web", 0, || ());
    for now in 1..1000 {
        let handled = tracker.heartbeat(now, "alice", "web", now, || unreachable!());
        assert_eq!(handled.effect, Effect::Renewed);
    }
    // The lease expires at 30 999. Its only timer entry still has the old deadline.
    assert_eq!(tracker.next_deadline(), Some(30_000));
    assert_eq!(tracker.expire(30_000), None);
    assert_eq!(tracker.next_deadline(), Some(30_999));
    assert!(matches!(
        tracker.expire(30_999),
        Some(Transition::Offline { at: 30_999, .. })
    ));
}

#[test]
fn metadata_of_a_live_connection_is_that_of_its_newest_connect() {
    let mut tracker = Tracker::new(TrackerSettings::default());
    tracker.connect(100, "alice", "web", 50, || "first");
    tracker.connect(101, "alice", "web", 60, || "second");
    tracker.connect(102, "alice", "web", 55, || {
        unreachable!("older than the second")
    });
    assert_eq!(tracker.metadata("alice", "web"), Some(&"second"));
    tracker.connect(102, "alice", "web", 60, || "as new as the second");
    assert_eq!(
        tracker.metadata("alice", "web"),
        Some(&"as new as the second")
    );

    tracker.disconnect(103, "alice", "web", 103, Reason::Disconnect);
    assert_eq!(tracker.metadata("alice", "web"), None);
    assert_eq!(tracker.metadata("alice", "tv"), None);
}

#[test]
fn time_does_not_run_backwards() {
    let mut tracker = Tracker::new(TrackerSettings::default());
    tracker.connect(1000, "alice", "web", 1000, || ());
    let handled = tracker.connect(400, "bob", "web", 900, || ());
    let Some(Transition::Online { at, .. }) = handled.transition else {
        panic!("{handled:?}")
    };
    assert_eq!(at, 1000);
}

#[test]
fn a_user_with_very_many_connections_costs_no_more_for_each() {
    // If any input or expiry looked at all connections of the user, this would take hours.
    const CONNECTIONS: u64 = 100_000;
    let mut tracker = Tracker::new(TrackerSettings {
        connections_per_user_max: usize::MAX,
        ..TrackerSettings::default()
    });
    let name = |number: u64| format!("conn-{number}");
    for number in 0..CONNECTIONS {
        tracker.connect(number, "alice", &name(number), number, || ());
    }
    for number in 0..CONNECTIONS / 2 {
        tracker.disconnect(
            CONNECTIONS,
            "alice",
            &name(number),
            CONNECTIONS,
            Reason::Logout,
        );
    }
    assert_eq!(tracker.connections(), 50_000);
    assert_eq!(
        tracker.users().map(|(_, live)| live).collect::<Vec<_>>(),
        [50_000]
    );

    let mut transitions = 0;
    while let Some(deadline) = tracker.next_deadline() {
        while tracker.expire(deadline).is_some() {
            transitions += 1;
        }
    }
    assert_eq!(transitions, 1);
    assert!(tracker.is_empty());
}

#[test]
fn the_greatest_figures_overflow_nothing() {
    let settings = TrackerSettings {
        timeout_ms: u64::MAX,
        grace_ms: u64::MAX,
        reorder_ms: u64::MAX,
        ..TrackerSettings::default()
    };
    let mut tracker = Tracker::new(settings);
    tracker.connect(u64::MAX - 1, "alice", "web", u64::MAX, || ());
    tracker.disconnect(u64::MAX - 1, "alice", "web", u64::MAX, Reason::Timeout);
    tracker.heartbeat(u64::MAX, "alice", "web", u64::MAX, || ());
    assert_eq!(tracker.connections(), 1);
    assert!(matches!(
        tracker.expire(u64::MAX),
        Some(Transition::Offline { .. })
    ));
    assert_eq!(tracker.expire(u64::MAX), None);
}

#[test]
fn figures_of_zero_end_every_life_at_once() {
    let mut tracker = Tracker::new(TrackerSettings {
        timeout_ms: 0,
        grace_ms: 0,
        reorder_ms: 0,
        ..TrackerSettings::default()
    });
    tracker.connect(5, "alice", "web", 5, || ());
    assert_eq!(tracker.next_deadline(), Some(5));
    assert!(matches!(
        tracker.expire(5),
        Some(Transition::Offline { at: 5, .. })
    ));
    assert_eq!(tracker.expire(5), None);
    assert_eq!((tracker.remembered(), tracker.next_deadline()), (0, None));
}
