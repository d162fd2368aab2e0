//! Edits of `[[tenant]]` sections that are clumsy, hostile, or refused by the broker. Each affects
//! only its own tenant, whatever the file says.

use anyhow::{Context as _, Result};
use async_nats::ConnectOptions;
use presence_tests::client::{Client, now_ms};
use presence_tests::host::Host;
use presence_tests::http;
use presence_tests::nats::{NatsServer, Options};
use presence_tests::site::{DIRECTORY, Site};
use presence_tests::{tools, wait};
use serde_json::{Value, json};
use toml::{Table, toml};

use crate::inputs;

/// A server with two accounts, each with a user, and a further user who may use few subjects.
const ACCOUNTS: &str = r#"accounts {
  ONE { jetstream: enabled, users: [
    {user: one, password: p1}
    {user: few, password: p1, permissions: {
      publish: {allow: [
        "acme.>", "beta.>", "_INBOX.>", "$SRV.>", "$JS.>", "_R_.>"
      ], deny: ["_INBOX.private.>"]}
      subscribe: {allow: ["acme.>", "beta.>", "_INBOX.>", "$SRV.>"]}
    }}
  ] }
  TWO { jetstream: enabled, users: [{user: two, password: p2}] }
}"#;

fn tenant(name: &str) -> Table {
    let mut tenant = Table::new();
    tenant.insert("name".into(), name.into());
    tenant
}

fn with(mut tenant: Table, key: &str, value: impl Into<toml::Value>) -> Table {
    tenant.insert(key.into(), value.into());
    tenant
}

fn login(user: &str, password: &str) -> Table {
    with(with(Table::new(), "user", user), "password", password)
}

async fn server() -> Result<(NatsServer, u16)> {
    let monitoring_port = tools::free_port()?;
    let options = Options {
        config: ACCOUNTS.into(),
        monitoring_port: Some(monitoring_port),
        ..Options::default()
    };
    Ok((NatsServer::start_with(options).await?, monitoring_port))
}

/// A site whose node logs in as this user, with the usual directory.
fn site(server: &NatsServer, (user, password): (&str, &str)) -> Result<Site> {
    let site = Site::new(&server.url())?.with("nats.user", user)?;
    let site = site.with("nats.password", password)?;
    let site = site.with("tracker.timeout_ms", 600_000)?;
    site.write_directory(DIRECTORY)?;
    Ok(site)
}

async fn log_in(server: &NatsServer, user: &str, password: &str) -> Result<Client> {
    let options = ConnectOptions::new();
    let options = options.user_and_password(user.into(), password.into());
    let nats = options.connect(server.url()).await?;
    Ok(Client { nats })
}

async fn status(site: &Site) -> Result<Value> {
    let answer = http::get(site.http_port(), "/status").await?;
    Ok(serde_json::from_str(&answer.body)?)
}

/// The state of a tenant, and all that the status says about it.
async fn tenant_of(site: &Site, name: &str) -> Result<(String, String)> {
    let status = status(site).await?;
    let tenants = status["tenants"].as_array().into_iter().flatten();
    let mut tenants = tenants.filter(|it| it["tenant"] == name);
    let Some(tenant) = tenants.next() else {
        return Ok((String::new(), String::new()));
    };
    let state = tenant["state"].as_str().unwrap_or_default().to_owned();
    Ok((state, tenant.to_string()))
}

async fn until_state(site: &Site, name: &str, expected: &str) -> Result<()> {
    let mut last = String::new();
    let reached = wait::until("a tenant's state", async || {
        let (state, all) = tenant_of(site, name).await?;
        last = all;
        Ok((state == expected).then_some(()))
    });
    reached
        .await
        .with_context(|| format!("{name} is not {expected}: {last}"))
}

async fn ready(site: &Site) -> Result<(u16, String)> {
    let answer = http::get(site.http_port(), "/readyz").await?;
    Ok((answer.status, answer.body))
}

async fn connect(client: &Client, prefix: &str, user: &str) -> Result<()> {
    let subject = format!("{prefix}{}", inputs::CONNECT);
    let body = inputs::connect(user, "c1", now_ms());
    client.input(&subject, body).await.map(drop)
}

