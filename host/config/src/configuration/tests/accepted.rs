//! What valid configurations mean.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::*;
use crate::OnFailure;

fn reference() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../presence.toml")
}

/// The defaults, with paths in the given folder.
fn defaults_in(folder: &Path) -> Config {
    let file = folder.join(FILE_NAME);
    ConfigReader::new(&file, Lines::of(""), BTreeMap::new()).read_defaults(Config::read)
}

#[test]
fn without_a_file_the_defaults_hold() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::load_in(folder.path(), None, variables(&[])).unwrap();
    assert_eq!(config, defaults_in(folder.path()));
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let config = Config::default();
    assert_eq!(config.nats.url, ["nats://127.0.0.1:4222".parse().unwrap()]);
    assert_eq!(config.nats.auth, Auth::Anonymous);
    assert_eq!(config.tenant.prefix, None);
    assert_eq!(config.tracker.timeout_ms, 30_000);
    assert_eq!(config.tracker.grace_ms, 0);
    assert_eq!(
        config.tracker.broadcast,
        ["device", "userAgent", "location", "connId"]
    );
    assert_eq!(
        config.directory,
        Directory::File {
            path: "directory.json".into(),
            is_named: false,
        }
    );
    assert_eq!(config.plugins.dir, Path::new("plugins.d"));
    assert_eq!(config.http.listen, Some("127.0.0.1:18520".parse().unwrap()));
    assert!(config.http.listen_is_default);
    assert!(config.engine.thread_count() >= 1);
    let chain: Vec<_> = config
        .pipeline
        .iter()
        .map(|stage| stage.plugin.as_str())
        .collect();
    assert_eq!(chain, ["contacts", "groups", "blocklist", "redact"]);
}

#[test]
fn the_contracts_minimal_file_means_the_defaults() {
    let folder = folder_with(
        r#"
        [nats]
        url = "nats://127.0.0.1:4222"
        [tracker]
        timeout_ms = 30000
        grace_ms = 0
        [directory]
        source = "file"
        path = "directory.json"
        [plugins]
        dir = "plugins.d"
        [[pipeline]]
        plugin = "contacts"
        [[pipeline]]
        plugin = "groups"
        [[pipeline]]
        plugin = "blocklist"
        [[pipeline]]
        plugin = "redact"
        config = { keys = ["device"] }
        "#,
    );
    let config = Config::load_in(folder.path(), None, variables(&[])).unwrap();
    let mut expected = defaults_in(folder.path());
    if let Directory::File { is_named, .. } = &mut expected.directory {
        // A file that the configuration names must exist.
        *is_named = true;
    }
    assert_eq!(config, expected);
}

#[test]
fn the_reference_file_means_the_defaults() {
    let config = Config::load(Some(&reference()), variables(&[])).unwrap();
    assert_eq!(config, defaults_in(reference().parent().unwrap()));
}

#[test]
fn the_reference_file_names_every_key_that_can_be_set() {
    // Every key of the file: those in force, and those commented out.
    let uncommented = settings::uncommented();
    let document: toml::Table = uncommented.parse().unwrap();
    let mut written = Vec::new();
    variables_of("PRESENCE", &document, &mut written);
    written.sort();

    let known = ConfigReader::new(Path::new(FILE_NAME), Lines::of(""), BTreeMap::new())
        .variables_of(Config::read);
    assert_eq!(written, known);
}

/// The names of the variables that would override the values of a table.
fn variables_of(prefix: &str, table: &toml::Table, names: &mut Vec<String>) {
    for (key, value) in table {
        let name = format!("{prefix}_{}", key.to_uppercase());
        match value {
            toml::Value::Table(table) => variables_of(&name, table, names),
            _ if key == "pipeline" => {}
            _ => names.push(name),
        }
    }
}

