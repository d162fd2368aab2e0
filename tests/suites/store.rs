//! The plugin store: a pipeline that all nodes share, revision by revision. It is changed and taken
//! back from the command line, over NATS alone.

use anyhow::{Context, Result, ensure};
use async_nats::jetstream;
use async_nats::jetstream::kv;
use presence_tests::client::Client;
use presence_tests::component;
use presence_tests::host::{self, Host};
use presence_tests::nats::NatsServer;
use presence_tests::site::Site;
use presence_tests::wait;
use serde_json::{Value, json};
use std::fs;

use crate::world::World;

/// Who sees 12345 by the built-in `contacts`, and by `groups` in its place.
const BY_CONTACT: [&str; 2] = ["11111", "67890"];
const BY_GROUP: [&str; 1] = ["22222"];

/// A pipeline, as an operator writes it.
pub(crate) const CONTACTS: &str = "[[pipeline]]\nplugin = \"contacts\"\n\n[[pipeline]]\nplugin = \"redact\"\nconfig = { keys = [\"device\"] }\n";

/// A command's output, its error output, and whether it succeeded.
pub(crate) fn run(site: &Site, args: &[&str]) -> Result<(String, String, bool)> {
    let output = host::run(site, args)?;
    let text = |bytes: Vec<u8>| String::from_utf8(bytes);
    Ok((
        text(output.stdout)?,
        text(output.stderr)?,
        output.status.success(),
    ))
}

/// The output of a successful command.
pub(crate) fn run_ok(site: &Site, args: &[&str]) -> Result<String> {
    let (out, error, succeeded) = run(site, args)?;
    ensure!(succeeded, "{args:?}: {out}{error}");
    Ok(out)
}

/// The output of a command that fails, with its error output.
pub(crate) fn run_err(site: &Site, args: &[&str]) -> Result<String> {
    let (out, error, succeeded) = run(site, args)?;
    ensure!(!succeeded, "{args:?} should fail: {out}");
    Ok(out + &error)
}

/// Applies a pipeline.
pub(crate) fn apply(site: &Site, pipeline: &str) -> Result<String> {
    let path = site.path().join("pipeline.toml");
    fs::write(&path, pipeline)?;
    let path = path.to_string_lossy();
    run_ok(site, &["pipeline", "apply", &path, "--yes"])
}

/// Writes a plugin's file beside the plugin folder, and returns its path.
pub(crate) fn plugin(site: &Site, file: &str, bytes: &[u8]) -> Result<String> {
    let path = site.path().join(file);
    fs::write(&path, bytes)?;
    Ok(path.to_string_lossy().into_owned())
}

/// Uploads a file, and returns its digest.
pub(crate) fn push(site: &Site, path: &str) -> Result<String> {
    let pushed = run_ok(site, &["plugins", "push", path, "--json"])?;
    let pushed: Value = serde_json::from_str(&pushed)?;
    let digest = pushed["pushed"][0]["digest"].as_str();
    Ok(digest.context("a digest")?.to_owned())
}

/// A node that follows the store of a server, and has no revision yet.
pub(crate) async fn empty(server: NatsServer, site: Site) -> Result<World> {
    let site = site.with("plugins.source", "store")?;
    let client = Client::connect(&server.url()).await?;
    let tape = client.record("presence.>").await?;
    let mut host = Host::spawn(&site)?;
    host.wait_for_log(0, &["ready node="]).await?;
    Ok(World {
        host,
        client,
        tape,
        site,
        server,
    })
}

/// A node that runs a revision of the store, in which contacts see each other.
async fn world() -> Result<World> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?;
    let mut world = empty(server, site).await?;
    world
        .host
        .unready_because("nobody sees anybody: there is none: `presence pipeline apply")
        .await?;
    apply(&world.site, CONTACTS)?;
    world.host.ready().await?;
    Ok(world)
}

/// The bucket of revisions.
pub(crate) async fn bucket(world: &World) -> Result<kv::Store> {
    let client = async_nats::connect(world.server.url()).await?;
    Ok(jetstream::new(client)
        .get_key_value("presence-pipeline")
        .await?)
}

/// The revision with this number in a bucket.
async fn revision(bucket: &kv::Store, number: u64) -> Result<Value> {
    let entry = bucket.get(format!("revision.{number}")).await?;
    Ok(serde_json::from_slice(&entry.context("a revision")?)?)
}

