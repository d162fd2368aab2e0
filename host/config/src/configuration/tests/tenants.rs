//! `[[tenant]]` sections.

use super::*;

fn tenants(text: &str, env: &[(&str, &str)]) -> Vec<TenantSection> {
    let config = load(text, env).unwrap();
    config.tenants.as_deref().unwrap_or_default().to_vec()
}

/// The problems of each tenant, without the folder of the file.
fn wrong(text: &str) -> Vec<Vec<String>> {
    let tenants = tenants(text, &[]);
    let problems = tenants.iter().map(|tenant| match &tenant.config {
        Ok(_) => Vec::new(),
        Err(problems) => {
            let lines = problems.iter().map(ToString::to_string);
            let bare = |line: String| match line.rsplit_once("/presence.toml:") {
                Some((_, rest)) if !line.contains(" at ") => rest.to_owned(),
                _ => line,
            };
            lines.map(bare).collect()
        }
    });
    problems.collect()
}

const THREE: &str = "
[nats]
url = 'nats://a:4222'
user = 'node'
password = 'p'
[tracker]
timeout_ms = 9000
grace_ms = 7
[directory]
source = 'kv'
[[pipeline]]
plugin = 'public'
[[tenant]]
name = 'acme'
[tenant.tracker]
timeout_ms = 5000
[[tenant]]
name = 'beta'
prefix = 'b'
shards = 4
paused = true
[tenant.directory]
path = 'b.json'
[[tenant.pipeline]]
plugin = 'contacts'
[[tenant.pipeline]]
plugin = 'redact'
[[tenant]]
name = 'gamma'
prefix = ''
nats = { creds = 'gamma.creds' }
";

#[test]
fn a_tenant_is_as_its_section_says_and_else_as_the_file_does() {
    let tenants = tenants(THREE, &[]);
    let config = |place: usize| tenants[place].config.clone().unwrap();
    let [acme, beta, gamma] = [0, 1, 2].map(config);
    assert_eq!(acme.tenant.prefix.as_deref(), Some("acme"));
    assert_eq!((acme.tracker.timeout_ms, acme.tracker.grace_ms), (5_000, 7));
    assert_eq!((beta.tracker.timeout_ms, beta.tracker.grace_ms), (9_000, 7));
    assert_eq!(
        (acme.pipeline_line(), acme.tenant.shards),
        ("public".into(), 1)
    );
    assert_eq!(
        (beta.pipeline_line(), beta.tenant.shards),
        ("contacts → redact".into(), 4)
    );
    assert_eq!(beta.tenant.prefix.as_deref(), Some("b"));
    assert!(matches!(acme.directory, Directory::Kv { .. }));
    assert!(matches!(&beta.directory, Directory::File { path, .. } if path.ends_with("b.json")));
    assert_eq!(gamma.tenant.prefix, None);
    assert!(
        matches!(gamma.nats.auth, Auth::Creds(_)),
        "{:?}",
        gamma.nats.auth
    );
    assert_eq!(gamma.nats.url, acme.nats.url, "on the same server");
    let flags: Vec<_> = tenants
        .iter()
        .map(|it| (it.paused, it.own_account))
        .collect();
    assert_eq!(flags, [(false, false), (true, false), (false, true)]);
    // The names of the tenants tell their files on disk apart.
    let files = [&acme, &beta, &gamma].map(|config| config.tenant.file_name().to_owned());
    assert_eq!(files, ["acme", "beta", "gamma"]);
}

#[test]
fn without_tenants_there_is_one_as_ever() {
    let config = load("[tenant]\nprefix = 'acme'\n", &[]).unwrap();
    assert_eq!(
        (config.tenants.clone(), config.tenant.name.clone()),
        (None, None)
    );
    assert_eq!(config.tenant.file_name(), "acme");
    assert_eq!(Config::default().tenant.file_name(), "presence");
}

