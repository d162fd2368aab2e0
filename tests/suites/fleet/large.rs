//! A user with more viewers than fit one message.

use anyhow::{Context, Result, ensure};
use presence_tests::client::{ReceivedMessage, now_ms};
use presence_tests::host::Host;
use serde_json::json;

use super::{SHARDS, Scene, are_settled, broker, guest, shard_of, site, user_of};
use crate::inputs::{self, CONNECT, FILTERED_ONLINE};
use crate::world::on;

const STAR: &str = "star";
const VIEWERS: usize = 2_000;

#[tokio::test]
async fn what_an_owner_tells_of_a_user_with_many_viewers_reaches_the_standby() -> Result<()> {
    let mut scene = Scene::start_on(broker("max_payload: 16384").await?).await?;
    let fan = |number| format!("a-viewer-with-a-long-name-{number}");
    let fans: Vec<_> = (0..VIEWERS).map(fan).collect();
    let other = (0..).map(guest).find(|it| shard_of(it) == shard_of(STAR));
    let other = other.context("a user of the same shard")?;
    let directory = json!({ "contacts": { STAR: fans, &*other: ["viewer"] } }).to_string();
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let site = site(&scene.server, name)?;
        site.write_directory(&directory)?;
        nodes.push((Host::start(&site).await?, site));
    }
    are_settled(&nodes.iter().map(|it| &it.0).collect::<Vec<_>>()).await?;
    for user in [STAR, &other] {
        let connect = inputs::connect(user, "c1", now_ms());
        scene.client.input(CONNECT, connect).await?;
    }
    let all = |seen: &[ReceivedMessage]| {
        notified_viewers(seen, STAR) == VIEWERS && notified_viewers(seen, &other) == 1
    };
    scene.tape.until("all viewers to be told", all).await?;

    // An owner hands a shard over when the other node has received all that it told. Whichever of
    // the two it is, the other has missed nothing by then.
    let gaps = async |host: &Host| {
        let reason = [r#"reason="gap""#];
        host.metric("presence_fleet_catch_ups_total", &reason).await
    };
    let (second, _second_site) = nodes.pop().context("a node")?;
    let (first, _first_site) = nodes.pop().context("a node")?;
    let owns_all = |owned: f64| owned == SHARDS as f64;
    let owned = "presence_fleet_shards_owned";
    let before = gaps(&first).await?;
    first.stop().await?;
    second.until_metric(owned, &[], owns_all).await?;
    let missed = before + gaps(&second).await?;
    ensure!(missed == 0.0, "{missed} gaps");
    scene.tape.catch_up(&scene.client).await?;
    ensure!(
        notified_viewers(scene.tape.seen(), STAR) == VIEWERS,
        "told twice"
    );
    Ok(())
}

/// How many viewers were told that a user is online.
fn notified_viewers(seen: &[ReceivedMessage], user: &str) -> usize {
    let of_user = on(seen, FILTERED_ONLINE).into_iter();
    let of_user = of_user.filter(|it| user_of(it) == user);
    of_user
        .map(|it| it["visibleTo"].as_array().map_or(0, Vec::len))
        .sum()
}
