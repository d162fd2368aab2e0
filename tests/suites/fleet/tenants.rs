//! A fleet that serves several tenants: each is a fleet of its own on the same nodes. What happens
//! to one doesn't affect the others.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use async_nats::{ConnectOptions, jetstream};
use presence_tests::client::{Client, ReceivedMessage, Recording, now_ms};
use presence_tests::host::{self, Host};
use presence_tests::nats::NatsServer;
use presence_tests::site::Site;
use presence_tests::wait;
use serde_json::json;
use toml::Table;

use super::{Node, VIEWER, broker, user_of};
use crate::heartbeat_senders::HeartbeatSenders;
use crate::inputs::{self, CONNECT, DISCONNECT, FILTERED_OFFLINE, FILTERED_ONLINE, HEARTBEAT};
use crate::tenants_store::{apply, done, section, until_states};
use crate::world::on;

const SHARDS: usize = 4;
const SPEAKERS: usize = 12;

const ACCOUNTS: &str = "accounts {
  SHARED { jetstream: enabled, users: [{user: shared, password: p1}] }
  OWN { jetstream: enabled, users: [{user: own, password: p2}] }
}";

/// A tenant, seen from outside: its users send heartbeats all the time, and all that is published
/// for it is recorded.
pub(super) struct Tenant {
    pub(super) name: &'static str,
    /// The beginning of its subjects.
    prefix: String,
    client: Client,
    tape: Recording,
    speakers: HeartbeatSenders,
}

fn speaker(tenant: &str, number: usize) -> String {
    format!("{tenant}-speaker-{number}")
}

fn guest(tenant: &str, number: usize) -> String {
    format!("{tenant}-guest-{number}")
}

async fn log_in(server: &NatsServer, user: &str, password: &str) -> Result<Client> {
    let options = ConnectOptions::new();
    let options = options.user_and_password(user.into(), password.into());
    let nats = options.connect(server.url()).await?;
    Ok(Client { nats })
}

impl Tenant {
    /// Its users begin to speak.
    pub(super) async fn begin(name: &'static str, prefix: &str, client: Client) -> Result<Self> {
        let users: Vec<_> = (0..SPEAKERS).map(|number| speaker(name, number)).collect();
        let subject = format!("{prefix}{HEARTBEAT}");
        Ok(Self {
            name,
            prefix: prefix.into(),
            tape: client.record(&format!("{prefix}presence.>")).await?,
            speakers: HeartbeatSenders::start_on(&client, subject, &users),
            client,
        })
    }

    fn subject(&self, of: &str) -> String {
        format!("{}{of}", self.prefix)
    }

    /// Whom an event on this subject was about.
    pub(super) fn told_on(&self, subject: &str) -> Vec<String> {
        let told = on(self.tape.seen(), &self.subject(subject));
        told.iter().map(|it| user_of(it).to_owned()).collect()
    }

    /// Waits until all of these users were told of on a subject.
    pub(super) async fn until_told(&mut self, subject: &str, users: &[String]) -> Result<()> {
        let what = format!("all users of {} on {subject}", self.name);
        let subject = self.subject(subject);
        let told = |seen: &[ReceivedMessage]| {
            let told = on(seen, &subject);
            let is_told = |user: &String| told.iter().any(|it| user_of(it) == user);
            users.iter().all(is_told)
        };
        self.tape.until(&what, told).await
    }

    pub(super) fn all_speakers(&self) -> Vec<String> {
        (0..SPEAKERS).map(|it| speaker(self.name, it)).collect()
    }

    fn all_guests(&self) -> Vec<String> {
        (0..SPEAKERS).map(|it| guest(self.name, it)).collect()
    }

    async fn guests_come(&mut self) -> Result<()> {
        let guests = self.all_guests();
        for user in &guests {
            let connect = inputs::connect(user, "c1", now_ms());
            self.client.input(&self.subject(CONNECT), connect).await?;
        }
        self.until_told(FILTERED_ONLINE, &guests).await
    }