#[test]
fn a_variable_is_for_what_a_tenant_leaves_out() {
    let env = [
        ("PRESENCE_TRACKER_TIMEOUT_MS", "1000"),
        ("PRESENCE_TRACKER_GRACE_MS", "3"),
    ];
    let tenants = tenants(THREE, &env);
    let ms = tenants.iter().map(|it| {
        let config = it.config.as_ref().unwrap();
        (config.tracker.timeout_ms, config.tracker.grace_ms)
    });
    assert_eq!(ms.collect::<Vec<_>>(), [(5_000, 3), (1_000, 3), (1_000, 3)]);
    let env = [("PRESENCE_NATS_USER", "u"), ("PRESENCE_NATS_PASSWORD", "p")];
    let text = "[[tenant]]\nname = 'a'\n[tenant.nats]\ntoken = 't'\n[[tenant]]\nname = 'b'\n";
    let tenants = self::tenants(text, &env);
    let auth = |place: usize| tenants[place].config.as_ref().unwrap().nats.auth.clone();
    assert!(matches!(auth(0), Auth::Token(_)), "its own login alone");
    assert!(matches!(auth(1), Auth::Password { .. }));
    let printed = problems(text, &[("PRESENCE_TENANT_PREFIX", "x")]);
    assert!(
        printed[0].starts_with("PRESENCE_TENANT_PREFIX: stands beside [[tenant]]"),
        "{printed:?}"
    );
}

#[test]
fn no_part_of_a_login_goes_to_another_server_or_user() {
    let text = "
[nats]
url = ['nats://node:secret@a:4222', 'nats://node:secret@b:4222']
[nats.tls]
ca = 'ca.pem'
cert = 'node.pem'
key = 'node.key'
[[tenant]]
name = 'as-the-file'
nats = { intake_queue = 7 }
[[tenant]]
name = 'elsewhere'
nats = { url = 'nats://c:4222' }
[[tenant]]
name = 'own-user'
nats = { user = 'u', password = 'p' }
[[tenant]]
name = 'own-certificate'
nats = { tls = { cert = 'own.pem', key = 'own.key' } }
";
    let of_file = |text: &str, env: &[(&str, &str)]| {
        let nats = tenants(text, env)
            .into_iter()
            .map(|it| it.config.unwrap().nats.clone());
        nats.collect::<Vec<_>>()
    };
    let certificate = |nats: &Nats| {
        let own = nats.tls.identity.as_ref()?;
        own.cert.file_name()?.to_str().map(str::to_owned)
    };
    let user = |nats: &Nats| match &nats.auth {
        Auth::Password { user, .. } => Some(user.clone()),
        _ => None,
    };
    let said = |nats: &Nats| (nats.servers(), user(nats), certificate(nats));
    let both = || "a:4222, b:4222".to_owned();
    let some = |text: &str| Some(text.to_owned());
    let nats = of_file(text, &[]);
    assert_eq!(said(&nats[0]), (both(), some("node"), some("node.pem")));
    assert_eq!(said(&nats[1]), ("c:4222".into(), None, None));
    assert!(nats[1].tls.ca.is_some(), "whom to trust is no login");
    assert_eq!(said(&nats[2]), (both(), some("u"), None));
    assert_eq!(said(&nats[3]), (both(), None, some("own.pem")));
    // The same, if variables set the keys.
    let env = [
        (
            "PRESENCE_NATS_URL",
            "nats://node:secret@a:4222,nats://node:secret@b:4222",
        ),
        ("PRESENCE_NATS_TLS_CERT", "node.pem"),
        ("PRESENCE_NATS_TLS_KEY", "node.key"),
    ];
    let text = text.split_once("[[tenant]]").unwrap().1;
    let nats = of_file(&format!("[[tenant]]{text}"), &env);
    assert_eq!(said(&nats[0]), (both(), some("node"), some("node.pem")));
    assert_eq!(said(&nats[1]), ("c:4222".into(), None, None));
    assert_eq!(said(&nats[2]), (both(), some("u"), None));
    assert_eq!(said(&nats[3]), (both(), None, some("own.pem")));
}

#[test]
fn what_sets_the_keys_of_a_tenant_is_known_of_each() {
    let path = Path::new("/etc/presence.toml");
    let text = Text::of(THREE);
    let read = Config::parse_in(
        Path::new(""),
        Some(path),
        Some(&text),
        std::iter::empty(),
        NodeTenants::default(),
    );
    let read = read.unwrap();
    let timeout = |name: &str| {
        let read = read.of_tenant(name).unwrap();
        let setting = read
            .settings
            .iter()
            .find(|it| it.key == "tracker.timeout_ms");
        let setting = setting.unwrap().clone();
        let place = setting.place.as_ref().map(ToString::to_string);
        (setting.effective(&read.config).unwrap(), place.unwrap())
    };
    let (acme, place) = timeout("acme");
    assert_eq!(acme, 5_000);
    assert!(place.ends_with("presence.toml:16:1"), "{place}");
    let (beta, place) = timeout("beta");
    assert_eq!(beta, 9_000);
    assert!(place.ends_with("presence.toml:7:1"), "{place}");
    let error = read.of_tenant("x").err().unwrap().to_string();
    assert!(error.ends_with("no tenant `x` in the configuration: acme, beta, gamma"));
}