#[test]
fn variables_win_over_the_file_and_have_the_keys_own_type() {
    let text = "[nats]\nurl = 'nats://a'\n[tracker]\ntimeout_ms = 1\n[tenant]\nprefix = 'acme'";
    let env = [
        ("PRESENCE_NATS_URL", "nats://b:1, c:2"),
        ("PRESENCE_NATS_TLS_REQUIRED", "true"),
        ("PRESENCE_TRACKER_TIMEOUT_MS", "45_000"),
        ("PRESENCE_TRACKER_BROADCAST", r#"["device", "a,b"]"#),
        ("PRESENCE_DIRECTORY_SOURCE", "kv"),
        ("PRESENCE_DIRECTORY_KV_BUCKET", "people"),
        ("PRESENCE_TENANT_PREFIX", ""),
        ("PRESENCE_NATS_PASSWORD", "5"),
        ("PRESENCE_NATS_USER", "true"),
        ("PRESENCE_LOG_FORMAT", "json"),
    ];
    let config = load(text, &env).unwrap();
    let servers = ["nats://b:1", "nats://c:2"].map(|url| url.parse().unwrap());
    assert_eq!(config.nats.url, servers);
    assert!(config.nats.tls.required);
    assert_eq!(config.tracker.timeout_ms, 45_000);
    assert_eq!(config.tracker.broadcast, ["device", "a,b"]);
    assert_eq!(
        config.directory,
        Directory::Kv {
            bucket: "people".into()
        }
    );
    assert_eq!(config.tenant.prefix, None);
    assert_eq!(config.log.format, LogFormat::Json);
    let Auth::Password { user, password } = &config.nats.auth else {
        panic!("{:?}", config.nats.auth);
    };
    assert_eq!((user.as_str(), password.reveal()), ("true", "5"));
}

#[test]
fn an_address_may_carry_a_login_which_nothing_prints() {
    let text = "[nats]\nurl = ['nats://ann:p%40ss@a:1', 'ann:p%40ss@b', 'nats://c/']";
    let config = load(text, &[]).unwrap();
    let servers = ["nats://a:1", "nats://b", "nats://c/"].map(|url| url.parse().unwrap());
    assert_eq!(config.nats.url, servers);
    let Auth::Password { user, password } = &config.nats.auth else {
        panic!("{:?}", config.nats.auth);
    };
    assert_eq!((user.as_str(), password.reveal()), ("ann", "p@ss"));
    let printed = format!("{config:?}");
    assert!(
        !printed.contains("p@ss") && !printed.contains("p%40ss"),
        "{printed}"
    );
    let config = load("[nats]\nurl = 'nats://t0ken@a:1'", &[]).unwrap();
    assert!(matches!(&config.nats.auth, Auth::Token(token) if token.reveal() == "t0ken"));
}

#[test]
fn what_needs_tls_asks_for_it() {
    let needs = [
        "ca = 'ca.pem'",
        "cert = 'a.pem'\nkey = 'a.key'",
        "required = true",
    ];
    for key in needs {
        let config = load(&format!("[nats.tls]\n{key}"), &[]).unwrap();
        assert!(config.nats.tls.required, "{key}");
    }
    let config = load("[nats]\nurl = ['nats://a:1', 'tls://b:1']", &[]).unwrap();
    assert!(config.nats.tls.required);
    assert!(!load("", &[]).unwrap().nats.tls.required);
}

#[test]
fn paths_are_relative_to_the_files_folder() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("node.toml");
    let text = "[nats]\ncreds = 'a.creds'\n[nats.tls]\nca = '/etc/ca.pem'\n[plugins]\ndir = '../p'";
    std::fs::write(&file, text).unwrap();
    let env = [("PRESENCE_DIRECTORY_PATH", "people.json")];
    let config = Config::load(Some(&file), variables(&env)).unwrap();
    assert_eq!(config.nats.auth, Auth::Creds(folder.path().join("a.creds")));
    assert_eq!(config.nats.tls.ca, Some("/etc/ca.pem".into()));
    assert_eq!(config.plugins.dir, folder.path().join("../p"));
    let path = folder.path().join("people.json");
    let is_named = true;
    assert_eq!(config.directory, Directory::File { path, is_named });
}