    async fn guests_say_goodbye(&mut self) -> Result<()> {
        for user in self.all_guests() {
            let bye = inputs::disconnect(&user, "c1", now_ms(), "client_disconnect");
            self.client.publish(&self.subject(DISCONNECT), &bye).await?;
        }
        Ok(())
    }

    /// Who is online, as its viewer is answered.
    async fn online(&self) -> Result<Vec<String>> {
        let mut users = self.all_speakers();
        users.extend(self.all_guests());
        let asked = json!({"viewerId": VIEWER, "userIds": users}).to_string();
        let subject = self.subject("presence.query");
        let answer = self.client.request(&subject, asked).await?;
        let users = answer["users"].as_array().into_iter().flatten();
        let online = users.filter(|user| user["status"] == "online");
        let online = online.filter_map(|user| user["userId"].as_str());
        Ok(online.map(str::to_owned).collect())
    }

    /// Waits until its viewer is answered that the speakers alone are online.
    pub(super) async fn only_speakers_are_online(&self) -> Result<()> {
        let expected = self.all_speakers();
        wait::until("the speakers alone to be online", async || {
            Ok((self.online().await? == expected).then_some(()))
        })
        .await
    }

    /// How often each user was told online and offline.
    fn counts(&self) -> BTreeMap<String, (usize, usize)> {
        let mut told = BTreeMap::<_, (usize, usize)>::new();
        for user in self.told_on(FILTERED_ONLINE) {
            told.entry(user).or_default().0 += 1;
        }
        for user in self.told_on(FILTERED_OFFLINE) {
            told.entry(user).or_default().1 += 1;
        }
        told
    }

    /// Checks that each speaker was told once, each guest as often as this, and no user of another
    /// tenant.
    pub(super) async fn was_told(&mut self, guests: Option<(usize, usize)>) -> Result<()> {
        let mark = json!({"mark": self.tape.seen().len()});
        let subject = self.subject("presence.mark");
        self.client.publish(&subject, &mark).await?;
        let is_mark = |seen: &ReceivedMessage| seen.body == mark;
        self.tape.next("the mark", is_mark).await?;
        let speakers = self.all_speakers().into_iter().map(|user| (user, (1, 0)));
        let guests = guests.map(|told| self.all_guests().into_iter().map(move |user| (user, told)));
        let expected: BTreeMap<_, _> = speakers.chain(guests.into_iter().flatten()).collect();
        let told = self.counts();
        ensure!(told == expected, "{}: {told:?}", self.name);
        Ok(())
    }
}

pub(super) fn tenant(name: &str) -> Table {
    let mut tenant = Table::new();
    tenant.insert("name".into(), name.into());
    tenant
}

/// A node of a fleet. Everybody is a contact of the viewer, in each tenant.
pub(super) fn site(server: &NatsServer, name: &str) -> Result<Site> {
    let users = ["acme", "beta", "own"].into_iter().flat_map(|tenant| {
        let numbers = 0..SPEAKERS;
        numbers.flat_map(move |it| [speaker(tenant, it), guest(tenant, it)])
    });
    let contacts: serde_json::Map<_, _> = users.map(|user| (user, json!([VIEWER]))).collect();
    let site = Site::new(&server.url())?
        .with("node.name", name)?
        .with("fleet.enabled", true)?
        .with("fleet.shards", i64::try_from(SHARDS)?)?
        // Longer than a machine under load stalls.
        .with("fleet.lease_ms", 4_000)?
        .with("tracker.timeout_ms", 8_000)?;
    site.write_directory(&json!({ "contacts": contacts }).to_string())?;
    Ok(site)
}

/// A node with three tenants in its file: two of one account, and one with an account of its own.
pub(super) fn site_of_three(server: &NatsServer, name: &str) -> Result<Site> {
    let mut own = tenant("own");
    let mut login = Table::new();
    login.insert("user".into(), "own".into());
    login.insert("password".into(), "p2".into());
    own.insert("nats".into(), login.into());
    own.insert("prefix".into(), "".into());
    site(server, name)?
        .with("nats.user", "shared")?
        .with("nats.password", "p1")?
        .with("tenant", vec![tenant("acme"), tenant("beta"), own])
}

