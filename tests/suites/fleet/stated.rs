//! What an application states of users who have connections stays shown, whichever node owns them.

use anyhow::{Context, Result, ensure};
use presence_tests::client::now_ms;
use serde_json::{Value, json};

use super::{Scene, are_settled, guest, hosts};
use crate::inputs::{CONNECT, FILTERED_ONLINE, ONLINE};
use crate::world::on;

const GUESTS: usize = 24;

/// Users connect with one device, and an application states another.
async fn state(scene: &Scene) -> Result<Vec<String>> {
    let users: Vec<_> = (0..GUESTS).map(guest).collect();
    for user in &users {
        for (subject, device) in [(CONNECT, "phone"), (ONLINE, "web")] {
            let message = json!({
                "userId": user, "connId": "c1", "timestamp": now_ms(),
                "metadata": {"device": device},
            });
            scene.client.input(subject, message).await?;
        }
    }
    Ok(users)
}

/// Checks that all users are shown with what the application has stated.
async fn are_shown(scene: &Scene, users: &[String]) -> Result<()> {
    let answer = scene.query(users).await?;
    let shown = answer["users"].as_array().context("users")?;
    let is_stated = |it: &Value| it["metadata"]["device"] == "web";
    ensure!(
        shown.len() == users.len() && shown.iter().all(is_stated),
        "{answer}"
    );
    Ok(())
}

#[tokio::test]
async fn who_owns_a_user_makes_no_difference_to_what_an_application_has_stated() -> Result<()> {
    let mut scene = Scene::start().await?;
    let mut nodes = scene.nodes(&["a", "b", "c"]).await?;
    are_settled(&hosts(&nodes)).await?;
    let users = state(&scene).await?;
    are_shown(&scene, &users).await?;
    let told = |scene: &Scene| on(scene.tape.seen(), FILTERED_ONLINE).len();
    scene.are_online().await?;
    scene.tape.catch_up(&scene.client).await?;
    let before = told(&scene);

    nodes.remove(0).host.stop().await?;
    are_settled(&hosts(&nodes)).await?;
    are_shown(&scene, &users).await?;
    nodes.remove(0).host.kill().await?;
    are_settled(&hosts(&nodes)).await?;
    are_shown(&scene, &users).await?;

    scene.tape.catch_up(&scene.client).await?;
    ensure!(told(&scene) == before, "somebody was told of a change");
    scene.check_notifications().await
}
