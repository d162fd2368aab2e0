//! The messages for an operator if something is wrong, and the place in each.

use std::os::unix::ffi::OsStringExt as _;

use super::*;
use crate::Place;

#[test]
fn everything_wrong_is_reported_at_once_with_its_line() {
    let text = r#"
[tracker]
timeout = 5
grace_ms = "soon"
broadcast = ["device", "ip"]

[trackr]

[engine]
fuel = 0
retry_ms = 100
retry_ms_max = 10

[nats.tls]
cert = "client.pem"
sni = "x"

[[pipeline]]
plugin = "contacts"
grant = ["widen"]

[[pipeline]]
config = 5
"#;
    let env = [
        ("PRESENCE_TRACKER_TIMEOUT", "5"),
        ("PRESENCE_ENGINE_WORKERS", "many"),
    ];
    assert_eq!(
        problems(text, &env),
        [
            "presence.toml:3:1: unknown key `timeout` in [tracker]; did you mean `timeout_ms`?",
            "presence.toml:4:1: `grace_ms` in [tracker] is a string; write a whole number",
            "presence.toml:5:1: `broadcast` in [tracker] names `ip`, which is never broadcast; \
             take it out of the list",
            "presence.toml:7:2: unknown section or key `trackr`; did you mean `tracker`?",
            "presence.toml:10:1: `fuel` in [engine] is 0; choose a number from 1000 to 1000000000000",
            "presence.toml:12:1: `retry_ms_max` in [engine] makes the first wait (100) longer than \
             the longest (10); set `retry_ms_max` to at least `retry_ms`",
            "presence.toml:15:1: `cert` in [nats.tls] stands without `key`; give both or neither",
            "presence.toml:16:1: unknown key `sni` in [nats.tls]; known here: required, ca, cert, key",
            "presence.toml:20:1: unknown key `grant` in [[pipeline]]; did you mean `grants`?",
            "presence.toml:22:1: `plugin` in [[pipeline]] is missing; name one, such as \
             `plugin = \"contacts\"`",
            "presence.toml:23:1: `config` in [[pipeline]] is a whole number; write a table, such as \
             `{ keys = [\"device\"] }`",
            "PRESENCE_ENGINE_WORKERS: `workers` in [engine] is `many`; write a whole number, \
             not below 0",
            "PRESENCE_TRACKER_TIMEOUT: unknown variable; did you mean \
             `PRESENCE_TRACKER_TIMEOUT_MS`?",
        ]
    );
}

#[test]
fn what_is_no_toml_is_one_problem_with_its_key_and_place() {
    for (text, said) in [
        (
            "[tracker]\ntimeout_ms = \n",
            "2:14: `timeout_ms` has no value; write one after the `=`",
        ),
        (
            "[tracker]\ntimeout_ms =",
            "2:13: `timeout_ms` has no value; write one after the `=`",
        ),
        (
            "[tracker]\n timeout_ms = # soon\n",
            "2:15: `timeout_ms` has no value; write one after the `=`",
        ),
        (
            "[tracker]\ntimeout_ms 5\n",
            "2:12: `timeout_ms` has no value (key with no value, expected `=`); write \
             `timeout_ms = ` and its value",
        ),
        (
            "[nats]\nurl = nats\n",
            "2:7: the value of `url` is not valid TOML (invalid float, expected `nan`); strings \
             need quotes, as in \"text\"",
        ),
        (
            "[nats]\nurl = [\n  \"a\",\n  b,\n]\n",
            "4:3: the value of `url` is not valid TOML (string values must be quoted, expected \
             literal string); strings need quotes, as in \"text\"",
        ),
        (
            "[nats]\nurl = \"a\"\nurl = \"b\"\n",
            "3:1: `url` is there twice; keep one of the two",
        ),
        (
            "[tracker]\n\n[tracker]\n",
            "3:2: [tracker] is there twice; put all of its keys into one",
        ),
        (
            "\u{feff}# a byte order mark is no error\r\n[tracker\r\n",
            "2:9: `[tracker` is not valid TOML (unclosed table, expected `]`); write it as \
             [section] or [[section]]",
        ),
        ("{\n", "1:1: not valid TOML ("),
    ] {
        let problems = problems(text, &[]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        let start = format!("presence.toml:{said}");
        assert!(problems[0].starts_with(&start), "{problems:?}\n{start}");
    }
}

#[test]
fn a_file_that_was_named_must_be_readable() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("other.toml");
    let problems = Config::load(Some(&missing), variables(&[])).unwrap_err();
    let first = problems.iter().next().unwrap();
    assert_eq!(first.place, Place::File(missing));
    assert!(first.what.starts_with("can't be read"), "{first}");
    assert!(Config::load(Some(folder.path()), variables(&[])).is_err());
}