async fn status_of(client: &Client, prefix: &str, user: &str) -> Result<Value> {
    let question = json!({"viewerId": "67890", "userIds": [user]});
    let subject = format!("{prefix}presence.query");
    let answer = client.request(&subject, question.to_string()).await?;
    Ok(answer["users"][0]["status"].clone())
}

#[tokio::test]
async fn a_tenant_that_the_login_may_not_serve_stops_no_other() -> Result<()> {
    let (server, _) = server().await?;
    let both = vec![tenant("acme"), tenant("beta")];
    let all = [&both[..], &[tenant("zeta")]].concat();
    let mut site = site(&server, ("few", "p1"))?.with("tenant", both.clone())?;
    let host = Host::start(&site).await?;
    let client = log_in(&server, "one", "p1").await?;
    connect(&client, "acme.", "12345").await?;
    for _ in 0..2 {
        site.set("tenant", all.clone())?;
        wait::until("zeta to be known as forbidden", async || {
            let (_, said) = tenant_of(&site, "zeta").await?;
            Ok(said.contains("zeta.presence").then_some(()))
        })
        .await?;
        // A client can choose any reply subject. A refusal of it doesn't mean that the login lacks
        // rights to the tenant's own subjects.
        let question = json!({"viewerId": "67890", "userIds": ["12345"]}).to_string();
        for _ in 0..50 {
            let (subject, reply) = ("acme.presence.query", "_INBOX.private.presence-nodes.hello");
            let body = question.clone().into();
            client.nats.publish_with_reply(subject, reply, body).await?;
        }
        for prefix in ["acme.", "beta."] {
            connect(&client, prefix, "22222").await?;
            let other = status_of(&client, prefix, "22222").await?;
            assert_eq!(other, "offline", "67890 is no contact of 22222");
        }
        assert_eq!(status_of(&client, "acme.", "12345").await?, "online");
        let (acme, said) = tenant_of(&site, "acme").await?;
        assert_eq!(acme, "serving", "{said}");
        assert_eq!(ready(&site).await?.0, 200);
        site.set("tenant", both.clone())?;
        until_state(&site, "zeta", "").await?;
        until_state(&site, "beta", "serving").await?;
    }
    let log = host.process.log_tail();
    assert!(!log.contains("forbids `acme"), "{log}");
    host.stop().await?;
    // The same at a start.
    site.set("tenant", all)?;
    let host = Host::start(&site).await?;
    until_state(&site, "acme", "serving").await?;
    until_state(&site, "beta", "serving").await?;
    assert_eq!(status_of(&client, "acme.", "12345").await?, "online");
    host.stop().await
}

#[tokio::test]
async fn no_two_tenants_ever_have_the_same_subjects() -> Result<()> {
    let (server, _) = server().await?;
    let mut site =
        site(&server, ("one", "p1"))?.with("tenant", vec![tenant("acme"), tenant("beta")])?;
    let host = Host::start(&site).await?;
    let client = log_in(&server, "one", "p1").await?;
    let mut all = client.record(">").await?;
    // The file gives beta's subjects to a tenant whose section comes before beta's.
    let evil = with(tenant("evil"), "prefix", "beta");
    let broken = with(tenant("beta"), "tracker", toml! { timeout_ms = "soon" });
    site.set("tenant", vec![tenant("acme"), evil, tenant("beta")])?;
    until_state(&site, "evil", "refused").await?;
    let (_, said) = tenant_of(&site, "evil").await?;
    let why = "the tenant `evil` would have the subjects of `beta`";
    assert!(said.contains(why), "{said}");
    until_state(&site, "beta", "serving").await?;
    // A running tenant is given beta's subjects, while beta's own section can't be taken.
    let acme = with(tenant("acme"), "prefix", "beta");
    let why = "the tenant `acme` would have the subjects of `beta`";
    for (beta, owner) in [(tenant("beta"), "at "), (broken, "its last good section")] {
        site.set("tenant", vec![acme.clone(), beta])?;
        wait::until("acme's section to be refused", async || {
            let (_, said) = tenant_of(&site, "acme").await?;
            Ok((said.contains(why) && said.contains(owner)).then_some(()))
        })
        .await?;
        // Each tenant goes on as before, on its own subjects.
        for name in ["acme", "beta"] {
            until_state(&site, name, "serving").await?;
            assert_eq!(
                status_of(&client, &format!("{name}."), "1").await?,
                "offline"
            );
        }
    }
    connect(&client, "beta.", "12345").await?;
    all.catch_up(&client).await?;
    let events = all.seen().iter();
    let events = events.filter(|it| it.is_from_host() && it.subject == "beta.presence.events");
    let events = events.count();
    assert_eq!(events, 1, "one tenant handles what comes on its subjects");
    let begun = host.process.stderr();
    let begun = begun.iter().filter(|line| line.contains(": ready node="));
    assert_eq!(begun.count(), 2, "none has begun anew");
    // The tenant gets the subjects once the other has ended.
    site.set("tenant", vec![acme])?;
    wait::until("acme to have beta's subjects", async || {
        let known = status_of(&client, "beta.", "12345").await;
        Ok(known.ok().filter(|known| known == "offline").map(drop))
    })
    .await?;
    until_state(&site, "acme", "serving").await?;
    host.stop().await
}

