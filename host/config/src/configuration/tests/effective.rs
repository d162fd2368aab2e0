//! The settings in effect, key by key, and when a change of a key takes effect.

use serde_json::{Value, json};

use super::*;

fn read(text: &str, env: &[(&str, &str)]) -> LoadedConfig {
    let folder = folder_with(text);
    Config::read_in(folder.path(), None, variables(env)).unwrap()
}

fn value(read: &LoadedConfig, key: &str) -> Value {
    let setting = read.settings.iter().find(|it| it.key == key).unwrap();
    setting.effective(&read.config).unwrap_or_default()
}

fn place(read: &LoadedConfig, key: &str) -> String {
    let setting = read.settings.iter().find(|it| it.key == key).unwrap();
    let place = setting.place.as_ref().map(ToString::to_string);
    let place = place.unwrap_or_else(|| "default".into());
    place
        .rsplit_once('/')
        .map_or(place.clone(), |(_, file)| file.into())
}

#[test]
fn each_key_has_its_value_and_its_place() {
    let text = "[tracker]\ntimeout_ms = 1_000\ngrace_ms = 7\n[nats]\nurl = 'nats://ann:s3cret@a:1'";
    let env = [
        ("PRESENCE_TRACKER_TIMEOUT_MS", "45_000"),
        ("PRESENCE_TRACKER_BROADCAST", "device,location"),
    ];
    let read = read(text, &env);
    assert_eq!(value(&read, "tracker.timeout_ms"), 45_000);
    assert_eq!(
        place(&read, "tracker.timeout_ms"),
        "PRESENCE_TRACKER_TIMEOUT_MS"
    );
    assert_eq!(value(&read, "tracker.grace_ms"), 7);
    assert_eq!(place(&read, "tracker.grace_ms"), "presence.toml:3:1");
    assert_eq!(
        value(&read, "tracker.broadcast"),
        json!(["device", "location"])
    );
    assert_eq!(value(&read, "http.listen"), "127.0.0.1:18520");
    assert_eq!(place(&read, "http.listen"), "default");
    assert_eq!(value(&read, "nats.url"), json!(["nats://a:1"]));
    assert_eq!(value(&read, "nats.user"), "ann");
    assert_eq!(value(&read, "nats.password"), "(secret)");
    let password = read.settings.iter().find(|it| it.key == "nats.password");
    assert_eq!(password.unwrap().implied_by(&read.config), Some("nats.url"));
    assert_eq!(value(&read, "nats.tls.required"), false);
}

#[test]
fn no_secret_is_shown_wherever_it_is_set() {
    let texts = [
        "[nats]\nuser = 'ann'\npassword = 's3cret'",
        "[nats]\ntoken = 's3cret'",
        "[nats]\nurl = 'nats://s3cret@a'",
        "[nats]\nurl = ['nats://ann:s3cret@a:1', 'nats://ann:s3cret@b:1']",
        "[http]\nadmin_token = 's3cret-of-an-operator'",
        "[telemetry]\nheaders = 'authorization=s3cret'",
    ];
    let mut all: Vec<_> = texts.iter().map(|text| read(text, &[])).collect();
    all.push(read("", &[("PRESENCE_NATS_TOKEN", "s3cret")]));
    all.push(read("", &[("PRESENCE_NATS_URL", "nats://ann:s3cret@a:1")]));
    for read in all {
        for setting in &read.settings {
            let shown = setting.effective(&read.config).unwrap_or_default();
            assert!(!shown.to_string().contains("s3cret"), "{}", setting.key);
        }
    }
}

#[test]
fn every_key_without_a_value_of_its_own_has_the_documented_default() {
    let read = read("", &[]);
    let without: Vec<_> = read
        .settings
        .iter()
        .filter(|it| it.effective(&read.config).is_none())
        .map(|it| &*it.key)
        .collect();
    let expected = [
        "nats.creds",
        "nats.nkey",
        "nats.user",
        "nats.password",
        "nats.token",
        "nats.tls.ca",
        "nats.tls.cert",
        "nats.tls.key",
        "plugins.grants",
        "http.admin_token",
        "telemetry.headers",
        "telemetry.headers_file",
    ];
    assert_eq!(without, expected);
    // A default that is commented out in the reference file is the one that applies, too.
    let folder = tempfile::tempdir().unwrap();
    let shown = |key: &str| value(&read, key).as_str().unwrap().to_owned();
    let text = format!("[http]\nlisten = '{}'", shown("http.listen"));
    std::fs::write(folder.path().join(FILE_NAME), text).unwrap();
    let config = Config::load_in(folder.path(), None, variables(&[])).unwrap();
    assert_eq!(config.http.listen, Config::default().http.listen);
}