/// Three tenants on nodes of these names, which are settled.
pub(super) async fn three(names: &[&str]) -> Result<([Tenant; 3], Vec<Node>, NatsServer)> {
    let server = broker(ACCOUNTS).await?;
    let shared = log_in(&server, "shared", "p1").await?;
    let own = log_in(&server, "own", "p2").await?;
    let tenants = [
        Tenant::begin("acme", "acme.", shared.clone()).await?,
        Tenant::begin("beta", "beta.", shared).await?,
        Tenant::begin("own", "", own).await?,
    ];
    let mut nodes = Vec::new();
    for name in names {
        let site = site_of_three(&server, name)?;
        let host = Host::spawn(&site)?;
        nodes.push(Node { host, site });
    }
    for node in &mut nodes {
        node.host.ready().await?;
    }
    for tenant in &tenants {
        is_settled(tenant.name, &nodes).await?;
    }
    Ok((tenants, nodes, server))
}

pub(super) async fn sum(tenant: &str, nodes: &[Node], metric: &str) -> Result<f64> {
    let label = format!("tenant=\"{tenant}\"");
    let mut sum = 0.0;
    for node in nodes {
        sum += node.host.metric(metric, &[&label]).await?;
    }
    Ok(sum)
}

/// Waits until these nodes together own all shards of a tenant, and all have a standby.
pub(super) async fn is_settled(tenant: &str, nodes: &[Node]) -> Result<()> {
    let what = format!("the shards of {tenant} to be owned and stood by for");
    wait::until(&what, async || {
        let owned = sum(tenant, nodes, "presence_fleet_shards_owned").await?;
        let in_step = sum(tenant, nodes, "presence_fleet_shards_in_step").await?;
        let all = SHARDS as f64;
        let standing_by = if nodes.len() > 1 { all } else { 0.0 };
        Ok((owned == all && in_step == standing_by).then_some(()))
    })
    .await
}