#[tokio::test]
async fn a_plugin_is_pushed_activated_and_rolled_back_and_the_node_starts_without_the_store()
-> Result<()> {
    let mut world = world().await?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    // A file in the folder has no effect.
    let groups = component::named(&component::load("groups")?, "contacts")?;
    world.site.write_plugin("contacts", &groups)?;
    let path = plugin(&world.site, "groups.wasm", &groups)?;
    let digest = push(&world.site, &path)?;
    let again = run_ok(&world.site, &["plugins", "push", &path])?;
    ensure!(again.contains("was there"), "{again}");
    world.until_visible_to("12345", &BY_CONTACT).await?;

    let named = format!("contacts@{}", &digest[..16]);
    let args = ["plugins", "activate", &named, "--yes", "--why", "a test"];
    let out = run_ok(&world.site, &args)?;
    for words in [
        "-digest = \"sha256:",
        &format!("+digest = \"{digest}\""),
        "in force (generation 3)",
        "revision 2 is written",
    ] {
        ensure!(out.contains(words), "{words}: {out}");
    }
    world.until_visible_to("12345", &BY_GROUP).await?;
    let listed = run_ok(&world.site, &["plugins", "list", "--json"])?;
    let listed: Value = serde_json::from_str(&listed)?;
    let of_digest = |it: &&Value| it["digest"] == *digest;
    let listed = listed["plugins"].as_array().context("a list")?;
    let active = listed.iter().find(of_digest).context("it is there")?;
    assert_eq!(
        (&active["plugin"], &active["active"]),
        (&json!("contacts"), &json!(true))
    );
    let history = run_ok(&world.site, &["plugins", "history", "contacts"])?;
    ensure!(
        history.lines().count() == 3 && history.contains("a test"),
        "{history}"
    );

    // The store is missing at the start: the last revision stays in force.
    world.host.stop().await?;
    world.server.set_config("jetstream: disabled")?;
    world.server.restart().await?;
    world.client = Client::connect(&world.server.url()).await?;
    world.tape = world.client.record("presence.>").await?;
    world.host = Host::start(&world.site).await?;
    let said = "starting with revision 2, which this node has kept";
    world.host.wait_for_log(0, &[said]).await?;
    world.until_visible_to("12345", &BY_GROUP).await?;
    let log = world.host.process.log_tail();
    assert_eq!(
        log.matches("the plugin store can't be read").count(),
        1,
        "{log}"
    );

    // The store is back, and is followed.
    world.host.stop().await?;
    world.server.set_config("")?;
    world.server.restart().await?;
    world.client = Client::connect(&world.server.url()).await?;
    world.tape = world.client.record("presence.>").await?;
    world.host = Host::start(&world.site).await?;
    run_ok(&world.site, &["plugins", "rollback", "contacts", "--yes"])?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    run_ok(&world.site, &["pipeline", "rollback", "2", "--yes"])?;
    world.until_visible_to("12345", &BY_GROUP).await?;
    let shown = run_ok(&world.site, &["pipeline", "show"])?;
    ensure!(shown.contains(&digest), "{shown}");
    ensure!(shown.contains("rollback to revision 2"), "{shown}");
    let history = run_ok(&world.site, &["pipeline", "history", "--last", "3"])?;
    ensure!(
        history.contains("rollback of contacts to revision 1"),
        "{history}"
    );
    assert_eq!(
        world.host.metric("presence_pipeline_revision", &[]).await?,
        4.0
    );
    world.end().await
}

