//! Compiled plugins, kept from one start to the next.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::Result;
use presence_tests::client::now_ms;
use presence_tests::host::Host;

use crate::inputs::{self, CONNECT, FILTERED_ONLINE};
use crate::world::World;

/// Waits until the host has started. Returns how many plugins it has compiled, and how many it has
/// taken from the cache.
async fn compiled(host: &mut Host) -> Result<(usize, usize)> {
    host.wait_for_log(0, &["ready"]).await?;
    let log = host.process.stderr();
    let count = |words: &str| log.iter().filter(|line| line.contains(words)).count();
    Ok((count("from_cache=false"), count("from_cache=true")))
}

#[tokio::test]
async fn plugins_are_compiled_once_for_all_starts() -> Result<()> {
    let mut world = World::start_with(|site| {
        site.with("plugins.cache", "presence-cache")?
            .with("log.level", "debug,async_nats=warn,wasmtime=warn")
    })
    .await?;
    assert_eq!(compiled(&mut world.host).await?, (4, 0));
    world.host.process.stop().await?;

    world.host = Host::start(&world.site).await?;
    assert_eq!(compiled(&mut world.host).await?, (0, 4));
    world
        .client
        .input(CONNECT, inputs::connect("12345", "c1", now_ms()))
        .await?;
    let online = world.tape.hosts(FILTERED_ONLINE, 1).await?.remove(0);
    assert_eq!(online.visible_to(), ["22222", "67890"]);
    world.host.process.stop().await?;

    // Code that somebody has altered is not run: it is compiled anew, and replaced.
    let folder = world.site.path().join("presence-cache");
    for entry in fs::read_dir(&folder)? {
        let path: PathBuf = entry?.path();
        let mut bytes = fs::read(&path)?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes)?;
    }
    world.host = Host::start(&world.site).await?;
    let words = ["compiled anew and replaced", "digest"];
    world.host.wait_for_log(0, &words).await?;
    assert_eq!(compiled(&mut world.host).await?, (4, 0));
    let refused = "presence_plugin_cache_refusals_total";
    world
        .host
        .until_metric(refused, &[], |it| it == 4.0)
        .await?;
    world.host.process.stop().await?;

    // Nothing is taken from a folder in which others can write, or which lies in such a folder.
    for open in [folder.as_path(), world.site.path()] {
        let before = fs::metadata(open)?.permissions();
        fs::set_permissions(open, Permissions::from_mode(0o777))?;
        world.host = Host::start(&world.site).await?;
        let words = ["others can write in", "chmod go-w"];
        world.host.wait_for_log(0, &words).await?;
        assert_eq!(compiled(&mut world.host).await?, (4, 0));
        world.host.process.stop().await?;
        fs::set_permissions(open, before)?;
    }
    world.host = Host::start(&world.site).await?;
    assert_eq!(compiled(&mut world.host).await?, (0, 4));
    world.end().await
}