#[tokio::test]
async fn users_stay_on_the_subjects_on_which_they_are_known() -> Result<()> {
    let (server, _) = server().await?;
    let mut site =
        site(&server, ("one", "p1"))?.with("tenant", vec![tenant("acme"), tenant("beta")])?;
    let host = Host::start(&site).await?;
    let client = log_in(&server, "one", "p1").await?;
    connect(&client, "acme.", "12345").await?;
    assert_eq!(status_of(&client, "acme.", "12345").await?, "online");
    let mut all = client.record(">").await?;
    let acme = with(tenant("acme"), "prefix", "beta");
    let beta = with(tenant("beta"), "prefix", "acme");
    site.set("tenant", vec![acme, beta])?;
    wait::until("both to begin anew on the other's prefix", async || {
        let log = host.process.stderr();
        let begun = log.iter().filter(|line| line.contains(": ready node="));
        Ok((begun.count() == 4).then_some(()))
    })
    .await?;
    for prefix in ["acme.", "beta."] {
        assert_eq!(
            status_of(&client, prefix, "12345").await?,
            "offline",
            "{prefix}"
        );
    }
    all.catch_up(&client).await?;
    let told = all.seen().iter();
    let told = told.filter(|it| it.is_from_host() && it.subject.contains(".filtered."));
    let told: Vec<_> = told.collect();
    assert!(told.is_empty(), "{told:?}");
    host.stop().await
}

#[tokio::test]
async fn users_are_known_again_when_their_tenant_has_its_old_subjects() -> Result<()> {
    let (server, _) = server().await?;
    let site = site(&server, ("one", "p1"))?.with("state.dir", "state")?;
    let mut site = site.with("tenant", vec![tenant("acme")])?;
    let host = Host::start(&site).await?;
    let client = log_in(&server, "one", "p1").await?;
    connect(&client, "acme.", "12345").await?;
    assert_eq!(status_of(&client, "acme.", "12345").await?, "online");
    for (prefix, expected) in [("b", "offline"), ("c", "offline"), ("acme", "online")] {
        site.set("tenant", vec![with(tenant("acme"), "prefix", prefix)])?;
        let subjects = format!("{prefix}.");
        wait::until("its subjects to be served", async || {
            let status = status_of(&client, &subjects, "12345").await;
            Ok(status.ok().filter(|it| it == expected).map(drop))
        })
        .await?;
    }
    host.stop().await
}

