use std::cell::Cell;

use serde_json::json;

use super::*;
use crate::{Audience, Change, Enricher, Filter, NoConfig, directory, explain, log, reconsider_at};

fn viewers(host: &Host, of: impl FnOnce() -> Audience) -> Vec<String> {
    host.online("ada").call(|_| of().viewers()).answer
}

#[test]
fn nobody_is_their_own_contact_or_shares_a_group_with_themselves() {
    let host = Host::new()
        .contacts("ada", ["ada", "ben"])
        .group("team-a", ["ada", "cleo"])
        .group("team-b", ["dan"]);
    assert_eq!(viewers(&host, || directory::contacts("ada")), ["ben"]);
    assert_eq!(viewers(&host, || directory::with_contact("ben")), ["ada"]);
    assert_eq!(viewers(&host, || directory::co_members("ada")), ["cleo"]);
    let members = || directory::members("team-a");
    assert_eq!(viewers(&host, members), ["ada", "cleo"]);
}

#[test]
fn everyone_is_all_users_with_an_entry_in_the_directory() {
    let host = Host::new()
        .contacts("a", ["b"])
        .group("team", ["c"])
        .blocks("d", ["nobody-known"])
        .setting("e", "invisible", true);
    assert_eq!(
        viewers(&host, directory::everyone),
        ["a", "b", "c", "d", "e"]
    );
}

#[test]
fn who_is_not_known_has_nothing() {
    let host = Host::new().contacts("ben", ["cleo"]);
    for of in [
        directory::contacts,
        directory::with_contact,
        directory::co_members,
        directory::blocked_by,
        directory::blockers,
        directory::members,
    ] {
        assert!(viewers(&host, || of("ada")).is_empty());
    }
    let event = host.online("ada");
    assert!(event.call(|_| directory::groups("ada")).answer.is_empty());
    let setting = event.call(|_| directory::setting::<bool>("ada", "invisible"));
    assert_eq!(setting.answer, Ok(None));
}

#[test]
fn a_setting_is_found_however_its_value_is_written() {
    let host = Host::new().setting("ben", "who", json!({"b": 1, "a": ["x"]}));
    let outcome = host.online("ada").call(|_| {
        let written = r#" {"a": ["\u0078"], "b": 1}"#;
        let token = crate::bindings::directory::with_setting("who", written);
        Audience::from_token(token).viewers()
    });
    assert_eq!(outcome.answer, ["ben"]);
    let others = || directory::with_setting("who", json!({"b": 2, "a": ["x"]}));
    assert!(viewers(&host, others).is_empty());
}

#[test]
fn a_key_has_its_last_value_in_its_first_place() {
    let host = Host::new();
    let event = host.online("ada");
    let event = event.metadata("a", 1).metadata("b", 2).metadata("a", "x");
    let entries = event.call(crate::Event::entries);
    let keys: Vec<_> = entries.answer.into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["a", "b"]);
    assert_eq!(entries.reads.first(), Some(&Read::AllMetadata));
    assert_eq!(event.call(|event| event.text("a")).answer.unwrap(), "x");
}

#[test]
fn of_what_is_said_as_much_is_kept_as_a_real_host_keeps() {
    let outcome = Host::new().online("ada").call(|_| {
        log::trace!("not even sent");
        log::warn!("{}", "é".repeat(1_000));
        for _ in 0..20 {
            explain("again");
        }
    });
    let (level, line) = &outcome.logged[0];
    assert_eq!((*level, line.len()), (log::Level::Warn, 1_024));
    assert_eq!((outcome.logged.len(), outcome.explained.len()), (1, 15));
}

#[test]
fn the_earliest_time_asked_for_counts() {
    let outcome = Host::new().online("ada").call(|_| {
        reconsider_at(3);
        reconsider_at(2);
        reconsider_at(4);
    });
    assert_eq!(outcome.reconsider_at, Some(2));
}

struct Keeps(Cell<Option<Audience>>);

impl Filter for Keeps {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Keeps(Cell::new(None)))
    }

    fn filter(&self, _: &crate::Event, audience: Audience) -> Audience {
        self.0.replace(Some(audience)).unwrap_or(audience)
    }
}