#[test]
fn what_is_wrong_with_one_tenant_is_said_with_its_line_and_is_no_others() {
    let text = "[[tenant]]
name = 'acme'
[tenant.tracker]
timeout_ms = 'x'
grace = 1
[[tenant]]
prefix = 'p'
[[tenant]]
name = 'c'
http = { listen = '' }
[[tenant]]
name = 'presence'
[[tenant]]
name = 'd'
prefix = ''
tracker = 1
[[tenant]]
name = 'fine'
";
    let wrong = wrong(text);
    assert!(
        wrong[0][0].starts_with("4:1: `timeout_ms` in [tracker] is a string"),
        "{wrong:?}"
    );
    assert!(
        wrong[0][1].starts_with("5:1: unknown key `grace` in [tracker]"),
        "{wrong:?}"
    );
    assert!(
        wrong[1][0].starts_with("6:1: `name` in [[tenant]] is missing"),
        "{wrong:?}"
    );
    assert!(
        wrong[2][0].starts_with("10:1: unknown key `http` in [[tenant]]"),
        "{wrong:?}"
    );
    assert!(
        wrong[3][0].contains("can't be the prefix as well"),
        "{wrong:?}"
    );
    assert!(
        wrong[4][0].starts_with("15:1: `prefix` in [[tenant]] is empty"),
        "{wrong:?}"
    );
    assert!(
        wrong[4][1].starts_with("16:1: [tracker] is a whole number"),
        "{wrong:?}"
    );
    assert_eq!(wrong[5], Vec::<String>::new());
}

#[test]
fn subjects_and_names_of_another_tenant_are_refused() {
    let text = "[[tenant]]
name = 'a'
[[tenant]]
name = 'b'
prefix = 'a'
[[tenant]]
name = 'a'
prefix = 'c'
[[tenant]]
name = 'd'
nats = { token = 't' }
prefix = 'a'
[[tenant]]
name = 'e'
nats = { token = 't' }
prefix = 'a'
[[tenant]]
name = 'f'
[tenant.nats]
reply_prefixes = ['_INBOX.', 'a.']
[[tenant]]
name = 'g'
[tenant.nats]
reply_prefixes = ['g.', 'replies.']
[[tenant]]
name = 'h'
prefix = '_INBOX'
";
    let wrong = wrong(text);
    let has = |place: usize, what: &str| {
        let line = wrong[place].first().map_or("", |line| line);
        assert!(line.contains(what), "{place}: {wrong:?}");
    };
    assert_eq!(wrong[0], Vec::<String>::new());
    has(1, "would have the subjects of `a`");
    has(2, "the tenant `a` is there already");
    assert_eq!(wrong[3], Vec::<String>::new(), "another account");
    has(4, "would have the subjects of `d`");
    has(5, "holds `a.`, where the subjects of the tenant `a` are");
    assert_eq!(wrong[6], Vec::<String>::new(), "its own");
    has(7, "which other subjects begin with");
}