#[tokio::test]
async fn when_a_node_is_killed_no_tenant_loses_anyone_or_hears_of_anothers_users() -> Result<()> {
    let (mut tenants, mut nodes, _server) = three(&["a", "b", "c"]).await?;
    for tenant in &mut tenants {
        let speakers = tenant.all_speakers();
        tenant.until_told(FILTERED_ONLINE, &speakers).await?;
        tenant.guests_come().await?;
    }
    nodes.remove(1).host.kill().await?;
    for tenant in &mut tenants {
        tenant.guests_say_goodbye().await?;
    }
    for tenant in &mut tenants {
        let guests = tenant.all_guests();
        tenant.until_told(FILTERED_OFFLINE, &guests).await?;
        is_settled(tenant.name, &nodes).await?;
        tenant.was_told(Some((1, 1))).await?;
        tenant.only_speakers_are_online().await?;
    }
    let mut takeovers = 0.0;
    for tenant in &tenants {
        takeovers += sum(tenant.name, &nodes, "presence_fleet_takeovers_total").await?;
    }
    ensure!(takeovers > 0.0, "the killed node owned shards");
    let shown = host::run(&nodes[0].site, &["status", "--tenant", "beta"])?;
    let shown = String::from_utf8(shown.stdout)?;
    ensure!(shown.contains("of 4 shards"), "{shown}");
    for node in nodes {
        node.host.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_node_that_stops_hands_over_the_shards_of_all_tenants() -> Result<()> {
    let (mut tenants, mut nodes, _server) = three(&["a", "b"]).await?;
    for tenant in &mut tenants {
        let speakers = tenant.all_speakers();
        tenant.until_told(FILTERED_ONLINE, &speakers).await?;
    }
    let gone = nodes.remove(0);
    let owned = |nodes: Vec<Node>| async move {
        let mut owned = Vec::new();
        for tenant in ["acme", "beta", "own"] {
            owned.push(sum(tenant, &nodes, "presence_fleet_shards_owned").await?);
        }
        anyhow::Ok((owned, nodes))
    };
    let (owned, mut gone) = owned(vec![gone]).await?;
    ensure!(owned.iter().sum::<f64>() > 0.0, "{owned:?}");
    gone.remove(0).host.stop().await?;
    for (tenant, owned) in tenants.iter_mut().zip(owned) {
        is_settled(tenant.name, &nodes).await?;
        let handed = sum(tenant.name, &nodes, "presence_fleet_handovers_total").await?;
        ensure!(handed >= owned, "{}: {handed} of {owned}", tenant.name);
        let taken = sum(tenant.name, &nodes, "presence_fleet_takeovers_total").await?;
        ensure!(taken == 0.0, "{}: {taken}", tenant.name);
        tenant.was_told(None).await?;
        tenant.only_speakers_are_online().await?;
    }
    Ok(())
}

/// The entries of nodes in the bucket of a tenant's fleet.
async fn nodes_in_bucket(client: &Client, prefix: &str) -> Result<Vec<String>> {
    use futures_util::TryStreamExt as _;
    let context = jetstream::new(client.nats.clone());
    let store = context
        .get_key_value(format!("{prefix}-presence-fleet"))
        .await?;
    let keys: Vec<String> = store.keys().await?.try_collect().await?;
    let nodes = keys.into_iter().filter(|key| key.starts_with("nodes."));
    Ok(nodes.collect())
}

fn changed(site: &Site, command: &str, name: &str) -> Result<String> {
    done(host::run(site, &["tenants", command, name, "--yes"])?)
}

#[tokio::test]
async fn a_tenant_of_the_store_is_added_paused_changed_and_removed_on_all_nodes() -> Result<()> {
    let server = NatsServer::start().await?;
    let client = Client::connect(&server.url()).await?;
    let mut beta = Tenant::begin("beta", "beta.", client.clone()).await?;
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let mut of_file = tenant("beta");
        let mut plugins = Table::new();
        plugins.insert("source".into(), "folder".into());
        of_file.insert("plugins".into(), plugins.into());
        let site = site(&server, name)?
            .with("plugins.source", "store")?
            .with("tenant", vec![of_file])?;
        let host = Host::start(&site).await?;
        nodes.push(Node { host, site });
    }
    let speakers = beta.all_speakers();
    beta.until_told(FILTERED_ONLINE, &speakers).await?;
    is_settled("beta", &nodes).await?;
    let site = &nodes[0].site;

    // One that is added is taken up by all nodes.
    done(apply(site, &section("acme", ""))?)?;
    let mut acme = Tenant::begin("acme", "acme.", client.clone()).await?;
    is_settled("acme", &nodes).await?;
    let speakers = acme.all_speakers();
    acme.until_told(FILTERED_ONLINE, &speakers).await?;
    acme.guests_come().await?;

    // One that is paused leaves no lease behind, and its users are known again when they are
    // heard: those who left meanwhile aren't online, and nobody who stayed is told offline.
    let printed = changed(site, "pause", "acme")?;
    ensure!(printed.contains("acme paused"), "{printed}");
    for node in &nodes {
        until_states(&node.site, &[("acme", "paused"), ("beta", "serving")]).await?;
    }
    ensure!(nodes_in_bucket(&client, "acme").await?.is_empty());
    acme.guests_say_goodbye().await?;
    let printed = changed(site, "resume", "acme")?;
    ensure!(printed.contains("acme serving"), "{printed}");
    is_settled("acme", &nodes).await?;
    acme.only_speakers_are_online().await?;
    let offline = acme.told_on(FILTERED_OFFLINE);
    let wrong = offline.iter().filter(|user| user.contains("speaker"));
    ensure!(wrong.count() == 0, "{offline:?}");

    // One with another prefix is another fleet.
    drop(acme.speakers);
    done(apply(site, &section("acme", "prefix = 'corp'"))?)?;
    let mut corp = Tenant::begin("acme", "corp.", client.clone()).await?;
    is_settled("acme", &nodes).await?;
    let speakers = corp.all_speakers();
    corp.until_told(FILTERED_ONLINE, &speakers).await?;
    ensure!(nodes_in_bucket(&client, "acme").await?.is_empty());
    ensure!(nodes_in_bucket(&client, "corp").await?.len() == 2);

    // One that is removed and added again is served again.
    changed(site, "remove", "acme")?;
    for node in &nodes {
        until_states(&node.site, &[("beta", "serving")]).await?;
    }
    ensure!(nodes_in_bucket(&client, "corp").await?.is_empty());
    done(apply(site, &section("acme", "prefix = 'corp'"))?)?;
    is_settled("acme", &nodes).await?;
    corp.only_speakers_are_online().await?;

    // The other tenant wasn't disturbed.
    beta.was_told(None).await?;
    for metric in [
        "presence_fleet_takeovers_total",
        "presence_fleet_sessions_lost_total",
    ] {
        ensure!(sum("beta", &nodes, metric).await? == 0.0, "{metric}");
    }
    for node in nodes {
        let starts = node.host.process.stderr();
        let starts = starts.iter();
        let words = "tenant{name=\"beta\"}: ready node=";
        let starts = starts.filter(|line| line.contains(words)).count();
        ensure!(starts == 1, "beta was started {starts} times");
        node.host.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_tenant_whose_bucket_was_removed_begins_anew_and_the_others_go_on() -> Result<()> {
    let (mut tenants, mut nodes, _server) = three(&["a", "b"]).await?;
    for tenant in &mut tenants {
        let speakers = tenant.all_speakers();
        tenant.until_told(FILTERED_ONLINE, &speakers).await?;
    }
    let context = jetstream::new(tenants[0].client.nats.clone());
    context.delete_key_value("acme-presence-fleet").await?;
    for node in &mut nodes {
        let words = ["tenant{name=\"acme\"}", "the fleet's bucket was removed"];
        node.host.wait_for_log(0, &words).await?;
        // There is no other node to hand over to.
        let said = node.host.process.stderr().join("\n");
        ensure!(!said.contains("could be handed over in time"), "{said}");
    }
    is_settled("acme", &nodes).await?;
    tenants[0].only_speakers_are_online().await?;
    ensure!(tenants[0].told_on(FILTERED_OFFLINE).is_empty());
    for tenant in &mut tenants[1..] {
        tenant.was_told(None).await?;
        let lost = sum(tenant.name, &nodes, "presence_fleet_sessions_lost_total");
        ensure!(lost.await? == 0.0, "{}", tenant.name);
    }
    Ok(())
}

#[tokio::test]
async fn a_tenant_that_can_not_be_of_the_fleet_says_so_and_the_others_are_served() -> Result<()> {
    let accounts = ACCOUNTS.replace("OWN { jetstream: enabled,", "OWN {");
    let server = broker(&accounts).await?;
    let site = site_of_three(&server, "a")?;
    let mut host = Host::start(&site).await?;
    let words = ["tenant{name=\"own\"}", "a fleet needs JetStream"];
    host.wait_for_log(0, &words).await?;
    let expected = [("acme", "serving"), ("beta", "serving"), ("own", "refused")];
    until_states(&site, &expected).await?;
    // Another node has another number of shards for one of them.
    let mut acme = tenant("acme");
    let mut fleet = Table::new();
    fleet.insert("shards".into(), 16.into());
    acme.insert("fleet".into(), fleet.into());
    let other = site_of_three(&server, "b")?;
    let other = other.with("tenant", vec![acme, tenant("beta")])?;
    let mut second = Host::start(&other).await?;
    let words = [
        "tenant{name=\"acme\"}",
        "[fleet] shards is 16 here and 4 in the fleet",
    ];
    second.wait_for_log(0, &words).await?;
    until_states(&other, &[("acme", "refused"), ("beta", "serving")]).await?;
    host.stop().await?;
    second.stop().await
}
