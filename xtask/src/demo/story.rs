//! The story, step by step, up to the crowd.

use std::time::Instant;

use anyhow::{Result, ensure};
use presence_tests::component;
use serde_json::json;

use super::cast::{PEOPLE, Rule};
use super::expected::Expected;
use super::latency::readable;
use super::page::Page;
use super::transport::CONNECT;
use super::world::World;

/// Tells the story.
///
/// # Errors
/// When something that the story tells doesn't happen, or something else does.
pub(crate) async fn run(world: &mut World, page: &mut Page) -> Result<()> {
    introduce(world, page);
    come_online(world, page).await?;
    open_a_second_tab(world, page).await?;
    close_the_last_tab(world, page).await?;
    crash(world, page).await?;
    send_something_invalid(world, page).await?;
    swap_a_rule(world, page).await?;
    put_it_back(world, page).await?;
    block_somebody(world, page).await
}

fn introduce(world: &World, page: &Page) {
    page.heading("presence: who is online, and who may know it");
    page.print_line("   These are the people, and who may see them (directory.json):\n");
    for user in PEOPLE {
        let [contacts, group, blocks] = world.directory.columns(user);
        let line = format!("   {user:<6}{contacts:<28}{group:<15}{blocks}");
        page.print_line(line.trim_end());
    }
}

async fn come_online(world: &mut World, page: &mut Page) -> Result<()> {
    let lines = [
        "A user's contacts are told, and those who share a group, but nobody whom the",
        "user has blocked: dan is a contact of ada's, and isn't told.",
    ];
    page.step("Somebody comes online", &lines).await;
    world.connect(page, "ada", "tab-1", "web").await?;
    world.connect(page, "ben", "phone-1", "phone").await?;
    world.connect(page, "cleo", "desk", "desktop").await?;
    world.connect(page, "eve", "tablet", "tablet").await
}

async fn open_a_second_tab(world: &mut World, page: &mut Page) -> Result<()> {
    let lines =
        ["A user is online for as long as one connection lives. The rest is nobody's business."];
    page.step("A second tab", &lines).await;
    world.connect(page, "ada", "tab-2", "web").await?;
    page.note("nothing is published: ada was online already");
    world.disconnect(page, "ada", "tab-1").await?;
    page.note("nothing is published: ada still is");
    Ok(())
}

async fn close_the_last_tab(world: &mut World, page: &mut Page) -> Result<()> {
    let lines = ["Anyone who was told that ada came is told that she went, and nobody else."];
    page.step("The last tab closes", &lines).await;
    world.disconnect(page, "ada", "tab-2").await
}

async fn crash(world: &mut World, page: &mut Page) -> Result<()> {
    let lines = [
        "ben's phone is out of battery, and says no goodbye. After 3 s without a heartbeat",
        "(30 s by default) he is offline. The others' heartbeats keep them online.",
    ];
    page.step("A crash", &lines).await;
    let heartbeats = world.transport.sent().heartbeats;
    world.transport.crash("ben", "phone-1");
    page.act("(no heartbeat)", "ben, phone-1").await;
    let told = world.observer.state().of("ben");
    world
        .show(page, Expected::offline("ben", "timeout", told))
        .await?;
    let heartbeats = world.transport.sent().heartbeats - heartbeats;
    ensure!(
        heartbeats >= 2,
        "the others sent only {heartbeats} heartbeats"
    );
    page.note(&format!(
        "meanwhile cleo and eve stayed online by {heartbeats} heartbeats"
    ));
    Ok(())
}

async fn send_something_invalid(world: &mut World, page: &mut Page) -> Result<()> {
    let lines = ["What can't be read becomes a dead letter that says why. Nothing stops for it."];
    page.step("An invalid message", &lines).await;
    let body = json!({"connId": "tab-3", "timestamp": 1_698_000_000_000_u64});
    page.act(CONNECT, &body.to_string()).await;
    let answer = world.transport.send_invalid(&body).await?;
    ensure!(
        answer.get("reason") == Some(&json!("missing-field")),
        "the host should say what is missing, but answered {answer}"
    );
    let expected = Expected {
        dead_letters: vec!["missing-field"],
        ..Expected::default()
    };
    world.show(page, expected).await?;
    world.connect(page, "ada", "tab-3", "web").await?;
    world.connect(page, "ben", "phone-2", "phone").await
}

async fn swap_a_rule(world: &mut World, page: &mut Page) -> Result<()> {
    let lines = [
        "Another contacts.wasm is dropped into plugins.d: now a shared group alone counts.",
        "Everyone online is decided again, and just the difference is told.",
    ];
    page.step("A rule is swapped while it runs", &lines).await;
    let groups = component::named(&component::load("groups")?, "contacts")?;
    swap(world, page, Rule::GroupsAlone, &groups).await?;
    world.connect(page, "dan", "laptop", "desktop").await?;
    page.note("dan is in no group");
    Ok(())
}

async fn put_it_back(world: &mut World, page: &mut Page) -> Result<()> {
    let lines = [
        "Anyone who lost sight of somebody has it again. dan came in between, and is shown",
        "to ben only now.",
    ];
    page.step("The old rule is put back", &lines).await;
    let contacts = component::load("contacts")?;
    swap(world, page, Rule::ContactsAndGroups, &contacts).await
}

async fn swap(world: &mut World, page: &Page, rule: Rule, component: &[u8]) -> Result<()> {
    world.rule = rule;
    let expected = world.corrections();
    ensure!(
        !expected.filtered.is_empty(),
        "the swap is to change who sees whom"
    );
    page.act(
        "plugins.d",
        &format!("contacts.wasm, {} kB", component.len() / 1_000),
    )
    .await;
    let begin = Instant::now();
    world.site.write_plugin("contacts", component)?;
    world.show(page, expected).await?;
    let took = readable(begin.elapsed());
    page.note(&format!(
        "checked, compiled, swapped in and told within {took}"
    ));
    Ok(())
}

async fn block_somebody(world: &mut World, page: &mut Page) -> Result<()> {
    let lines =
        ["The directory is followed like the rules: ada blocks cleo, and makes up with dan."];
    page.step("A block takes effect at once", &lines).await;
    world.directory.block("ada", &["cleo"]);
    let expected = world.corrections();
    ensure!(
        expected.filtered.len() == 2,
        "one is to lose sight, and one to gain it"
    );
    page.act("directory.json", r#""blocks": {"ada": ["cleo"]}"#)
        .await;
    let begin = Instant::now();
    world.site.write_directory(&world.directory.json())?;
    world.show(page, expected).await?;
    page.note(&format!("told within {}", readable(begin.elapsed())));
    Ok(())
}
