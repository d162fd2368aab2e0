//! A node's own login, and the operators' token, are printed nowhere: not in the log at its most
//! verbose level, not in an error, and not by any command or endpoint.

use std::fs;

use anyhow::{Context, Result, ensure};
use nkeys::KeyPair;
use presence_tests::host::{self, Host};
use presence_tests::http;
use presence_tests::identity::OperatorServer;
use presence_tests::nats::{NatsServer, Options};
use presence_tests::site::Site;

/// The token with which operators log in to the page.
const ADMIN: &str = "4dm1n-0f-the-p4ge-c0ffee";

/// A login: the server's configuration for it, the node's configuration, and what is secret.
struct Login {
    server: String,
    /// Keys of the configuration.
    keys: Vec<(&'static str, String)>,
    /// A file of the site, and its content.
    file: Option<(&'static str, String)>,
    /// The login in the address, before the `@`.
    address: &'static str,
    secrets: Vec<String>,
}

fn logins() -> Result<Vec<Login>> {
    let one = |user: &str| format!("authorization {{ users = [ {{ {user} }} ] }}");
    let of_password = one(r#"user: presence, password: "p4ss/w0rd-h1dden""#);
    let key = KeyPair::new_user();
    let operated = OperatorServer::new()?;
    let creds = operated.creds()?;
    let creds_secrets: Vec<_> = creds
        .lines()
        .filter(|line| line.starts_with("eyJ") || line.starts_with("SU"))
        .map(str::to_owned)
        .collect();
    ensure!(creds_secrets.len() == 2, "a token and a seed");
    let login = |server: String, secrets: &[&str]| Login {
        server,
        keys: Vec::new(),
        file: None,
        address: "",
        secrets: secrets.iter().map(|it| (*it).to_owned()).collect(),
    };
    Ok(vec![
        Login {
            keys: vec![
                ("nats.user", "presence".into()),
                ("nats.password", "p4ss/w0rd-h1dden".into()),
            ],
            ..login(of_password.clone(), &["w0rd-h1dden"])
        },
        Login {
            address: "presence:p4ss%2Fw0rd-h1dden@",
            ..login(of_password, &["w0rd-h1dden"])
        },
        Login {
            keys: vec![("nats.token", "t0ken-h1dden".into())],
            ..login(
                "authorization { token: t0ken-h1dden }".into(),
                &["t0ken-h1dden"],
            )
        },
        Login {
            keys: vec![("nats.nkey", "node.nk".into())],
            file: Some(("node.nk", key.seed()?)),
            ..login(one(&format!("nkey: {}", key.public_key())), &[&key.seed()?])
        },
        Login {
            keys: vec![("nats.creds", "node.creds".into())],
            file: Some(("node.creds", creds)),
            secrets: creds_secrets,
            ..login(operated.config, &[])
        },
    ])
}

/// All outputs, each with its origin.
struct Outputs(Vec<(String, String)>);

impl Outputs {
    /// Runs a command, and keeps its output, whether it fails or not.
    fn run(&mut self, site: &Site, args: &[&str]) -> Result<()> {
        let output = host::run(site, args)?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        ensure!(!text.is_empty(), "{args:?} says nothing");
        self.0.push((format!("presence {}", args.join(" ")), text));
        Ok(())
    }

    fn hold_none_of(&self, secrets: &[String]) -> Result<()> {
        for (place, text) in &self.0 {
            for secret in secrets.iter().map(String::as_str).chain([ADMIN]) {
                // A part of a secret must not occur, either.
                let (begin, end) = secret.split_at(secret.len() / 2);
                for part in [secret, begin, end].into_iter().filter(|it| it.len() >= 5) {
                    let line = text.lines().find(|line| line.contains(part));
                    ensure!(line.is_none(), "{place} has `{part}`: {line:?}");
                }
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn nothing_prints_what_is_logged_in_with() -> Result<()> {
    for (number, login) in logins()?.into_iter().enumerate() {
        let outcome = try_login(&login).await;
        outcome.with_context(|| format!("login {number}: {:?}", login.keys))?;
    }
    Ok(())
}

async fn try_login(login: &Login) -> Result<()> {
    let mut server = NatsServer::start_with(Options {
        config: login.server.clone(),
        ..Options::default()
    })
    .await?;
    let url = server
        .url()
        .replace("nats://", &format!("nats://{}", login.address));
    let mut site = Site::new(&url)?
        .with("log.level", "trace")?
        .with("http.admin_token", ADMIN)?;
    for (key, value) in &login.keys {
        site.set(key, value.as_str())?;
    }
    if let Some((file, content)) = &login.file {
        fs::write(site.path().join(file), content)?;
    }
    let mut host = Host::start(&site).await?;
    let mut outputs = Outputs(Vec::new());
    for args in [
        &["config"][..],
        &["config", "--json"],
        &["status"],
        &["status", "--json"],
        &["check", "--connect"],
        &["check", "--connect", "--json"],
        &["query", "ada", "ben"],
        &["plugins", "list"],
        &["pipeline", "show"],
        &["dlq", "list"],
    ] {
        outputs.run(&site, args)?;
    }
    for path in ["/", "/metrics", "/status", "/readyz", "/livez", "/nothing"] {
        let answer = http::get(site.http_port(), path).await?;
        outputs.0.push((path.into(), answer.body));
    }

    // The broker refuses the login from now on, and the configuration has several errors.
    server.stop().await?;
    host.unready().await?;
    server.set_config("authorization { token: another }")?;
    server.resume().await?;
    host.wait_for_log(0, &["authorization violation"]).await?;
    outputs.run(&site, &["query", "ada", "ben"])?;
    outputs.run(&site, &["check", "--connect"])?;
    let from = host.log_len();
    site.set("nats.unknown", 1)?;
    site.set("http.admin_token", format!(" {ADMIN}"))?;
    host.wait_for_log(from, &["unknown key"]).await?;
    outputs.run(&site, &["check"])?;
    let text = fs::read_to_string(site.config_path())?;
    let broken = text.replace('"', "");
    presence_tests::tools::write_atomically(&site.config_path(), broken)?;
    outputs.run(&site, &["config"])?;
    outputs.run(&site, &["run"])?;
    if let Some((file, content)) = &login.file {
        let cut = content.get(..content.len() - 20).unwrap_or_default();
        fs::write(site.path().join(file), cut)?;
        presence_tests::tools::write_atomically(&site.config_path(), text)?;
        outputs.run(&site, &["query", "ada", "ben"])?;
    }
    let log = host.process.stderr();
    ensure!(log.len() > 100, "a talkative log");
    outputs.0.push(("the log".into(), log.join("\n")));
    outputs.hold_none_of(&login.secrets)?;
    // A secret that is there is found: the check can fail.
    let held = Outputs(vec![(
        "here".into(),
        format!("{} {ADMIN}", login.secrets.join(" ")),
    )]);
    ensure!(held.hold_none_of(&login.secrets).is_err());
    host.kill().await
}

#[tokio::test]
async fn a_difference_shows_no_secret_of_a_plugins_configuration() -> Result<()> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?.with("plugins.source", "store")?;
    let config =
        "keys = [\"device\"], api = { token = \"t0ken-h1dden\", url = \"http://u:pw-h1dden@h\" }";
    let pipeline = format!("[[pipeline]]\nplugin = \"redact\"\nconfig = {{ {config} }}\n");
    let file = site.path().join("next.toml");
    fs::write(&file, pipeline)?;
    let file = file.to_str().context("a path")?;
    for more in [&[][..], &["--json"]] {
        let args = [&["pipeline", "diff", file], more].concat();
        let output = host::run(&site, &args)?;
        let printed = String::from_utf8(output.stdout)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(
            printed.contains("device") && printed.contains("***"),
            "{printed}{errors}"
        );
        ensure!(
            !printed.contains("h1dden") && !errors.contains("h1dden"),
            "{printed}{errors}"
        );
    }
    Ok(())
}
