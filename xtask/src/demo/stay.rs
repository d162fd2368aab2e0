//! After the story: the world goes on running, the demo suggests what to try, and prints what is
//! published.

use std::convert::Infallible;
use std::time::Duration;

use anyhow::Result;
use presence_tests::tools;

use super::observer::Observed;
use super::page::{Page, Style};
use super::world::{World, dead_letter, millis};

/// The default timeout: it gives those who connect by hand some time.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A long interval, so that the recording of a long stay remains short.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// How often the host's log is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Bodies as they are typed in a shell.
const CONNECT: &str = r#"'{"userId": "fay", "connId": "f1", "timestamp": '$(date +%s000)', "metadata": {"device": "web"}}'"#;
const DISCONNECT: &str = r#"'{"userId": "fay", "connId": "f1", "timestamp": '$(date +%s000)'}'"#;

/// A rule with which the plugin's own test cases still pass.
const PHONE: &str =
    r#"    if event.text("device").as_deref() == Some("phone") { return audience; }"#;

/// Runs until the future is dropped.
///
/// # Errors
/// When the host ends, or tells a viewer what they know already.
pub(crate) async fn stay(world: &mut World, page: &Page) -> Result<Infallible> {
    world.heartbeats = world.transport.heartbeats(HEARTBEAT);
    let from = world.host.log_len();
    world.site.set("tracker.timeout_ms", millis(TIMEOUT))?;
    world
        .host
        .wait_for_log(from, &["configuration reloaded"])
        .await?;
    let mut log = world.host.log_len();
    suggest(world, page);

    let mut polls = tokio::time::interval(POLL_INTERVAL);
    loop {
        tokio::select! {
            _ = polls.tick() => {
                world.observer.forget_broadcasts();
                for line in world.host.process.stderr().iter().skip(log) {
                    page.note(&format!("log: {}", without_time(line)));
                    log += 1;
                }
                if let Some(status) = world.host.process.ended()? {
                    anyhow::bail!("presence ended: {status}");
                }
            }
            saw = world.observer.next("what comes of it") => match saw {
                Ok(Observed::FilteredEvent(event)) => page.print_phrase(&event.phrase()),
                Ok(Observed::DeadLetter(letter)) => page.print_phrase(&dead_letter(&letter)),
                Ok(Observed::Broadcast { .. } | Observed::Mark(_) | Observed::Other) => {}
                Err(error) => return Err(error),
            },
        }
    }
}

fn suggest(world: &World, page: &Page) {
    let root = tools::root().display().to_string();
    let site = world.site.path().display();
    let url = world.server.url();
    let port = world.site.http_port();
    let suggestions = [
        (
            "In another terminal (`nats` is the command line of NATS: github.com/nats-io/natscli)",
            format!(
                "export NATS_URL={url}\ncd {site}   # presence.toml, directory.json, plugins.d"
            ),
        ),
        (
            "Listen, and look at the counters",
            format!("nats sub 'presence.filtered.>'\ncurl -s http://127.0.0.1:{port}/metrics"),
        ),
        (
            "Be fay, who hasn't been online yet; without heartbeats, for 30 s",
            format!(
                "nats pub presence.connect {CONNECT}\nnats pub presence.disconnect {DISCONNECT}"
            ),
        ),
        (
            "Change who knows whom: cleo sees eve from now on",
            "sed -i.old 's/\"dan\": \\[/\"eve\": [\"cleo\"], &/' directory.json".to_owned(),
        ),
        (
            "Change a rule: anyone who is on the phone is hidden from their contacts",
            format!(
                "${{EDITOR:-vi}} {root}/plugins/contacts/src/lib.rs   # begin `filter` with:\n{PHONE}\n(cd {root} && cargo xtask plugins)\ncp {root}/plugins/dist/contacts.wasm plugins.d/"
            ),
        ),
        (
            "Break it: the running rule stays, and the log says why",
            "echo broken > plugins.d/contacts.wasm".to_owned(),
        ),
    ];
    page.heading("It goes on running. What to try:");
    for (title, commands) in suggestions {
        println!("\n   {}", page.styled(Style::Faint, title));
        for command in commands.lines() {
            println!("     {command}");
        }
    }
    page.heading("What comes of it is printed here. Ctrl-C ends it.");
}

/// A line of the log without its time. A line that continues the one before has none.
fn without_time(line: &str) -> &str {
    match line.split_once(' ') {
        Some((time, rest)) if time.ends_with('Z') => rest.trim_start(),
        _ => line,
    }
}