#[test]
fn a_pipeline_keeps_its_order_configuration_and_grants() {
    let config = load(
        r#"
        [[pipeline]]
        plugin = "groups"
        [[pipeline]]
        plugin = "vip"
        grants = ["widen"]
        [pipeline.config]
        ratio = 0.5
        since = 2024-01-01
        limits = { "per day" = 3, deep = [{ on = true }] }
        [[pipeline]]
        plugin = "vip"
        [[pipeline]]
        plugin = "contacts"
        grants = []
        on_failure = "last-good"
        source = "folder"
        "#,
        &[],
    )
    .unwrap();
    let stage = |plugin: &str, config, grants: &[Grant]| Stage {
        plugin: plugin.into(),
        config,
        grants: grants.to_vec(),
        source: None,
        digest: None,
        on_failure: None,
        place: StagePlace::default(),
    };
    let fallible = Stage {
        source: Some(Source::Folder),
        on_failure: Some(OnFailure::LastGood),
        ..stage("contacts", json!({}), &[])
    };
    let limits = json!({ "per day": 3, "deep": [{ "on": true }] });
    assert_eq!(
        config.pipeline,
        [
            stage("groups", json!({}), &[Grant::Widen]),
            stage(
                "vip",
                json!({ "ratio": 0.5, "since": "2024-01-01", "limits": limits }),
                &[Grant::Widen]
            ),
            stage("vip", json!({}), &[]),
            fallible,
        ]
    );
}

#[test]
fn an_empty_address_turns_http_off_and_a_written_one_is_no_default() {
    let off = load("[http]\nlisten = ''", &[]).unwrap().http;
    assert_eq!(off.listen, None);
    let written = load("[http]\nlisten = '127.0.0.1:18520'", &[])
        .unwrap()
        .http;
    assert!(!written.listen_is_default);
    assert_eq!(written.listen, Config::default().http.listen);
}

#[test]
fn an_operators_token_is_long_and_shown_to_nobody() {
    assert_eq!(Config::default().http.admin_token, None);
    let token = "0123456789abcdef";
    let file = format!("[http]\nadmin_token = '{token}'");
    let http = load(&file, &[]).unwrap().http;
    assert_eq!(http.admin_token.as_ref().map(|it| it.reveal()), Some(token));
    assert!(!format!("{http:?}").contains(token), "{http:?}");
    for short in [
        "",
        "0123456789abcde",
        "0123456789 abcdef",
        "0123456789abcdé",
    ] {
        let file = format!("[http]\nadmin_token = '{short}'");
        let said = load(&file, &[]).unwrap_err().to_string();
        assert!(said.contains("admin_token"), "{said}");
        assert!(short.is_empty() || !said.contains(short), "{said}");
    }
}