#[test]
fn a_section_that_is_none_is_refused() {
    assert_eq!(
        problems("tracker = 5\npipeline = []\n[[nats]]\n", &[]),
        [
            "presence.toml:1:1: [tracker] is a whole number; write a section [tracker]",
            "presence.toml:2:1: `pipeline` is no list of sections; write one [[pipeline]] for each, \
             or leave it out for the default",
            "presence.toml:3:3: [nats] is a list; write a section [nats]",
        ]
    );
    assert_eq!(problems("[pipeline]\nplugin = \"contacts\"", &[]).len(), 1);
    assert_eq!(problems("pipeline = [1]", &[]).len(), 1);
    let many = "[[pipeline]]\nplugin = 'contacts'\n".repeat(65);
    let said = "presence.toml:1:3: [[pipeline]] is there 65 times; write at most 64";
    assert_eq!(problems(&many, &[]), [said]);
}

#[test]
fn a_variable_does_not_hide_what_is_wrong_in_the_file() {
    let env = [("PRESENCE_TRACKER_TIMEOUT_MS", "5")];
    assert_eq!(problems("[tracker]\ntimeout_ms = true", &env).len(), 1);
}

#[test]
fn variables_that_are_meant_for_a_key_are_refused_and_others_passed_over_and_said() {
    let others = [
        ("PRESENCE_CONFIG", "x.toml"),
        ("PRESENCE_LOG", "debug"),
        ("PRESENCE_BIN", "x"),
        ("PATH", "/bin"),
        ("PRESENCE_SERVICE_HOST", "10.0.0.1"),
        ("PRESENCE_PORT", "tcp://10.0.0.1:4222"),
        ("PRESENCE_PORT_4222_TCP_ADDR", "10.0.0.1"),
        ("PRESENCE_NATS_SERVICE_PORT", "4222"),
        ("PRESENCE_HTTP_PORT", "tcp://10.0.0.1:80"),
    ];
    let config = load("", &others).unwrap();
    assert!(
        config.ignored_variables.is_empty(),
        "{:?}",
        config.ignored_variables
    );
    let config = load("", &[("PRESENCE_QQ", "1")]).unwrap();
    let said = "PRESENCE_QQ: unknown variable; unset it";
    assert!(config.ignored_variables[0].starts_with(said));
    let unknown = [
        ("PRESENCE_GRACE_MS", "1"),
        ("PRESENCE_QQ", "1"),
        ("PRESENCE_PIPELINE_PLUGIN", "x"),
        ("PRESENCE_NATS_QQQQQQQQQQQQ", "x"),
        ("PRESENCE_HTTP_PORT", "80"),
    ];
    let printed = problems("", &unknown);
    assert_eq!(printed.len(), 4, "{printed:?}");
    assert!(
        printed
            .iter()
            .any(|line| line.contains("PRESENCE_GRACE_MS: unknown")
                && line.contains("`PRESENCE_TRACKER_GRACE_MS`"))
    );
    assert!(
        printed
            .iter()
            .any(|line| line.starts_with("PRESENCE_PIPELINE_PLUGIN: unknown variable; unset it")),
        "{printed:?}"
    );
}

#[test]
fn a_variable_that_is_not_text_is_refused_only_where_a_key_is_meant() {
    let folder = folder_with("");
    let bytes = || OsString::from_vec(vec![0xff]);
    let load = |name: &str| {
        let env = [(name.to_owned(), bytes())].into_iter();
        Config::load_in(folder.path(), None, env)
    };
    for name in ["LANG", "HOSTNAME", "PRESENCE_LOG", "PRESENCE_SERVICE_HOST"] {
        assert!(load(name).is_ok(), "{name}");
    }
    let problem = load("PRESENCE_NATS_PASSWORD").unwrap_err().to_string();
    assert!(problem.contains("is not UTF-8"), "{problem}");
}