#[tokio::test]
async fn what_is_wrong_with_a_change_is_said_and_nothing_is_written() -> Result<()> {
    let mut world = world().await?;
    let site = &world.site;
    let error = run_err(
        site,
        &["plugins", "activate", "contacts@sha256:12345678", "--yes"],
    )?;
    ensure!(error.contains("there is no plugin contacts@"), "{error}");
    let error = run_err(site, &["plugins", "activate", "contacts"])?;
    ensure!(error.contains("its name and its digest"), "{error}");
    let error = run_err(site, &["plugins", "rollback", "--yes"])?;
    ensure!(error.contains("no earlier revision"), "{error}");
    let error = run_err(site, &["pipeline", "rollback", "7", "--yes"])?;
    ensure!(error.contains("there is no revision 7"), "{error}");
    let out = apply(site, CONTACTS)?;
    ensure!(out.contains("nothing changes: revision 1"), "{out}");
    let error = run_err(
        site,
        &["plugins", "push", &plugin(site, "no.wasm", b"\0asm")?],
    )?;
    ensure!(error.contains("no.wasm can't be used"), "{error}");
    let named = component::with(&component::load("contacts")?, |manifest| {
        drop(manifest.insert("name".into(), "../contacts".into()));
    })?;
    let error = run_err(
        site,
        &["plugins", "push", &plugin(site, "named.wasm", &named)?],
    )?;
    ensure!(error.contains("no pipeline can name it"), "{error}");

    // The node validates each revision like a swap of the folder.
    let path = plugin(
        site,
        "bad-config.wasm",
        &component::load("fixtures/bad-config")?,
    )?;
    push(site, &path)?;
    let unknown = format!("sha256:{}", "0".repeat(64));
    for (stage, problem) in [
        (
            "plugin = \"bad-config\"".to_owned(),
            "`bad-config` refuses its configuration",
        ),
        (
            "plugin = \"nowhere\"".into(),
            "there is no plugin `nowhere`",
        ),
        (
            format!("plugin = \"quiet\"\ndigest = \"{unknown}\""),
            "is not in the bucket",
        ),
        ("plugin = \"groups\"\ngrants = []".into(), "widen"),
        (
            "plugin = \"groups\"\nsource = \"folder\"".into(),
            "the store has no folder",
        ),
        (
            "plugin = \"groups\"\ngrants = [\"fly\"]".into(),
            "names `fly`",
        ),
    ] {
        let path = plugin(
            site,
            "p.toml",
            format!("[[pipeline]]\n{stage}\n").as_bytes(),
        )?;
        let error = run_err(site, &["pipeline", "apply", &path, "--yes"])?;
        ensure!(error.contains(problem), "{problem}: {error}");
    }
    // There is no terminal to ask on.
    let path = plugin(site, "p.toml", b"[[pipeline]]\nplugin = \"groups\"\n")?;
    let error = run_err(site, &["pipeline", "apply", &path])?;
    ensure!(error.contains("--yes goes on"), "{error}");
    let diff = run_ok(site, &["pipeline", "diff", &path])?;
    ensure!(
        diff.contains("-plugin = \"contacts\"") && diff.contains("+plugin = \"groups\""),
        "{diff}"
    );
    let history = run_ok(site, &["pipeline", "history", "--json"])?;
    let history: Value = serde_json::from_str(&history)?;
    assert_eq!(history["revisions"].as_array().map(Vec::len), Some(1));
    world.until_visible_to("12345", &BY_CONTACT).await?;
    world.end().await
}

#[tokio::test]
async fn what_others_write_into_the_buckets_is_refused_and_what_runs_goes_on() -> Result<()> {
    let mut world = world().await?;
    let bucket = bucket(&world).await?;
    let good_one = revision(&bucket, 1).await?;
    // The server itself keeps what is written.
    bucket.put("revision.1", "{}".into()).await.unwrap_err();
    bucket.delete("revision.1").await.unwrap_err();

    let groups = component::named(&component::load("groups")?, "contacts")?;
    let path = plugin(&world.site, "groups.wasm", &groups)?;
    let digest = push(&world.site, &path)?;
    let mut next = good_one.clone();
    next["revision"] = 2.into();
    next["chain"][0]["digest"] = digest.clone().into();

    // A plugin is altered, and then uploaded again.
    let client = async_nats::connect(world.server.url()).await?;
    let objects = jetstream::new(client)
        .get_object_store("presence-plugins")
        .await?;
    objects.put(&*digest, &mut &b"something else"[..]).await?;
    let alerts = world.client.record("presence.admin.alerts");
    let mut alerts = alerts.await?;
    bucket.put("revision.2", next.to_string().into()).await?;
    let refused = alerts.next("an alert", |seen| seen.text("type") == "revision-refused");
    let refused = refused.await?;
    assert_eq!(*refused.field("revision"), 2);
    ensure!(
        refused.text("error").contains("is not what its name says"),
        "{refused:?}"
    );
    world.until_visible_to("12345", &BY_CONTACT).await?;
    ensure!(run_ok(&world.site, &["plugins", "push", &path])?.contains("uploaded"));
    world.until_visible_to("12345", &BY_GROUP).await?;

    // An entry that is no revision. The next revision is written after it.
    bucket.put("revision.3", "?".into()).await?;
    let refused = alerts.next("an alert", |seen| *seen.field("revision") == 3);
    ensure!(refused.await?.text("error").contains("can't be read"));
    bucket.put("strange", "?".into()).await?;
    let out = run_ok(&world.site, &["pipeline", "rollback", "1", "--yes"])?;
    ensure!(out.contains("revision 4 is written"), "{out}");
    world.until_visible_to("12345", &BY_CONTACT).await?;
    let history = run_ok(&world.site, &["pipeline", "history"])?;
    ensure!(history.contains("unreadable"), "{history}");

    // An entry with the highest possible number doesn't prevent the next revision.
    let highest = format!("revision.{}", u64::MAX);
    bucket.put(&highest, "?".into()).await?;
    let refused = alerts.next("an alert", |seen| *seen.field("revision") == u64::MAX);
    refused.await?;
    let (shown, said, _) = run(&world.site, &["pipeline", "show"])?;
    ensure!(shown.starts_with("# revision 4,"), "{shown}");
    ensure!(
        said.contains("can't be read") && said.contains("going by revision 4"),
        "{said}"
    );
    let pipeline = CONTACTS.replace("contacts", "groups");
    let out = apply(&world.site, &pipeline)?;
    ensure!(out.contains("revision 5 is written"), "{out}");
    world.until_visible_to("12345", &BY_GROUP).await?;
    // The node starts with this revision, too.
    world.host.stop().await?;
    fs::remove_dir_all(world.site.path().join("presence-state"))?;
    world.host = Host::start(&world.site).await?;
    world.until_visible_to("12345", &BY_GROUP).await?;
    world.end().await
}