#[test]
fn telemetry_is_off_unless_a_collector_is_named_and_shows_no_header() {
    let off = Config::default().telemetry;
    assert_eq!((off.otlp, off.sample), (None, 0.0));
    let folder = folder_with(
        "[telemetry]\notlp = 'http://127.0.0.1:4318/otlp'\nsample = 1\n\
         headers = 'authorization=Bearer%20s3cret'\nheaders_file = 'more.headers'",
    );
    std::fs::write(folder.path().join("more.headers"), "x-team = acme\n").unwrap();
    let on = Config::load_in(folder.path(), None, variables(&[])).unwrap();
    let on = on.telemetry;
    assert_eq!(on.otlp.as_ref().unwrap().path(), "/otlp");
    assert_eq!(on.sample, 1.0);
    assert!(!format!("{on:?}").contains("s3cret"), "{on:?}");
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let both = [
        pair("authorization", "Bearer s3cret"),
        pair("x-team", "acme"),
    ];
    assert_eq!(on.headers().unwrap(), both);
    std::fs::write(folder.path().join("more.headers"), "s3cret").unwrap();
    let error = format!("{:#}", on.headers().unwrap_err());
    assert!(error.contains("headers_file"), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
    std::fs::remove_file(folder.path().join("more.headers")).unwrap();
    let error = format!("{:#}", on.headers().unwrap_err());
    assert!(error.contains("can't read"), "{error}");
}

#[test]
fn a_collectors_address_that_is_none_is_refused_without_its_login() {
    for (text, said) in [
        ("otlp = 'collector:4318'", "neither http:// nor https://"),
        ("otlp = '4318'", "is no address"),
        ("otlp = 'http://ann:s3cret@a'", "has a login in it"),
        ("otlp = 'http://a/?x=1'", "has a query"),
        ("headers = 's3cret'", "without a `=`"),
        ("sample = 1.5", "choose a number from 0 to 1"),
        ("sample = nan", "write a number"),
        ("interval_ms = 5", "from 100 to 3600000"),
    ] {
        let error = load(&format!("[telemetry]\n{text}"), &[])
            .unwrap_err()
            .to_string();
        assert!(error.contains(said), "{error}");
        assert!(!error.contains("s3cret"), "{error}");
    }
}

#[test]
fn an_empty_folder_turns_the_state_off_and_a_written_one_is_no_default() {
    assert_eq!(load("[state]\ndir = ''", &[]).unwrap().state.dir, None);
    let folder = folder_with("[state]\ndir = 'presence-state'");
    let written = Config::load_in(folder.path(), None, variables(&[])).unwrap();
    assert!(!written.state.dir_is_default);
    assert_eq!(written.state.dir, defaults_in(folder.path()).state.dir);
}

#[test]
fn an_empty_folder_turns_the_cache_off() {
    assert_eq!(
        load("[plugins]\ncache = ''", &[]).unwrap().plugins.cache,
        None
    );
    let folder = folder_with("[plugins]\ncache = 'compiled'");
    let config = Config::load_in(folder.path(), None, variables(&[])).unwrap();
    let cache = config.plugins.cache.unwrap();
    assert_eq!(cache, folder.path().join("compiled"));
    let own = Config::default().plugins.cache;
    assert!(own.is_none_or(|own| own.is_absolute() && own.ends_with("presence")));
}

#[test]
fn secrets_are_not_printed() {
    let env = [("PRESENCE_NATS_TOKEN", "s3cret")];
    let config = load("", &env).unwrap();
    assert!(!format!("{config:?}").contains("s3cret"));
    let printed = problems(
        "[nats]\nurl = 'http://me:s3cret@host'\npassword = 's3cret'",
        &[],
    );
    assert!(!printed.join("\n").contains("s3cret"), "{printed:?}");
}

#[test]
fn of_several_logins_or_doubtful_encryption_nothing_is_guessed() {
    let both = "[nats]\nurl = 'nats://ann:s3cret@a'\ntoken = 't'";
    let two = "[nats]\nurl = ['nats://ann:s3cret@a', 'nats://ben:s3cret@b']";
    let no_tls = "[nats]\nurl = 'tls://a'\n[nats.tls]\nrequired = false";
    let said = [both, two, no_tls].map(|text| problems(text, &[]).join("\n"));
    let expected = [
        "`url` in [nats] carries a login, and another is set beside it; keep one of them",
        "`url` in [nats] carries several logins; keep one, the same in each address",
        "`required` in [nats.tls] is false, and certificates or a `tls://` address are set, \
         which need TLS; leave it out, or take them out",
    ];
    for (said, expected) in said.iter().zip(expected) {
        assert!(said.contains(expected), "{said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
}

#[test]
fn changes_are_named_with_when_they_take_effect() {
    let old = Config::default();
    assert_eq!(old.changes(&old), []);

    let mut new = old.clone();
    new.tracker.grace_ms = 5;
    new.engine.fuel += 1;
    new.engine.workers = 7;
    new.tenant.prefix = Some("acme".into());
    let live = |section| Change {
        section,
        effect: Effect::Live,
    };
    let restart = |section| Change {
        section,
        effect: Effect::Restart,
    };
    assert_eq!(
        old.changes(&new),
        [
            restart("tenant"),
            live("tracker"),
            live("engine"),
            restart("engine.workers")
        ]
    );

    let mut kept = new.clone();
    kept.directory = Directory::Kv { bucket: "b".into() };
    kept.keep_until_restart(&old);
    assert_eq!(
        old.changes(&kept),
        [live("tracker"), live("engine")],
        "what takes effect at the next start stays as it was"
    );

    let mut login = old.clone();
    login.nats.auth = Auth::Nkey("node.nk".into());
    assert_eq!(old.changes(&login), [live("nats login")]);
    login.nats.beacon_ms += 1;
    assert_eq!(old.changes(&login), [restart("nats"), live("nats login")]);

    let mut threads = old.clone();
    threads.engine.workers = 7;
    assert_eq!(old.changes(&threads), [restart("engine.workers")]);
}

#[test]
fn a_tenant_has_as_many_shards_as_threads_or_the_next_power_of_two_unless_it_says() {
    for (text, shards) in [
        ("[engine]\nworkers = 1", 1),
        ("[engine]\nworkers = 2", 2),
        ("[engine]\nworkers = 6", 8),
        ("[engine]\nworkers = 2\n[tenant]\nshards = 16", 16),
        ("[engine]\nworkers = 8\n[tenant]\nshards = 1", 1),
    ] {
        assert_eq!(load(text, &[]).unwrap().shard_count(), shards, "{text}");
    }
}
