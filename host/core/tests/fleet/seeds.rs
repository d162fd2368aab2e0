//! The seeds that every test run uses, and the mistakes that they find.

use std::ops::RangeInclusive;

use presence_core::fleet::replica::Mutation;

use crate::stream::{StreamMistake, StreamMode};
use crate::world::{Options, run};

/// The number of seeds of every test run. Two tests share them, for two cores.
const SEEDS: u64 = 2_000;

fn holds(seeds: RangeInclusive<u64>) {
    let mut violations = Vec::new();
    let (mut events, mut takeovers, mut handovers, mut caught_up) = (0, 0, 0, 0);
    let count = seeds.clone().count();
    for seed in seeds {
        let options = Options {
            trace: count == 1,
            ..Options::default()
        };
        let report = run(seed, options);
        print!("{}", report.trace);
        events += report.events;
        takeovers += report.takeovers;
        handovers += report.handovers;
        caught_up += report.caught_up;
        let found = report.violations.into_iter();
        violations.extend(found.map(|what| format!("seed {seed}, at {what}")));
    }
    // Seeds in which nothing happens prove nothing.
    if count > 1 {
        assert!(events > 10 * count && takeovers > count && handovers > count);
    }
    println!(
        "{count} seeds: {events} filtered events, {takeovers} takeovers, {handovers} hand-overs, \
         {caught_up} snapshots at the end"
    );
    assert!(violations.is_empty(), "{violations:#?}");
}

/// As [`holds`], with connects and disconnects from a stream.
fn holds_with_a_stream(stream: StreamMode, seeds: u64) {
    let (from, to) = wanted().unwrap_or((1, seeds + 1));
    let options = Options {
        stream,
        trace: to - from == 1,
        ..Options::default()
    };
    let mut violations = Vec::new();
    let (mut again, mut takeovers) = (0, 0);
    for seed in from..to {
        let report = run(seed, options);
        print!("{}", report.trace);
        again += report.again;
        takeovers += report.takeovers;
        let found = report.violations.into_iter();
        violations.extend(found.map(|what| format!("seed {seed}, at {what}")));
    }
    let count = (to - from) as usize;
    println!("{count} seeds: {again} messages were delivered again, {takeovers} takeovers");
    assert!(count == 1 || (again > count && takeovers > count));
    assert!(violations.is_empty(), "{violations:#?}");
}

#[test]
fn what_is_acknowledged_in_the_stream_is_lost_by_no_single_fault() {
    holds_with_a_stream(StreamMode::OneFault, 600);
}

#[test]
fn the_promises_hold_with_a_stream_whatever_fails() {
    holds_with_a_stream(StreamMode::AnyFault, 400);
}

/// The seeds in the variable `SIMULATE`, if it is set: `from..to`, without `to`.
fn wanted() -> Option<(u64, u64)> {
    let text = std::env::var("SIMULATE").ok()?;
    let (from, to) = text.split_once("..").expect("SIMULATE is `from..to`");
    Some((from.parse().unwrap(), to.parse().unwrap()))
}

fn half(second: bool) -> RangeInclusive<u64> {
    let (from, to) = wanted().unwrap_or((1, SEEDS + 1));
    let middle = from + (to - from) / 2;
    match second {
        false => from..=middle - 1,
        true => middle..=to - 1,
    }
}

#[test]
fn the_promises_hold_for_the_first_half_of_the_seeds() {
    holds(half(false));
}

#[test]
fn the_promises_hold_for_the_second_half_of_the_seeds() {
    holds(half(true));
}

#[test]
fn a_seed_reproduces_to_the_byte() {
    for seed in [1, 7, 94] {
        let options = Options {
            trace: true,
            ..Options::default()
        };
        let (first, second) = (run(seed, options), run(seed, options));
        assert!(first.trace.lines().count() > 100, "seed {seed}");
        assert_eq!(first.trace, second.trace, "seed {seed}");
        assert_eq!(
            first.digest,
            run(seed, Options::default()).digest,
            "seed {seed}"
        );
        assert_ne!(first.digest, run(seed + 1, options).digest, "seed {seed}");
    }
}

/// Checks that some of the first seeds find the mistake, by a violation with each of these texts.
fn caught(options: Options, says: &[&str]) {
    for says in says {
        let found = (1..=400).find_map(|seed| {
            let violations = run(seed, options).violations.into_iter();
            let mut violations = violations.filter(|what| what.contains(says));
            Some((seed, violations.next()?))
        });
        let (seed, what) = found.unwrap_or_else(|| panic!("no `{says}` with {options:?}"));
        println!("{options:?}: seed {seed}, at {what}");
    }
}

fn mutation(mutation: Mutation) -> Options {
    Options {
        mutation,
        ..Options::default()
    }
}

const FALSE_OFFLINE: &str = "stayed connected, and";
const GHOST: &str = "shows them as online";
const TWICE: &str = "was told twice";
const WRONG_IN_THE_END: &str = "in the end, client";

fn stream(mistake: StreamMistake) -> Options {
    Options {
        stream: StreamMode::OneFault,
        mistake,
        ..Options::default()
    }
}

#[test]
fn a_router_that_acknowledges_is_noticed() {
    let says = "a disconnect was stored, and lost";
    caught(stream(StreamMistake::RouterAcknowledges), &[says]);
}

#[test]
fn a_stream_whose_order_counts_for_nothing_is_noticed() {
    let says = "a disconnect was stored, and lost";
    caught(stream(StreamMistake::NoPlaces), &[says]);
}

#[test]
fn a_client_that_takes_what_an_earlier_owner_says_is_noticed() {
    let no_fencing = Options {
        no_fencing: true,
        ..Options::default()
    };
    caught(no_fencing, &[FALSE_OFFLINE]);
}

#[test]
fn an_owner_that_goes_on_after_its_lease_is_noticed() {
    caught(mutation(Mutation::NoLease), &["has two owners"]);
}

#[test]
fn a_standby_that_takes_no_snapshot_is_noticed() {
    caught(mutation(Mutation::NoCatchUp), &[FALSE_OFFLINE, TWICE]);
}

#[test]
fn a_takeover_without_decisions_is_noticed() {
    caught(mutation(Mutation::NoDecisions), &[GHOST]);
}

#[test]
fn an_owner_that_tells_its_standbys_nothing_is_noticed() {
    caught(mutation(Mutation::NoTelling), &["differs"]);
}

#[test]
fn a_standby_that_takes_in_no_statements_is_noticed() {
    let options = Options {
        stream: StreamMode::OneFault,
        ..mutation(Mutation::NoStatements)
    };
    caught(options, &[FALSE_OFFLINE, WRONG_IN_THE_END]);
}

#[test]
fn an_owner_that_ends_nothing_that_is_not_repeated_is_noticed() {
    let keeps_statements = Options {
        keeps_statements: true,
        ..Options::default()
    };
    caught(keeps_statements, &[GHOST, WRONG_IN_THE_END]);
}

#[test]
fn a_standby_that_compares_nothing_but_the_ledger_is_noticed() {
    caught(mutation(Mutation::NoComparison), &["says", "has c"]);
}

#[test]
fn an_owner_that_keeps_heartbeats_to_itself_is_noticed() {
    caught(mutation(Mutation::NoHeartbeats), &[FALSE_OFFLINE]);
}
