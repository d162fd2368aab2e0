//! Plugins from a registry of OCI artifacts: a real one, on loopback.

use std::fs;

use anyhow::{Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use presence_tests::component;
use presence_tests::host;
use presence_tests::nats::NatsServer;
use presence_tests::registry::{PASSWORD, Registry, USER, digest};
use presence_tests::site::Site;
use presence_tests::tools;
use serde_json::{Value, json};

use crate::store::{CONTACTS, apply, empty, run_err, run_ok};

/// The media type that `wkg` gives a component.
const WASM: &str = "application/wasm";

#[tokio::test]
async fn a_plugin_is_taken_from_a_registry_by_tag_or_digest_and_runs() -> Result<()> {
    let registry = Registry::start(false).await?;
    let plugin = component::named(&component::load("groups")?, "contacts")?;
    let (manifest, layer) = registry.push("acme/quiet", "1.0", WASM, &plugin).await?;
    let older = "application/vnd.module.wasm.content.layer.v1+wasm";
    registry.push("older", "latest", older, &plugin).await?;
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?;
    let mut world = empty(server, site).await?;
    apply(&world.site, CONTACTS)?;
    world.host.ready().await?;
    let address = format!("oci://{}/acme/quiet", registry.host());
    let out = run_ok(
        &world.site,
        &["plugins", "push", &format!("{address}:1.0"), "--json"],
    )?;
    let out: Value = serde_json::from_str(&out)?;
    let pushed = &out["pushed"][0];
    assert_eq!(
        pushed["digest"], *layer,
        "the store has the component itself"
    );
    assert_eq!(pushed["uploaded"], true);
    assert_eq!(pushed["from"], format!("{address}@{manifest}"));
    let again = run_ok(
        &world.site,
        &["plugins", "push", &format!("{address}@{manifest}")],
    )?;
    ensure!(again.contains("was there"), "{again}");
    let older = format!("oci://{}/older:latest", registry.host());
    ensure!(run_ok(&world.site, &["plugins", "push", &older])?.contains("was there"));
    run_ok(
        &world.site,
        &["plugins", "activate", &format!("contacts@{layer}"), "--yes"],
    )?;
    world.until_visible_to("12345", &["22222"]).await?;
    world.end().await
}

#[tokio::test]
async fn what_a_registry_has_is_checked_and_what_is_wrong_is_said() -> Result<()> {
    let registry = Registry::start(false).await?;
    let plugin = component::load("groups")?;
    let (manifest, layer) = registry.push("quiet", "1.0", WASM, &plugin).await?;
    registry
        .push("image", "1.0", "application/x-tar", b"no component")
        .await?;
    registry
        .push("other", "1.0", WASM, b"\0asm no plugin")
        .await?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest,
            "size": 1,
            "platform": {"architecture": "wasm", "os": "wasip2"},
        }],
    });
    registry.manifest("quiet", "index", &index).await?;
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?;
    let world = empty(server, site).await?;
    let host = registry.host();
    let push = |rest: &str| {
        let address = format!("oci://{host}/{rest}");
        run_err(&world.site, &["plugins", "push", &address])
    };
    let unknown = digest(b"unknown");
    for (rest, problem) in [
        ("quiet:2.0", "there is no tag `2.0` of `quiet`".to_owned()),
        (
            &*format!("quiet@{unknown}"),
            format!("there is no manifest {unknown} of `quiet`"),
        ),
        (
            "image:1.0",
            "it is no Wasm component: its layers are application/x-tar".into(),
        ),
        ("other:1.0", "can't be used".into()),
        ("quiet", "write oci://HOST/REPOSITORY:TAG".into()),
    ] {
        let error = push(rest)?;
        ensure!(error.contains(&problem), "{problem}: {error}");
    }
    let port = tools::free_port()?;
    let gone = format!("oci://127.0.0.1:{port}/quiet:1.0");
    let error = run_err(&world.site, &["plugins", "push", &gone])?;
    ensure!(
        error.contains("can't reach the registry 127.0.0.1:"),
        "{error}"
    );
    let nowhere = "oci://registry.invalid/quiet:1.0";
    let error = run_err(&world.site, &["plugins", "push", nowhere])?;
    ensure!(
        error.contains("can't reach the registry registry.invalid"),
        "{error}"
    );
    let index = format!("oci://{host}/quiet:index");
    ensure!(run_ok(&world.site, &["plugins", "push", &index])?.contains("uploaded"));
    let small = ["PRESENCE_PLUGINS_FILE_BYTES_MAX", "1024"];
    let mut command = host::command(&world.site, &["plugins", "push", &index])?;
    let output = command.env(small[0], small[1]).output()?;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(error.contains("file_bytes_max permits 1024"), "{error}");

    // A registry whose disk or operator can't be trusted.
    let stored = registry.stored(&layer);
    let mut altered = fs::read(&stored)?;
    altered[100] ^= 1;
    fs::write(&stored, altered)?;
    let error = push("quiet:1.0")?;
    ensure!(error.contains("has been altered"), "{error}");
    world.end().await
}

#[tokio::test]
async fn credentials_are_those_of_dockers_configuration() -> Result<()> {
    let registry = Registry::start(true).await?;
    let plugin = component::load("groups")?;
    registry.push("quiet", "1.0", WASM, &plugin).await?;
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?;
    let world = empty(server, site).await?;
    let (host, docker) = (registry.host(), world.site.path().join("docker"));
    fs::create_dir(&docker)?;
    let address = format!("oci://{host}/quiet:1.0");
    let push = || -> Result<(String, bool)> {
        let mut command = host::command(&world.site, &["plugins", "push", &address])?;
        let output = command.env("DOCKER_CONFIG", &docker).output()?;
        let said = [&*output.stdout, &*output.stderr].concat();
        Ok((String::from_utf8(said)?, output.status.success()))
    };
    let (said, good) = push()?;
    let none = format!("{host} wants a login, and docker's configuration has none");
    ensure!(!good && said.contains(&none), "{said}");
    let file = docker.join("config.json");
    let login = |password: &str| {
        let pair = BASE64_STANDARD.encode(format!("{USER}:{password}"));
        json!({"auths": {&host: {"auth": pair}}}).to_string()
    };
    fs::write(&file, login("wrong"))?;
    let (said, good) = push()?;
    ensure!(!good && said.contains("refuses the credentials"), "{said}");
    ensure!(!said.contains("wrong"), "{said}");
    fs::write(&file, "{")?;
    let (said, good) = push()?;
    ensure!(!good && said.contains("can't be read"), "{said}");
    fs::write(&file, login(PASSWORD))?;
    let (said, good) = push()?;
    ensure!(good && said.contains("uploaded"), "{said}");
    world.end().await
}
