//! Released versions of `presence:plugin`: their files don't change, and components that were built
//! against them work as before.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use presence_core::event::Reason;
use presence_core::rules::{Decision, Rules};
use presence_sandbox::manifest::API;
use presence_sandbox::{Plugin, Stage, self_test, sha256};
use serde_json::{Value, json};

use crate::component::with_manifest;
use crate::log::logged;
use crate::stage::{ENGINE, LIMITS, bytes, configured, loaded, pipeline};
use crate::world::{NOW, World};

/// The released versions, each with the SHA-256 of its WIT file.
const RELEASED: [(&str, &str); 1] = [(
    "0.1.0",
    "42e2939eb73b03ebdcbd7f9cf8aaf42559e9d5f446bc1f07cb4a08bd401e28f7",
)];

fn crate_folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let folders = entries.filter(|entry| entry.path().is_dir());
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    folders.map(name).collect()
}

fn frozen(version: &str, name: &str) -> Arc<Plugin> {
    let path = crate_folder(&format!("tests/frozen/{version}/{name}.wasm"));
    loaded(name, &fs::read(path).unwrap())
}

fn stage(version: &str, name: &str, config: Value) -> Stage {
    Stage::new(frozen(version, name), config, true, None)
}

#[test]
fn a_released_version_never_changes() {
    let released: BTreeSet<_> = RELEASED.map(|(version, _)| version.to_owned()).into();
    assert_eq!(names(&crate_folder("tests/frozen")), released);
    // The newest version may not be released yet.
    let mut known = released;
    known.insert(API.to_owned());
    assert_eq!(names(&crate_folder("../../wit")), known);
    for (version, digest) in RELEASED {
        let path = crate_folder(&format!("../../wit/{version}/presence.wit"));
        let found = sha256(&fs::read(&path).unwrap());
        assert_eq!(
            &*found,
            digest,
            "{}: what is released stays as it is; make a new version",
            path.display()
        );
    }
}

#[test]
fn components_of_every_version_pass_their_self_tests() {
    for (version, _) in RELEASED {
        for name in ["reader", "redact", "sessions"] {
            let plugin = frozen(version, name);
            assert_eq!(plugin.manifest.api, version);
            let outcomes: Vec<_> = self_test::run(&plugin, LIMITS).collect();
            assert!(!outcomes.is_empty());
            for outcome in outcomes {
                assert!(outcome.passes(), "{version} {name}: {outcome:?}");
            }
        }
    }
}

