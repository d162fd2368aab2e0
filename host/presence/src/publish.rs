//! `presence pub`: publishes what a client would. It is for trying things out without a client.

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use presence_config::Config;
use presence_config::escape::{eprint_line, line, print, print_json};
use presence_kit::ConfigArg;
use presence_node::clock;
use presence_node::link::request_client::{ClientRequest, RequestClient};
use serde_json::{Map, Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use crate::tenant;

/// What is published.
#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Connects a user, sends heartbeats until SIGTERM or SIGINT (Ctrl-C), and disconnects.
    #[command(
        after_help = "Example:\n  presence pub connect 12345 --metadata '{\"device\": \"web\"}'\n\nHeartbeats are sent three times in [tracker] timeout_ms. Without them, the connection would\nend after that time."
    )]
    Connect(Connect),
    /// Ends a connection of a user.
    #[command(after_help = "Example:\n  presence pub disconnect 12345 --conn c1 --reason logout")]
    Disconnect(Disconnect),
    /// Publishes any input as it is, and prints the processor's answer.
    #[command(
        after_help = "Examples:\n  presence pub event presence.events.user_online '{\"userId\": \"12345\"}'\n  presence pub event presence.connect - < connect.json\n\nWithout a timestamp in the JSON, the time of now is added."
    )]
    Event(Event),
}

#[derive(clap::Args)]
pub(crate) struct Connect {
    /// Who connects.
    user: String,
    /// The connection's id; by default, one that no other process uses.
    #[arg(long, value_name = "ID")]
    conn: Option<String>,
    /// The metadata: a JSON object.
    #[arg(long, value_name = "JSON", value_parser = object)]
    metadata: Option<Map<String, Value>>,
    #[command(flatten)]
    config: ConfigArg,
}

#[derive(clap::Args)]
pub(crate) struct Disconnect {
    /// Whose connection it is.
    user: String,
    /// The connection's id.
    #[arg(long, value_name = "ID")]
    conn: String,
    /// Why: client_disconnect, server_shutdown, timeout or logout.
    #[arg(long, default_value = "client_disconnect")]
    reason: String,
    #[command(flatten)]
    config: ConfigArg,
}

#[derive(clap::Args)]
pub(crate) struct Event {
    /// One of the subjects of input, without a tenant's prefix.
    #[arg(value_parser = INPUTS)]
    subject: String,
    /// The JSON object, or - to read it from standard input.
    json: String,
    #[command(flatten)]
    config: ConfigArg,
}

/// The subjects from which a processor takes input.
const INPUTS: [&str; 5] = [
    "presence.connect",
    "presence.disconnect",
    "presence.heartbeat",
    "presence.events.user_online",
    "presence.events.user_offline",
];

/// The longest standard input, in bytes.
const STDIN_BYTES_MAX: u64 = 1 << 20;

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("it is not a JSON object: {error}"))
}

/// Runs one of the commands.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    let config = match command {
        Command::Connect(Connect { config, .. })
        | Command::Disconnect(Disconnect { config, .. })
        | Command::Event(Event { config, .. }) => config,
    };
    let config = tenant::load_now(config)?;
    crate::runtime::wait_for(async {
        match command {
            Command::Connect(args) => connect(args, &config).await,
            Command::Disconnect(args) => disconnect(args, &config).await,
            Command::Event(args) => event(args, &config).await,
        }
    })
}

async fn connect(args: &Connect, config: &Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let conn = args.conn.clone();
    let conn = conn.unwrap_or_else(|| format!("pub-{}-{}", std::process::id(), clock::now_ms()));
    let body = |more: Value| {
        let mut body = json!({"userId": args.user, "connId": conn});
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        body
    };
    let client = RequestClient::open(config, None).await?;
    let metadata = args.metadata.clone().unwrap_or_default();
    let connect = || body(json!({"metadata": metadata}));
    publish(&client, "presence.connect", connect()).await?;
    let beat = Duration::from_millis((config.tracker.timeout_ms / 3).max(1));
    let (user, shown) = (line(&args.user), line(&conn));
    let seconds = beat.as_secs_f32();
    print(format_args!(
        "{user} is connected as {shown}, with a heartbeat every {seconds} s; Ctrl-C disconnects\n"
    ))?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = sleep(beat) => {}
        }
        let heartbeat = publish(&client, "presence.heartbeat", body(json!({})));
        let sent = tokio::select! {
            sent = heartbeat => sent,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        if let Err(error) = sent {
            eprint_line(format_args!(
                "warning: a heartbeat was not taken, and the next is sent in {seconds} s: {error:#}"
            ));
        }
    }
    let reason = json!({"reason": "client_disconnect"});
    publish(&client, "presence.disconnect", body(reason)).await?;
    Ok(print(format_args!("{user} has disconnected\n"))?)
}

async fn disconnect(args: &Disconnect, config: &Config) -> anyhow::Result<()> {
    let Disconnect {
        user, conn, reason, ..
    } = args;
    let client = RequestClient::open(config, None).await?;
    let body = json!({"userId": user, "connId": conn, "reason": reason});
    publish(&client, "presence.disconnect", body).await?;
    let (user, conn) = (line(user), line(conn));
    Ok(print(format_args!("{user} has disconnected {conn}\n"))?)
}

async fn event(args: &Event, config: &Config) -> anyhow::Result<()> {
    let text = match &*args.json {
        "-" => {
            let mut text = String::new();
            let read = std::io::stdin()
                .take(STDIN_BYTES_MAX)
                .read_to_string(&mut text);
            read.context("can't read standard input")?;
            text
        }
        text => text.to_owned(),
    };
    let body = match object(&text) {
        Ok(body) => Value::Object(body),
        Err(why) => bail!("what is to be published can't be: {why}"),
    };
    let client = RequestClient::open(config, None).await?;
    let answer = publish(&client, &args.subject, body).await?;
    Ok(print_json(answer)?)
}

/// Publishes a message, and returns the processor's answer. Adds the current time if the message
/// has no timestamp.
///
/// # Errors
/// If the processor refuses the message, or doesn't answer.
async fn publish(client: &RequestClient, subject: &str, mut body: Value) -> anyhow::Result<Value> {
    let fields = body.as_object_mut().context("no JSON object")?;
    let now = json!(clock::now_ms());
    fields.entry("timestamp").or_insert(now);
    let question = ClientRequest {
        subject: subject.into(),
        inbox: None,
        body,
        is_answer: |answer| answer.get("ok").is_some_and(Value::is_boolean),
    };
    let answer = client.ask(&question).await?;
    ensure!(answer.get("ok") == Some(&json!(true)), "not taken");
    Ok(answer)
}