#[tokio::test]
async fn a_bucket_that_somebody_else_shaped_is_refused() -> Result<()> {
    let server = NatsServer::start().await?;
    let jetstream = jetstream::new(async_nats::connect(server.url()).await?);
    let name = || "presence-pipeline".to_owned();
    // As `nats kv add` makes it.
    let usual = kv::Config {
        bucket: name(),
        ..kv::Config::default()
    };
    jetstream.create_key_value(usual).await?;
    let site = Site::new(&server.url())?;
    let mut world = empty(server, site).await?;
    let why = "the stream `KV_presence-pipeline` was not made by presence: it lets a revision be";
    world.host.unready_because(why).await?;
    jetstream.delete_key_value("presence-pipeline").await?;
    let shape = kv::Config {
        bucket: name(),
        max_age: std::time::Duration::from_secs(3_600),
        ..kv::Config::default()
    };
    jetstream.create_key_value(shape).await?;
    let why = "the stream `KV_presence-pipeline` was not made by presence: it forgets";
    world.host.unready_because(why).await?;
    let path = plugin(&world.site, "p.toml", CONTACTS.as_bytes())?;
    let error = run_err(&world.site, &["pipeline", "apply", &path, "--yes"])?;
    ensure!(error.contains(why), "{error}");
    jetstream.delete_key_value("presence-pipeline").await?;
    apply(&world.site, CONTACTS)?;
    world.host.ready().await?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    world.end().await
}

#[tokio::test]
async fn a_revision_that_is_not_the_one_that_ran_is_not_taken_at_a_start_either() -> Result<()> {
    let mut world = world().await?;
    let bucket = bucket(&world).await?;
    let groups = component::named(&component::load("groups")?, "contacts")?;
    let path = plugin(&world.site, "groups.wasm", &groups)?;
    let digest = push(&world.site, &path)?;
    let mut other = revision(&bucket, 1).await?;
    other["chain"][0]["digest"] = digest.into();
    // Each number has one key.
    for key in ["revision.01", "revision.0001"] {
        bucket.put(key, other.to_string().into()).await?;
    }
    world.host.stop().await?;
    world.host = Host::start(&world.site).await?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    let history = run_ok(&world.site, &["pipeline", "history", "--json"])?;
    let history: Value = serde_json::from_str(&history)?;
    assert_eq!(history["revisions"].as_array().map(Vec::len), Some(1));

    // The node has run another revision with this number.
    world.host.stop().await?;
    let kept = world
        .site
        .path()
        .join("presence-state/presence.store/revision.json");
    let mut ran: Value = serde_json::from_slice(&fs::read(&kept)?)?;
    ran["why"] = "what ran".into();
    fs::write(&kept, ran.to_string())?;
    world.host = Host::start(&world.site).await?;
    let said = "revision 1 in the bucket `presence-pipeline` was altered";
    world
        .host
        .wait_for_log(0, &[said, "starting with revision 1"])
        .await?;
    world.until_visible_to("12345", &BY_CONTACT).await?;
    world.end().await
}