#[test]
fn all_that_there_was_to_ask_is_answered_as_it_was() {
    let mut world = World::new(&json!({
        "contacts": {"ada": ["ben"], "cleo": ["ada"], "ben": ["dan"]},
        "groups": {"team": ["ada", "eve"], "others": ["finn"]},
        "blocks": {"ada": ["dan"]},
        "settings": {"ada": {"visible": true}, "gus": {"theme": "dark"}},
    }));
    world.online("ada", r#"{"device":"phone","battery":7}"#);
    let steps = json!([
        "contacts", "with_contact", {"contacts_of_user": "ben"}, {"members": "others"},
        "co_members", {"with_setting": {"key": "theme", "value": "dark"}}, "blocked_by",
        "len", "viewers", {"contains": "eve"}, {"contains": "dan"},
        "timestamp", "last_seen", "reason", {"get": "device"}, {"get": "mood"}, "entries",
        "now", {"reconsider_at": NOW + 60_000}, "groups", {"setting": "visible"},
    ]);
    for (version, _) in RELEASED {
        let mut rules = pipeline([stage(version, "reader", json!({"steps": steps}))]);
        let mut decision = None;
        let lines = logged(|| decision = Some(world.decide(&mut rules)));
        let Some(Decision::Decided(renditions, reads)) = decision else {
            panic!("not decided by {version}: {decision:?}");
        };
        let viewers = world.viewers(&renditions[0].audience);
        assert_eq!(viewers, ["ben", "cleo", "eve", "finn", "gus"], "{version}");
        assert_eq!(reads.reconsider_at, Some(NOW + 60_000), "{version}");
        assert_eq!(lines, EXPECTED_LINES, "{version}");
    }
}

const EXPECTED_LINES: [&str; 13] = [
    "len: 5",
    r#"viewers: ["ben", "cleo", "eve", "finn", "gus"]"#,
    "contains: true",
    "contains: false",
    "timestamp: 1698000000000",
    "last-seen: None",
    "reason: None",
    r#"get: Some(Value::Text("phone"))"#,
    "get: None",
    r#"entries: [("device", Value::Text("phone")), ("battery", Value::Json("7"))]"#,
    "now: 1698000000000",
    r#"groups: ["team"]"#,
    "setting: Ok(Some(true))",
];

#[test]
fn an_offline_says_what_it_said() {
    let mut world = World::new(&json!({}));
    world.offline(1_697_999_999_000, Reason::Logout);
    for (version, _) in RELEASED {
        let steps = json!({"steps": ["last_seen", "reason", "everyone"]});
        let mut rules = pipeline([stage(version, "reader", steps)]);
        let lines = logged(|| drop(world.decide(&mut rules)));
        assert_eq!(
            lines,
            [
                "last-seen: Some(1697999999000)",
                "reason: Some(OfflineReason::Logout)"
            ],
            "{version}"
        );
    }
}

#[test]
fn renditions_are_what_they_were() {
    let world = World::new(&json!({
        "contacts": {"ada": ["ben"]},
        "groups": {"team": ["ada", "cleo"]},
    }));
    let told = world.audience(&["ben", "cleo", "dan"]);
    for (version, _) in RELEASED {
        let tiers = json!({"tiers": [
            {"for": "contacts", "keys": ["device", "location"], "last_seen": true},
            {"for": "groups", "keys": ["device"], "last_seen": false},
        ]});
        let mut rules = pipeline([stage(version, "redact", tiers)]);
        let renditions = world.redacted(&mut rules, &told);
        let found: Vec<_> = renditions
            .iter()
            .map(|part| {
                (
                    world.viewers(&part.audience),
                    part.keys.len(),
                    part.last_seen,
                )
            })
            .collect();
        let expected = [
            (vec!["ben".into()], 2, true),
            (vec!["cleo".into()], 1, false),
        ];
        assert_eq!(found, expected, "{version}");
    }
}

#[test]
fn state_goes_over_to_todays_build_and_back() {
    for (version, _) in RELEASED {
        let world = World::new(&json!({}));
        let old = || stage(version, "sessions", json!({}));
        let new = || configured("sessions", json!({}));
        let mut before = pipeline([old()]);
        for (count, next) in [(1, new()), (2, old()), (3, new())] {
            let changes = before.enrich(world.context()).changes;
            assert_eq!(
                changes,
                [("sessions".to_owned(), Some(count.to_string()))],
                "{version}"
            );
            let mut after = pipeline([next]);
            after.take_over(&mut before);
            before = after;
        }
    }
}

#[test]
fn components_of_all_versions_decide_together() {
    let world = World::new(&json!({
        "contacts": {"ada": ["ben", "cleo", "dan"]},
        "blocks": {"ada": ["cleo"], "dan": ["ada"]},
    }));
    for (version, _) in RELEASED {
        let chain = [
            stage(version, "reader", json!({"steps": ["contacts"]})),
            configured("blocklist", json!({"mutual": true})),
            stage(version, "redact", json!({"keys": ["device"]})),
        ];
        assert_eq!(world.visible(&mut pipeline(chain)), ["ben"], "{version}");
    }
}

#[test]
fn a_version_offers_nothing_of_a_later_one() {
    for (version, _) in RELEASED {
        let manifest = json!({
            "name": "rule", "version": "1.0.0", "api": version, "role": "filter",
        });
        let file = with_manifest(&bytes("reader"), &manifest.to_string());
        let refusal = Plugin::load(&ENGINE, "rule", &file)
            .err()
            .unwrap()
            .to_string();
        let word = format!("presence:plugin/directory@{API}");
        assert!(refusal.contains(&word), "{refusal}");
        assert!(
            refusal.ends_with(&format!("nothing but presence:plugin {version}")),
            "{refusal}"
        );
    }
}
