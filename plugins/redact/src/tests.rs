use presence_plugin::testing::{Host, Outcome, Read, Rendition, config};
use presence_plugin::{Reason, Redactor};

use super::Redact;

/// `ben` and `cleo` are contacts of `ada`, and `cleo` and `dan` share a group with
/// her; `eve` and `fay` do neither.
fn host() -> Host {
    Host::new()
        .contacts("ada", ["ben", "cleo"])
        .group("team-a", ["ada", "cleo", "dan"])
}

const ALL: [&str; 5] = ["ben", "cleo", "dan", "eve", "fay"];

fn redact(json: &str) -> Redact {
    config(json).and_then(Redact::configure).unwrap()
}

/// What comes of it when `ada` goes offline.
fn offline(host: &Host, redact: &Redact) -> Outcome<Vec<Rendition>> {
    let ada = host.offline("ada", 1_000, Reason::Logout);
    ada.redact(redact, ALL)
}

/// Each rendition's viewers, with `!` behind those who don't get to know when the
/// user was last seen.
fn seen(outcome: &Outcome<Vec<Rendition>>) -> Vec<String> {
    let renditions = outcome.answer.iter().map(|rendition| {
        let not = if rendition.last_seen { "" } else { "!" };
        format!("{}{not}", rendition.viewers.join(" "))
    });
    renditions.collect()
}

const TIERS: &str = r#"{"tiers": [
    {"for": "contacts", "keys": ["device", "location"], "last_seen": true},
    {"for": "groups", "keys": ["device"]},
    {"for": "everyone", "keys": []}
]}"#;

#[test]
fn a_viewer_gets_the_first_tier_to_which_they_belong() {
    let outcome = offline(&host(), &redact(TIERS));
    assert_eq!(seen(&outcome), ["ben cleo", "dan!", "eve fay!"]);
    let keys = outcome.answer.iter().map(|rendition| rendition.keys.len());
    assert_eq!(keys.collect::<Vec<_>>(), [2, 1, 0]);
    assert!(outcome.explained.is_empty());
}

#[test]
fn a_viewer_in_no_tier_gets_none_and_it_says_why() {
    let tiers = r#"{"tiers": [
        {"for": "groups", "keys": []},
        {"for": "contacts", "keys": [], "last_seen": true}
    ]}"#;
    let outcome = offline(&host(), &redact(tiers));
    assert_eq!(seen(&outcome), ["cleo dan!", "ben"]);
    assert_eq!(
        outcome.explained,
        ["viewers who belong to no tier are not told"]
    );
}

#[test]
fn nothing_is_asked_once_nobody_is_left() {
    let host = host();
    let outcome = host.online("ada").redact(&redact(TIERS), ["ben", "cleo"]);
    assert_eq!(seen(&outcome), ["ben cleo"]);
    let asked: Vec<_> = outcome.reads.into_iter().collect();
    assert_eq!(asked, [Read::Contacts("ada".to_owned())]);
}

/// With `keys` for all, and with users' own settings.
const SETTINGS: &str = r#"{"keys": ["device"], "user_settings": true}"#;

#[test]
fn when_the_user_was_last_seen_is_withheld_within_the_same_tier() {
    let host = host().setting("ada", "lastSeen", "contacts");
    let outcome = offline(&host, &redact(SETTINGS));
    assert_eq!(seen(&outcome), ["ben cleo", "dan eve fay!"]);
    for rendition in &outcome.answer {
        assert_eq!(rendition.keys, ["device"]);
    }
    assert_eq!(
        outcome.explained,
        ["the user shows only contacts when they were last seen"]
    );
}

#[test]
fn a_part_of_nobody_is_left_out() {
    let none = host().setting("ada", "lastSeen", "nobody");
    let all = ["ben cleo dan eve fay"];
    assert_eq!(
        seen(&offline(&none, &redact(SETTINGS))),
        [format!("{}!", all[0])]
    );
    let everyone = host().setting("ada", "lastSeen", "everyone");
    assert_eq!(seen(&offline(&everyone, &redact(SETTINGS))), all);
}

#[test]
fn who_shows_nobody_theirs_does_not_get_to_know_it_of_others() {
    let reciprocal = r#"{"user_settings": true, "reciprocal": true}"#;
    let host = host().setting("eve", "lastSeen", "nobody");
    let outcome = offline(&host, &redact(reciprocal));
    assert_eq!(seen(&outcome), ["ben cleo dan fay", "eve!"]);
}

#[test]
fn an_online_event_depends_on_no_setting() {
    let host = host().setting("ada", "lastSeen", "nobody");
    let outcome = host.online("ada").redact(&redact(SETTINGS), ALL);
    assert_eq!(seen(&outcome), ["ben cleo dan eve fay"]);
    assert!(outcome.reads.is_empty());
}