#[tokio::test]
async fn where_the_store_is_lost_commands_go_by_what_runs() -> Result<()> {
    let mut world = world().await?;
    let own = component::named(&component::load("groups")?, "contacts")?;
    let own_path = plugin(&world.site, "own.wasm", &own)?;
    let own = push(&world.site, &own_path)?;
    let named = format!("contacts@{own}");
    run_ok(&world.site, &["plugins", "activate", &named, "--yes"])?;
    world.until_visible_to("12345", &BY_GROUP).await?;
    let other = component::named(&component::load("public")?, "contacts")?;
    let other = push(&world.site, &plugin(&world.site, "other.wasm", &other)?)?;
    let named = format!("contacts@{other}");
    let args = ["plugins", "canary", &named, "--percent", "1", "--yes"];
    run_ok(&world.site, &args)?;
    let jetstream = jetstream::new(async_nats::connect(world.server.url()).await?);
    for stream in ["KV_presence-pipeline", "OBJ_presence-plugins"] {
        jetstream.delete_stream(stream).await?;
    }

    // The canary is still there, and can be ended. The store also lacks the plugin of all other
    // users.
    let (out, said, is_good) = run(&world.site, &["plugins", "abort", "--yes"])?;
    ensure!(
        is_good && out.contains("revision 4 is written"),
        "{out}{said}"
    );
    ensure!(
        said.contains("going by revision 3, which the node"),
        "{said}"
    );
    ensure!(
        said.contains(&format!("the store has lost contacts@{own}")),
        "{said}"
    );
    jetstream.delete_stream("KV_presence-pipeline").await?;

    let path = plugin(&world.site, "p.toml", CONTACTS.as_bytes())?;
    let error = run_err(&world.site, &["pipeline", "apply", &path, "--yes"])?;
    ensure!(
        error.contains(&format!("the store has lost contacts@{own}")),
        "{error}"
    );
    run_ok(&world.site, &["plugins", "push", &own_path])?;
    let out = apply(&world.site, CONTACTS)?;
    ensure!(out.contains("revision 5 is written"), "{out}");
    let bucket = bucket(&world).await?;
    assert_eq!(revision(&bucket, 5).await?["chain"][0]["digest"], *own);
    world.until_visible_to("12345", &BY_GROUP).await?;
    world.end().await
}

async fn alert(world: &mut World, what: &str) -> Result<Value> {
    let seen = world.tape.next("an alert", |seen| {
        seen.subject == "presence.admin.alerts" && seen.text("type") == what
    });
    let seen = seen.await?;
    Ok(seen.body)
}

#[tokio::test]
async fn a_folder_that_is_refused_raises_an_alert_and_so_does_a_quarantine() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[("contacts", None), ("trap", None), ("redact", None)])?;
        site.write_plugin("trap", component::load("fixtures/trap")?)?;
        site.with("engine.quarantine_failures", 1)
    })
    .await?;
    let connect = crate::inputs::connect("12345", "c", presence_tests::client::now_ms());
    world.client.input(crate::inputs::CONNECT, connect).await?;
    let quarantined = alert(&mut world, "quarantine").await?;
    assert_eq!(quarantined["plugin"], "trap");
    assert_eq!(quarantined["onFailure"], "hold");
    world.site.write_plugin("trap", b"\0asm")?;
    let refused = alert(&mut world, "load-refused").await?;
    let error = refused["error"].as_str().unwrap_or_default();
    ensure!(error.contains("trap.wasm can't be used"), "{refused}");
    world.end().await
}

#[tokio::test]
async fn a_quarantine_is_in_the_history_of_its_plugin() -> Result<()> {
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?.with("engine.quarantine_failures", 1)?;
    let mut world = empty(server, site).await?;
    let trap = component::load("fixtures/trap")?;
    push(&world.site, &plugin(&world.site, "trap.wasm", &trap)?)?;
    let pipeline = "[[pipeline]]\nplugin = \"contacts\"\n\n[[pipeline]]\nplugin = \"trap\"\n";
    apply(&world.site, pipeline)?;
    world.host.ready().await?;
    let connect = crate::inputs::connect("12345", "c", presence_tests::client::now_ms());
    world.client.input(crate::inputs::CONNECT, connect).await?;
    alert(&mut world, "quarantine").await?;
    let history = wait::until("the history", async || {
        let history = run_ok(&world.site, &["plugins", "history", "trap"])?;
        Ok(history.contains("in quarantine").then_some(history))
    });
    let history = history.await?;
    ensure!(history.lines().count() == 3, "{history}");
    let history = run_ok(&world.site, &["plugins", "history", "trap", "--json"])?;
    let history: Value = serde_json::from_str(&history)?;
    assert_eq!(history["alerts"][0]["type"], "quarantine");
    world.end().await
}