#[test]
fn a_command_is_for_one_tenant() {
    let config = load(THREE, &[]).unwrap();
    let acme = config.clone().for_tenant(Some("acme")).unwrap();
    assert_eq!(acme.tenant.prefix.as_deref(), Some("acme"));
    for (name, says) in [
        (None, "name one with --tenant (acme, beta, gamma)"),
        (Some("x"), "there is no tenant `x`"),
    ] {
        let error = config.clone().for_tenant(name).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    assert!(Config::default().for_tenant(None).is_ok());
    assert!(Config::default().for_tenant(Some("acme")).is_err());
}

#[test]
fn a_tenant_has_limits_of_its_own_and_grants_its_plugins_what_it_says() {
    let text = "
[limits]
messages_per_s = 100
connections_max = 7
[engine]
fuel = 5000
[plugins]
grants = ['widen', 'contacts']
[[tenant]]
name = 'acme'
isolated = true
grants = ['contacts']
[tenant.limits]
messages_per_s = 10
weight = 4
[tenant.engine]
fuel = 2000
worker_queue = 3
[[tenant]]
name = 'beta'
";
    let env = [("PRESENCE_PLUGINS_GRANTS", "log")];
    let tenants = tenants(text, &env);
    let [acme, beta] = [0, 1].map(|place: usize| tenants[place].config.clone().unwrap());
    let of = |config: &Config| {
        let limits = &config.limits;
        (
            limits.messages_per_s,
            limits.messages_burst,
            limits.connections_max,
            limits.weight,
        )
    };
    assert_eq!([of(&acme), of(&beta)], [(10, 10, 7, 4), (100, 100, 7, 1)]);
    assert_eq!([acme.tenant.isolated, beta.tenant.isolated], [true, false]);
    assert_eq!([acme.engine.fuel, beta.engine.fuel], [2_000, 5_000]);
    assert_eq!(acme.engine.queues.worker_queue, 3);
    assert_eq!(acme.plugins.grants, Some(vec![Grant::Contacts]));
    assert_eq!(beta.plugins.grants, Some(vec![Grant::Log]));
    // Keys that all tenants share are refused, and so are two keys that say the same.
    let text = "
[[tenant]]
name = 'acme'
grants = ['log']
[tenant.engine]
workers = 2
[tenant.plugins]
grants = ['log']
[[tenant]]
name = 'beta'
grants = ['all']
limits = { weight = 0 }
";
    let [acme, beta] = &*wrong(text) else {
        panic!("two tenants");
    };
    let all = acme.join("\n");
    assert!(all.contains("`engine` in [[tenant]] has `workers`, which are shared by all tenants"));
    assert!(all.contains("`grants` in [[tenant]] is there, and [tenant.plugins] `grants`"));
    assert_eq!(acme.len(), 2, "{all}");
    let all = beta.join("\n");
    assert!(
        all.contains("names `all`") && all.contains("choose a number from 1 to 1000"),
        "{all}"
    );
}

#[test]
fn each_tenant_is_a_fleet_as_its_section_says_and_else_as_the_file_does() {
    let text = "
[fleet]
enabled = true
lease_ms = 4000
[[tenant]]
name = 'acme'
[[tenant]]
name = 'beta'
[tenant.fleet]
shards = 64
standbys = 2
[[tenant]]
name = 'alone'
shards = 4
fleet = { enabled = false }
";
    let tenants = tenants(text, &[]);
    let config = |place: usize| tenants[place].config.clone().unwrap();
    let [acme, beta, alone] = [0, 1, 2].map(config);
    let said = |config: &Config| {
        let fleet = &config.fleet;
        let shards = config.shard_count();
        (fleet.enabled, shards, fleet.lease_ms, fleet.standbys)
    };
    assert_eq!(said(&acme), (true, 8, 4_000, 1), "many tenants are small");
    assert_eq!(said(&beta), (true, 64, 4_000, 2));
    assert_eq!(said(&alone), (false, 4, 4_000, 1));
    let with_shards = text.replace("lease_ms = 4000", "shards = 32");
    let tenants = self::tenants(&with_shards, &[]);
    let shards = tenants
        .iter()
        .map(|it| it.config.as_ref().unwrap().fleet.shards);
    assert_eq!(shards.collect::<Vec<_>>(), [32, 64, 32]);
    let one = load("[fleet]\nenabled = true\n", &[]).unwrap();
    assert_eq!(one.shard_count(), 64);
    let by_variable = self::tenants(
        "[[tenant]]\nname = 'acme'\n",
        &[("PRESENCE_FLEET_ENABLED", "true")],
    );
    assert!(by_variable[0].config.as_ref().unwrap().fleet.enabled);
}

#[test]
fn what_does_not_fit_a_tenants_fleet_is_refused_with_its_line_and_concerns_no_other() {
    let text = "[fleet]
enabled = true
[[tenant]]
name = 'acme'
shards = 4
[[tenant]]
name = 'beta'
[tenant.tracker]
timeout_ms = 3000
[[tenant]]
name = 'gamma'
";
    let shards = "5:1: `shards` in [[tenant]] is set, and a fleet serves the tenant; leave it out: \
                  `shards` in [fleet] or [tenant.fleet] says how many there are";
    let lease = "1:2: `lease_ms` in [fleet] is 6000, which is too long for `timeout_ms` = 3000 in \
                 [tracker]: a node that is cut off would report users as gone before its lease \
                 ends; choose a lease of at most two thirds of the timeout (2000), or a longer \
                 timeout";
    let problems = wrong(text);
    let [acme, beta, gamma] = &problems[..] else {
        panic!("{problems:?}")
    };
    assert_eq!(acme, &[shards]);
    assert!(beta.len() == 1 && beta[0].ends_with(lease), "{beta:?}");
    assert!(gamma.is_empty(), "{gamma:?}");
}