#[test]
fn values_out_of_their_bounds_are_refused() {
    for text in [
        "[node]\nname = 'a.b'",
        "[node]\nname = ''",
        "[tenant]\nprefix = 'presence'",
        "[tenant]\nprefix = 'a.b'",
        "[nats]\nurl = []",
        "[nats]\nurl = 'http://a'",
        "[nats]\nurl = 'ws://a'",
        "[nats]\nurl = ['a', 'nats://']",
        "[nats]\ncreds = ''",
        "[nats]\nuser = 'a'",
        "[nats]\npassword = 'a'",
        "[nats]\ncreds = 'a'\nnkey = 'b'",
        "[nats]\nuser = 'a'\npassword = 'b'\ntoken = 'c'",
        "[nats]\ncreds = 'a'\npassword = 'b'",
        "[tracker]\ntimeout_ms = 0",
        "[tracker]\ntimeout_ms = -1",
        "[tracker]\ntimeout_ms = 1.5",
        "[tracker]\nbroadcast = ['socketId']",
        "[state]\nflush_ms = 0",
        "[tracker]\nbroadcast = [1]",
        "[directory]\nsource = 'ldap'",
        "[directory.kv]\nbucket = 'a b'",
        "[directory.request]\nsubject = 'presence.directory'",
        "[directory.request]\nsubject = 'a..b'",
        "[directory.request]\nsubject = 'a.>'",
        "[directory.request]\ntimeout_ms = 0",
        "[directory.request]\nttl_ms = 0",
        "[directory.request]\nconcurrency = 0",
        "[directory.request]\nwait_ms = 60001",
        "[[pipeline]]\nplugin = '../x'",
        "[[pipeline]]\nplugin = 'x'\ngrants = ['fly']",
        "[[pipeline]]\nplugin = 'x'\nconfig = { a = nan }",
        "[engine]\nworkers = 2000",
        "[tenant]\nshards = 3",
        "[tenant]\nshards = 2048",
        "[engine]\nretry_ms = 90000",
        "[http]\nlisten = 'localhost'",
        "[log]\nlevel = 'a=b=c'",
        "[log]\nformat = 'xml'",
    ] {
        let printed = problems(text, &[]);
        assert_eq!(printed.len(), 1, "{text}: {printed:?}");
        let lines = text.lines().count();
        assert!(
            printed[0].starts_with(&format!("presence.toml:{lines}:")),
            "{printed:?}"
        );
    }
}

#[test]
fn a_problem_is_one_line_whatever_it_quotes() {
    let env = [
        ("PRESENCE_ENGINE_WORKERS", "a\nb"),
        ("PRESENCE_NATS_\n", ""),
    ];
    let printed = problems(
        "\"new\\nline\" = 1\n[tenant]\nprefix = \"\\u001b[0m\"",
        &env,
    );
    assert_eq!(printed.len(), 4, "{printed:?}");
    assert!(printed.iter().all(|line| !line.contains(char::is_control)));
}

#[test]
fn a_fleet_needs_a_lease_that_fits_and_one_number_of_shards() {
    let text = "[tenant]\nshards = 4\n[tracker]\ntimeout_ms = 3000\n[fleet]\nenabled = true\n\
                lease_ms = 2001\n";
    assert_eq!(
        problems(text, &[]),
        [
            "presence.toml:6:1: `enabled` in [fleet] is true, and `shards` in [tenant] is set, too; \
             leave that out: `shards` in [fleet] says how many there are",
            "presence.toml:7:1: `lease_ms` in [fleet] is 2001, which is too long for `timeout_ms` = \
             3000 in [tracker]: a node that is cut off would report users as gone before its lease \
             ends; choose a lease of at most two thirds of the timeout (2000), or a longer timeout",
        ]
    );
    let off = text.replace("true", "false");
    assert!(load(&off, &[]).is_ok());
}

#[test]
fn an_input_stream_needs_a_name_that_can_be_one_and_a_state_unless_a_fleet_takes_it() {
    let of = |text: &str| problems(&format!("[input]\nstream = {text}\n"), &[]);
    for name in ["a.b", "a b", "a*", ">", "a/b", "a\\\\b", "ä"] {
        let problem = of(&format!("\"{name}\"")).concat();
        assert!(problem.contains("a stream's name has at most"), "{problem}");
    }
    assert_eq!(
        of("\"in\"\n[state]\ndir = \"\""),
        [
            "presence.toml:2:1: `stream` in [input] is set, and `dir` in [state] is \"\": the node \
             would not know after a restart what it has taken from the stream; give [state] a `dir`, \
             or leave `stream` out",
        ]
    );
    let of_fleet = "[input]\nstream = \"in\"\n[state]\ndir = \"\"\n[fleet]\nenabled = true";
    load(of_fleet, &[]).unwrap();
    let config = load("[input]\nstream = \"ORDERS-in_1\"", &[]).unwrap();
    assert_eq!(config.input.stream.as_deref(), Some("ORDERS-in_1"));
    assert_eq!(
        load("[input]\nstream = \"\"", &[]).unwrap().input.stream,
        None
    );
}

#[test]
fn a_secret_where_the_name_of_a_file_belongs_is_not_repeated() {
    let seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    let pem = format!("-----BEGIN USER NKEY SEED-----\\n{}", seed.to_lowercase());
    for (section, key, secret) in [
        ("nats", "nkey", seed),
        ("nats", "creds", seed),
        ("nats", "creds", &pem),
        ("nats.tls", "ca", &pem),
        ("plugins", "dir", seed),
    ] {
        let text = format!("[{section}]\n{key} = \"{secret}\"\n");
        let problems = problems(&text, &[]);
        let expected = format!(
            "presence.toml:2:1: `{key}` in [{section}] holds a key or a seed, where the name of a \
             file belongs; write what it holds into a file that only this user can read, and the \
             file's name here"
        );
        assert_eq!(problems, [expected]);
    }
}