#[tokio::test]
async fn another_login_is_another_account() -> Result<()> {
    let (server, monitoring) = server().await?;
    let own = |user, password| {
        let gamma = with(tenant("gamma"), "nats", login(user, password));
        vec![tenant("acme"), with(gamma, "prefix", "")]
    };
    let mut site = site(&server, ("one", "p1"))?.with("tenant", own("two", "wrong"))?;
    let host = Host::start(&site).await?;
    // The other tenants don't wait for it.
    until_state(&site, "acme", "serving").await?;
    wait::until("the process to be ready", async || {
        Ok((ready(&site).await?.0 == 200).then_some(()))
    })
    .await?;
    // A corrected login is used, although the tenant has not started yet.
    site.set("tenant", own("two", "p2"))?;
    until_state(&site, "gamma", "serving").await?;
    let (one, two) = (
        log_in(&server, "one", "p1").await?,
        log_in(&server, "two", "p2").await?,
    );
    connect(&two, "", "12345").await?;
    assert_eq!(status_of(&two, "", "12345").await?, "online");
    let connections = async || {
        let answer = http::get(monitoring, "/connz").await?;
        let answer: Value = serde_json::from_str(&answer.body)?;
        anyhow::Ok(answer["num_connections"].as_u64().unwrap_or_default())
    };
    let before = connections().await?;
    // A user who was known in one account isn't known in another.
    site.set("tenant", own("one", "p1"))?;
    wait::until("gamma to serve the other account", async || {
        let known = status_of(&one, "", "12345").await;
        Ok(known.ok().filter(|known| known == "offline").map(drop))
    })
    .await?;
    wait::until("the connections to the first to be closed", async || {
        Ok((connections().await? == before).then_some(()))
    })
    .await?;
    // Nothing is left of a tenant that is paused or removed, either.
    let mut paused = own("one", "p1");
    paused[1].insert("paused".into(), true.into());
    for tenants in [paused, vec![tenant("acme")]] {
        site.set("tenant", tenants)?;
        wait::until("its connections to be closed", async || {
            Ok((connections().await? == before - 3).then_some(()))
        })
        .await?;
    }
    host.stop().await
}

#[tokio::test]
async fn a_login_that_is_mended_is_used_by_a_node_that_waits_with_it() -> Result<()> {
    let (server, _) = server().await?;
    let mut site = site(&server, ("one", "wrong"))?;
    let mut host = Host::spawn(&site)?;
    host.wait_for_log(0, &["can't reach NATS"]).await?;
    site.set("nats.password", "p1")?;
    host.ready().await?;
    host.stop().await
}

#[tokio::test]
async fn tenants_that_change_while_they_start_are_started_again() -> Result<()> {
    const TENANTS: usize = 60;
    let (server, _) = server().await?;
    let tenants = |round: usize| -> Vec<Table> {
        let tenants = (0..TENANTS).map(|nth| {
            let tenant = with(Table::new(), "name", format!("t{nth}"));
            // The number of shards takes effect only at the next start.
            let shards = if (nth + round).is_multiple_of(2) {
                4
            } else {
                8
            };
            with(tenant, "shards", shards)
        });
        tenants.collect()
    };
    let site = site(&server, ("one", "p1"))?.with("state.dir", "state")?;
    let mut site = site.with("tenant", tenants(0))?;
    let host = Host::start(&site).await?;
    let reloaded = || {
        let log = host.process.stderr();
        let lines = log.iter().filter(|it| !it.contains("tenant{"));
        lines
            .filter(|it| it.contains("configuration reloaded"))
            .count()
    };
    for round in 1..=12 {
        site.set("tenant", tenants(round))?;
        // Then the tenants begin to stop and to start.
        wait::until("the file to be read", async || {
            Ok((reloaded() >= round).then_some(()))
        })
        .await?;
    }
    for nth in 0..TENANTS {
        until_state(&site, &format!("t{nth}"), "serving").await?;
    }
    host.stop().await
}

#[tokio::test]
async fn a_process_stays_ready_while_tenants_are_added() -> Result<()> {
    let (server, _) = server().await?;
    let mut tenants = vec![tenant("acme")];
    let mut site = site(&server, ("one", "p1"))?.with("tenant", tenants.clone())?;
    let host = Host::start(&site).await?;
    until_state(&site, "acme", "serving").await?;
    for name in ["beta", "gamma", "delta"] {
        tenants.push(tenant(name));
        site.set("tenant", tenants.clone())?;
        wait::until("it to be served", async || {
            let (code, why) = ready(&site).await?;
            assert_eq!(code, 200, "{why}");
            let (acme, said) = tenant_of(&site, "acme").await?;
            assert_eq!(acme, "serving", "{said}");
            let (state, _) = tenant_of(&site, name).await?;
            Ok((state == "serving").then_some(()))
        })
        .await?;
    }
    host.stop().await
}