/// A public key.
const KEY: &str = "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

/// The variables that give a key another value than its default, with those that must be set
/// together with it.
fn other(key: &str, default: Option<&Value>) -> Vec<(String, String)> {
    let variable = |key: &str| format!("PRESENCE_{}", key.replace('.', "_").to_uppercase());
    let text = match (key, default) {
        ("node.name", _) => "other".into(),
        ("nats.url", _) => "nats://other:1".into(),
        ("nats.reply_prefixes", _) => "_OTHER.".into(),
        ("directory.source", _) => "request".into(),
        ("plugins.source", _) => "store".into(),
        ("plugins.grants", _) => "log".into(),
        ("plugins.trusted_keys", _) => KEY.into(),
        ("limits.plugins_max", _) => "7".into(),
        ("limits.messages_burst", _) => "7".into(),
        ("directory.request.subject", _) => "people".into(),
        ("log.level", _) => "warn".into(),
        ("log.format", _) => "json".into(),
        ("http.listen", _) => "127.0.0.1:1".into(),
        ("http.admin_token", _) => "another-token-of-an-operator".into(),
        ("telemetry.otlp", _) => "http://127.0.0.1:1".into(),
        ("telemetry.sample", _) => "0.5".into(),
        ("telemetry.headers", _) => "a=b".into(),
        ("fleet.standbys", _) => "2".into(),
        (_, Some(Value::Number(number))) => (number.as_u64().unwrap() + 1).to_string(),
        (_, Some(Value::Bool(is))) => (!is).to_string(),
        (_, Some(Value::Array(_))) => "device".into(),
        (_, Some(Value::String(_)) | None) => "other".into(),
        (_, Some(other)) => panic!("{key} is {other}"),
    };
    let beside = match key {
        "nats.user" => Some(("nats.password", "other")),
        "nats.password" => Some(("nats.user", "other")),
        "nats.tls.cert" => Some(("nats.tls.key", "other")),
        "nats.tls.key" => Some(("nats.tls.cert", "other")),
        "plugins.require_signature" => Some(("plugins.trusted_keys", KEY)),
        _ => None,
    };
    let beside = beside.map(|(key, text)| (variable(key), text.into()));
    [(variable(key), text)].into_iter().chain(beside).collect()
}

#[test]
fn when_a_change_of_each_key_takes_effect_is_as_the_node_has_it() {
    let defaults = read("", &[]);
    for setting in &defaults.settings {
        let default = setting.effective(&defaults.config);
        let change = other(&setting.key, default.as_ref());
        // The keys of a source only count if the source is chosen.
        let source = match &*setting.key {
            key if key.starts_with("directory.kv.") => "kv",
            key if key.starts_with("directory.request.") => "request",
            _ => "file",
        };
        let mut before = vec![("PRESENCE_DIRECTORY_SOURCE", source)];
        let folder = tempfile::tempdir().unwrap();
        let load = |env: &[(&str, &str)]| {
            let read = Config::read_in(folder.path(), None, variables(env)).unwrap();
            assert!(
                read.problems.is_none(),
                "{}: {:?}",
                setting.key,
                read.problems
            );
            read.config
        };
        let old = load(&before);
        before.retain(|(name, _)| change.iter().all(|(other, _)| other != name));
        before.extend(change.iter().map(|(name, text)| (&**name, &**text)));
        let changes = old.changes(&load(&before));
        let effects: Vec<_> = changes.iter().map(|change| change.effect).collect();
        assert!(!effects.is_empty(), "{} changes nothing", setting.key);
        let expected = effect_of(&setting.key);
        assert!(
            effects.iter().all(|it| *it == expected),
            "{}: {changes:?}",
            setting.key
        );
    }
}