#[test]
#[should_panic(expected = "used an audience that is not of this call")]
fn an_audience_of_another_call_is_an_error() {
    let keeps = Keeps::configure(NoConfig {}).unwrap();
    let host = Host::new();
    assert_eq!(host.online("ada").filter(&keeps, ["ben"]).answer, ["ben"]);
    host.online("ada").filter(&keeps, ["ben"]);
}

#[test]
#[should_panic(expected = "there is no event to ask about")]
fn there_is_nothing_to_ask_where_nothing_happens() {
    drop(directory::everyone().viewers());
}

#[test]
fn a_call_that_panics_is_over() {
    let host = Host::new().contacts("ada", ["ben"]);
    let panics = || host.online("ada").call(|_| panic!("as it should"));
    assert!(std::panic::catch_unwind(panics).is_err());
    assert_eq!(viewers(&host, || directory::contacts("ada")), ["ben"]);
}

#[test]
#[should_panic(expected = "set `n` to what is not JSON")]
fn an_enricher_sets_json() {
    struct Sloppy;
    impl Enricher for Sloppy {
        type Config = NoConfig;

        fn configure(_: NoConfig) -> Result<Self, String> {
            Ok(Sloppy)
        }

        fn enrich(&mut self, _: &crate::Event) -> Vec<Change> {
            vec![Change::set("n", crate::Value::Json("one".to_owned()))]
        }
    }
    Host::new().online("ada").enrich(&mut Sloppy);
}

#[test]
fn who_was_not_in_the_audience_is_in_no_rendition() {
    struct Widens;
    impl crate::Redactor for Widens {
        type Config = NoConfig;

        fn configure(_: NoConfig) -> Result<Self, String> {
            Ok(Widens)
        }

        fn redact(&self, _: &crate::Event, _: Audience) -> Vec<crate::Rendition> {
            vec![crate::Rendition {
                audience: Audience::of(["ben", "eve"]),
                keys: Vec::new(),
                last_seen: true,
            }]
        }
    }
    let outcome = Host::new().online("ada").redact(&Widens, ["ben", "cleo"]);
    assert_eq!(outcome.answer[0].viewers, ["ben"]);
}

/// A counter, of another version than the next one.
struct Old(u64);
struct New(Vec<u64>);

macro_rules! enricher {
    ($plugin:ident, $state:expr) => {
        impl Enricher for $plugin {
            type Config = NoConfig;

            fn configure(_: NoConfig) -> Result<Self, String> {
                Ok($plugin($state))
            }

            fn enrich(&mut self, _: &crate::Event) -> Vec<Change> {
                Vec::new()
            }
        }
    };
}
enricher!(Old, 0);
enricher!(New, Vec::new());

impl Stateful for Old {
    type State = u64;

    const VERSION: u32 = 1;

    fn save(&self) -> u64 {
        self.0
    }

    fn restore(&mut self, state: u64) -> Result<(), String> {
        self.0 = state;
        Ok(())
    }
}

impl Stateful for New {
    type State = Vec<u64>;

    const VERSION: u32 = 2;

    fn save(&self) -> Vec<u64> {
        self.0.clone()
    }

    fn restore(&mut self, state: Vec<u64>) -> Result<(), String> {
        self.0 = state;
        Ok(())
    }

    fn upgrade(version: u32, json: &str) -> Result<Vec<u64>, String> {
        match (version, json.parse()) {
            (1, Ok(count)) => Ok(vec![count]),
            _ => Err("it is neither of my versions".to_owned()),
        }
    }
}

#[test]
fn a_newer_version_may_take_over_an_older_state_and_not_the_other_way_round() {
    let (mut old, mut new) = (Old(7), New(Vec::new()));
    assert_eq!(reload(&old, &mut new), Ok(()));
    assert_eq!(new.0, [7]);
    let refused = Err("the state is of version 2, and this plugin reads version 1".to_owned());
    assert_eq!(reload(&new, &mut old), refused);
}
