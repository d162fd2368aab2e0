//! The example permissions, line by line: what each user may do and may not do, on a real server
//! with this file.

use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use presence_tests::client::{Client, now_ms};
use presence_tests::host::Host;
use presence_tests::nats::{NatsServer, Options};
use presence_tests::site::Site;
use presence_tests::{host, tools, wait};
use serde_json::{Value, json};

use crate::inputs::{self, CONNECT, FILTERED_ONLINE};
use crate::service::Service;

const BEN: &str = "=YmVuQGV4YW1wbGUuY29t";

/// Who may publish where, and subscribe to what.
struct Rights {
    user: &'static str,
    password: &'static str,
    inbox: &'static str,
    publishes: &'static [&'static str],
    subscribes: &'static [&'static str],
}

const RIGHTS: [Rights; 9] = [
    Rights {
        user: "processor",
        password: "change-me-processor",
        inbox: "_INBOX",
        publishes: &[
            "presence.events",
            "presence.events.user_online",
            "presence.events.user_offline",
            "presence.events.user_updated",
            "presence.filtered.user_online",
            "presence.filtered.user_offline",
            "presence.filtered.user_updated",
            "presence.inbox.ada",
            "presence.dlq",
            "presence.beacon",
            "presence-nodes.hello",
            "presence-directory.contacts.ada",
            "presence-directory.invalidate",
            "presence.admin.alerts",
            "presence.admin.logs.quiet",
            "$KV.presence-pipeline.revision.1",
            "$JS.API.STREAM.INFO.KV_presence-pipeline",
            "$JS.API.STREAM.MSG.GET.KV_presence-pipeline",
            "$JS.API.CONSUMER.CREATE.KV_presence-pipeline",
            "$JS.API.CONSUMER.CREATE.KV_presence-pipeline.c",
            "$JS.API.CONSUMER.DELETE.KV_presence-pipeline.c",
            "$JS.API.CONSUMER.MSG.NEXT.KV_presence-pipeline.c",
            "$JS.API.STREAM.INFO.OBJ_presence-plugins",
            "$JS.API.DIRECT.GET.OBJ_presence-plugins.c",
            "$JS.API.CONSUMER.CREATE.OBJ_presence-plugins",
            "$JS.API.CONSUMER.CREATE.OBJ_presence-plugins.c",
            "$JS.API.CONSUMER.DELETE.OBJ_presence-plugins.c",
            "$JS.API.CONSUMER.MSG.NEXT.OBJ_presence-plugins.c",
            "$JS.API.STREAM.INFO.KV_presence-tenants",
            "$JS.API.CONSUMER.CREATE.KV_presence-tenants",
            "$JS.API.CONSUMER.CREATE.KV_presence-tenants.c",
            "$JS.API.CONSUMER.DELETE.KV_presence-tenants.c",
            "$JS.API.CONSUMER.MSG.NEXT.KV_presence-tenants.c",
            "presence.shard.1.in.connect",
            "presence.shard.1.heartbeats",
            "presence.shard.1.told",
            "presence.node.ada.fleet.chunk.1",
            "$KV.presence-fleet.nodes.ada",
            "$JS.FC.KV_presence-fleet.c",
            "$JS.API.STREAM.INFO.KV_presence-fleet",
            "$JS.API.STREAM.CREATE.KV_presence-fleet",
            "$JS.API.STREAM.MSG.GET.KV_presence-fleet",
            "$JS.API.CONSUMER.CREATE.KV_presence-fleet",
            "$JS.API.CONSUMER.CREATE.KV_presence-fleet.c",
            "$JS.API.CONSUMER.DELETE.KV_presence-fleet.c",
            "$JS.API.STREAM.INFO.presence-input",
            "$JS.API.CONSUMER.CREATE.presence-input.c",
            "$JS.API.CONSUMER.MSG.NEXT.presence-input.c",
            "_INBOX.ada.1",
        ],
        subscribes: &[
            "presence.>",
            "presence-nodes.hello",
            "presence-directory.invalidate",
            "_INBOX.>",
            "$SRV.>",
            "$KV.presence-pipeline.>",
        ],
    },
    Rights {
        user: "directory",
        password: "change-me-directory",
        inbox: "_INBOX.directory",
        publishes: &["presence-directory.invalidate"],
        subscribes: &["presence-directory.>"],
    },
    Rights {
        user: "transport",
        password: "change-me-transport",
        inbox: "_INBOX.transport",
        publishes: &[
            "presence.connect",
            "presence.heartbeat",
            "presence.disconnect",
        ],
        subscribes: &["_INBOX.transport.>"],
    },
    Rights {
        user: "gateway",
        password: "change-me-gateway",
        inbox: "_INBOX.gateway",
        publishes: &["presence.query"],
        subscribes: &[
            "presence.filtered.user_online",
            "presence.filtered.user_offline",
            "presence.filtered.user_updated",
            "presence.beacon",
            "_INBOX.gateway.>",
        ],
    },
    Rights {
        user: "operator",
        password: "change-me-operator",
        inbox: "_INBOX.operator",
        publishes: &[
            "presence.query",
            "presence.explain",
            "$JS.API.STREAM.INFO.presence-dlq",
            "$JS.API.STREAM.CREATE.presence-dlq",
            "$JS.API.STREAM.UPDATE.presence-dlq",
            "$JS.API.STREAM.MSG.DELETE.presence-dlq",
            "$JS.API.CONSUMER.CREATE.presence-dlq",
            "$JS.API.CONSUMER.CREATE.presence-dlq.c",
            "$JS.API.CONSUMER.DELETE.presence-dlq.c",
            "$JS.API.CONSUMER.MSG.NEXT.presence-dlq.c",
            "$JS.API.STREAM.INFO.presence-input",
            "$JS.API.STREAM.CREATE.presence-input",
            "$JS.API.STREAM.UPDATE.presence-input",
            "presence.redrive",
            "presence.connect",
            "presence.heartbeat",
            "presence.disconnect",
            "presence.events.user_online",
            "presence.events.user_offline",
            "$SRV.PING.presence",
            "$SRV.INFO.presence",
            "$SRV.STATS.presence",
            "presence.admin.status.n",
            "presence.admin.validate.n",
            "presence.admin.shadow.n",
            "presence.admin.follow.n",
            "presence.admin.tenants.n",
            "$JS.API.STREAM.INFO.KV_presence-pipeline",
            "$JS.API.STREAM.MSG.GET.KV_presence-pipeline",
            "$JS.API.CONSUMER.CREATE.KV_presence-pipeline",
            "$JS.API.CONSUMER.CREATE.KV_presence-pipeline.c",
            "$JS.API.CONSUMER.DELETE.KV_presence-pipeline.c",
            "$JS.API.CONSUMER.MSG.NEXT.KV_presence-pipeline.c",
            "$JS.API.STREAM.INFO.OBJ_presence-plugins",
            "$JS.API.DIRECT.GET.OBJ_presence-plugins.c",
            "$JS.API.CONSUMER.CREATE.OBJ_presence-plugins",
            "$JS.API.CONSUMER.CREATE.OBJ_presence-plugins.c",
            "$JS.API.CONSUMER.DELETE.OBJ_presence-plugins.c",
            "$JS.API.CONSUMER.MSG.NEXT.OBJ_presence-plugins.c",
            "$JS.API.STREAM.CREATE.presence-alerts",
            "$JS.API.STREAM.INFO.presence-alerts",
            "$JS.API.CONSUMER.CREATE.presence-alerts",
            "$JS.API.CONSUMER.CREATE.presence-alerts.c",
            "$JS.API.CONSUMER.DELETE.presence-alerts.c",
            "$JS.API.CONSUMER.MSG.NEXT.presence-alerts.c",
            "$JS.API.DIRECT.GET.KV_presence-pipeline.c",
            "$JS.API.STREAM.CREATE.KV_presence-pipeline",
            "$KV.presence-pipeline.revision.1",
            "$JS.API.STREAM.CREATE.OBJ_presence-plugins",
            "$JS.API.STREAM.PURGE.OBJ_presence-plugins",
            "$O.presence-plugins.M.c",
            "$JS.API.STREAM.INFO.KV_presence-tenants",
            "$JS.API.CONSUMER.CREATE.KV_presence-tenants",
            "$JS.API.CONSUMER.CREATE.KV_presence-tenants.c",
            "$JS.API.CONSUMER.DELETE.KV_presence-tenants.c",
            "$JS.API.CONSUMER.MSG.NEXT.KV_presence-tenants.c",
            "$JS.API.DIRECT.GET.KV_presence-tenants.c",
            "$JS.API.STREAM.CREATE.KV_presence-tenants",
            "$KV.presence-tenants.acme",
        ],
        subscribes: &[
            "presence.dlq",
            "presence.admin.alerts",
            "presence.admin.logs.*",
            "_INBOX.operator.>",
        ],
    },
    Rights {
        user: "auditor",
        password: "change-me-auditor",
        inbox: "_INBOX.auditor",
        publishes: &[
            "presence.query",
            "presence.explain",
            "$JS.API.STREAM.INFO.presence-dlq",
            "$JS.API.CONSUMER.CREATE.presence-dlq",
            "$JS.API.CONSUMER.CREATE.presence-dlq.c",
            "$JS.API.CONSUMER.DELETE.presence-dlq.c",
            "$JS.API.CONSUMER.MSG.NEXT.presence-dlq.c",
            "$SRV.PING.presence",
            "$SRV.INFO.presence",
            "$SRV.STATS.presence",
            "presence.admin.status.n",
            "presence.admin.follow.n",
            "$JS.API.STREAM.INFO.KV_presence-pipeline",
            "$JS.API.STREAM.MSG.GET.KV_presence-pipeline",
            "$JS.API.CONSUMER.CREATE.KV_presence-pipeline",
            "$JS.API.CONSUMER.CREATE.KV_presence-pipeline.c",
            "$JS.API.CONSUMER.DELETE.KV_presence-pipeline.c",
            "$JS.API.CONSUMER.MSG.NEXT.KV_presence-pipeline.c",
            "$JS.API.STREAM.INFO.OBJ_presence-plugins",
            "$JS.API.DIRECT.GET.OBJ_presence-plugins.c",
            "$JS.API.CONSUMER.CREATE.OBJ_presence-plugins",
            "$JS.API.CONSUMER.CREATE.OBJ_presence-plugins.c",
            "$JS.API.CONSUMER.DELETE.OBJ_presence-plugins.c",
            "$JS.API.CONSUMER.MSG.NEXT.OBJ_presence-plugins.c",
            "$JS.API.STREAM.INFO.presence-alerts",
            "$JS.API.CONSUMER.CREATE.presence-alerts",
            "$JS.API.CONSUMER.CREATE.presence-alerts.c",
            "$JS.API.CONSUMER.DELETE.presence-alerts.c",
            "$JS.API.CONSUMER.MSG.NEXT.presence-alerts.c",
        ],
        subscribes: &[
            "presence.dlq",
            "presence.admin.alerts",
            "presence.admin.logs.*",
            "_INBOX.auditor.>",
        ],
    },
    Rights {
        user: "recorder",
        password: "change-me-recorder",
        inbox: "_INBOX.recorder",
        publishes: &[],
        subscribes: &["presence.>"],
    },
    Rights {
        user: "ada",
        password: "change-me-ada",
        inbox: "_INBOX.ada",
        publishes: &["presence.query.ada"],
        subscribes: &["presence.inbox.ada", "presence.beacon", "_INBOX.ada.>"],
    },
    Rights {
        user: "ben@example.com",
        password: "change-me-ben",
        inbox: "_INBOX.=YmVuQGV4YW1wbGUuY29t",
        publishes: &["presence.query.=YmVuQGV4YW1wbGUuY29t"],
        subscribes: &[
            "presence.inbox.=YmVuQGV4YW1wbGUuY29t",
            "presence.beacon",
            "_INBOX.=YmVuQGV4YW1wbGUuY29t.>",
        ],
    },
];

/// Subjects that a user might try in addition to their own.
const TRIED: [&str; 24] = [
    "presence.admin.other",
    "$KV.presence-pipeline.other",
    "$JS.API.STREAM.DELETE.KV_presence-pipeline",
    "$JS.API.STREAM.DELETE.KV_presence-tenants",
    "presence.events",
    "presence.events.user_online",
    "presence.events.user_updated",
    "presence.filtered.user_online",
    "presence.filtered.user_updated",
    "presence.inbox.cleo",
    "presence.inbox.=YS5i",
    "presence.connect",
    "presence.heartbeat",
    "presence.disconnect",
    "presence.query",
    "presence.query.cleo",
    "presence.query.=YS5i",
    "presence.explain",
    "presence.dlq",
    "presence-nodes.hello",
    "presence-directory.contacts.cleo",
    "presence-directory.everyone",
    "_INBOX.cleo.1",
    "somewhere.else",
];

/// Subjects that the recorder may not hear, although its wildcard covers them.
const DENIED: [&str; 6] = [
    "presence.filtered.",
    "presence.inbox.",
    "presence.query",
    "presence.explain",
    "presence.dlq",
    "presence.admin.",
];

/// Subjects to which only those subscribe who are permitted exactly these.
const WILDCARDS: [&str; 7] = [
    ">",
    "presence.>",
    "presence.events.>",
    "presence.filtered.*",
    "presence.inbox.*",
    "presence.query.*",
    "_INBOX.>",
];

/// A subject on which nobody may publish. The server's complaint shows that it has handled all that
/// came before.
const MARK: &str = "presence-tests.mark";

/// A user's connection, and what the server forbade on it.
struct User {
    nats: async_nats::Client,
    complaints: Arc<Mutex<Vec<String>>>,
    marks: usize,
}

impl User {
    async fn connect(server: &NatsServer, rights: &Rights) -> Result<Self> {
        let complaints = Arc::new(Mutex::new(Vec::new()));
        let hear = Arc::clone(&complaints);
        let nats = async_nats::ConnectOptions::new()
            .user_and_password(rights.user.into(), rights.password.into())
            .custom_inbox_prefix(rights.inbox)
            .event_callback(move |event| {
                if let async_nats::Event::ServerError(error) = event
                    && let Ok(mut complaints) = hear.lock()
                {
                    complaints.push(error.to_string());
                }
                std::future::ready(())
            })
            .connect(server.url())
            .await?;
        Ok(Self {
            nats,
            complaints,
            marks: 0,
        })
    }

    /// What the server has forbidden since the last call.
    async fn forbidden(&mut self) -> Result<Vec<String>> {
        self.marks += 1;
        let mark = format!("{MARK}.{}", self.marks).to_lowercase();
        self.nats.publish(mark.clone(), "".into()).await?;
        wait::until("the server to forbid the mark", async || {
            let mut complaints = self.complaints.lock().ok().context("a panic elsewhere")?;
            let is_mark = |text: &String| text.to_lowercase().contains(&format!("\"{mark}\""));
            let Some(end) = complaints.iter().position(is_mark) else {
                return Ok(None);
            };
            let before: Vec<_> = complaints.drain(..=end).collect();
            Ok(Some(before[..end].to_vec()))
        })
        .await
    }

    async fn may_publish(&mut self, subject: &str) -> Result<bool> {
        self.nats.publish(subject.to_owned(), "".into()).await?;
        Ok(self.forbidden().await?.is_empty())
    }

    async fn may_subscribe(&mut self, subject: &str) -> Result<bool> {
        let _subscriber = self.nats.subscribe(subject.to_owned()).await?;
        Ok(self.forbidden().await?.is_empty())
    }
}

/// The file.
pub(crate) fn file() -> Result<String> {
    let file = tools::root().join("docs/permissions.conf");
    std::fs::read_to_string(&file).with_context(|| file.display().to_string())
}

pub(crate) async fn server() -> Result<NatsServer> {
    let config = file()?;
    NatsServer::start_with(Options {
        config,
        ..Options::default()
    })
    .await
}

/// A site whose node and commands log in as one of the file's users.
pub(crate) fn as_user(site: Site, user: &str) -> Result<Site> {
    site.with("nats.user", user)?
        .with("nats.password", format!("change-me-{user}"))
}

/// Connects as a user of the file.
pub(crate) async fn connect(server: &NatsServer, user: &str) -> Result<async_nats::Client> {
    Ok(User::connect(server, rights(user)?).await?.nats)
}

fn rights(user: &str) -> Result<&'static Rights> {
    static ALL: [Rights; 9] = RIGHTS;
    ALL.iter()
        .find(|rights| rights.user == user)
        .context("a user of the file")
}

#[tokio::test]
async fn each_user_may_do_what_the_file_says_and_nothing_else() -> Result<()> {
    let server = server().await?;
    for rights in &RIGHTS {
        let mut user = User::connect(&server, rights).await?;
        let name = rights.user;
        for subject in rights.publishes {
            assert!(
                user.may_publish(subject).await?,
                "{name} publishes {subject}"
            );
        }
        for subject in rights.subscribes {
            assert!(user.may_subscribe(subject).await?, "{name} reads {subject}");
        }
        let others = RIGHTS.iter().filter(|other| other.user != name);
        let others = others.flat_map(|other| other.publishes).chain(&TRIED);
        for subject in others {
            let permitted = rights.publishes.contains(subject)
                // The processor's wildcards.
                || name == "processor" && ["presence.inbox.", "_INBOX.", "presence-directory."].iter().any(|own| subject.starts_with(own));
            let may = user.may_publish(subject).await?;
            assert_eq!(may, permitted, "{name} publishes {subject}");
        }
        let others = RIGHTS.iter().filter(|other| other.user != name);
        let others = others.flat_map(|other| other.subscribes);
        for subject in others.chain(&TRIED).chain(&WILDCARDS) {
            let covers = |own: &&str| match own.strip_suffix('>') {
                Some(prefix) => subject.starts_with(prefix),
                None => own == subject,
            };
            let denied = name == "recorder" && DENIED.iter().any(|it| subject.starts_with(it));
            let permitted = !denied && rights.subscribes.iter().any(covers);
            let may = user.may_subscribe(subject).await?;
            assert_eq!(may, permitted, "{name} reads {subject}");
        }
    }
    Ok(())
}

fn client(user: &User) -> Client {
    Client {
        nats: user.nats.clone(),
    }
}

#[tokio::test]
async fn all_that_is_needed_works_under_it() -> Result<()> {
    let server = server().await?;
    let mut site = Site::new(&server.url())?
        .with("nats.user", "processor")?
        .with("nats.password", "change-me-processor")?
        .with("inbox.enabled", true)?
        .with("explain.enabled", true)?
        .with("directory.source", "request")?;
    let mut directory = User::connect(&server, rights("directory")?).await?;
    let contacts = json!({"contacts": {"12345": ["ada", "ben@example.com"]}});
    let service = client(&directory);
    let service = Service::of(service, contacts).await?;
    service.invalidate("").await?;
    let host = Host::start(&site).await?;
    let mut gateway = User::connect(&server, rights("gateway")?).await?;
    let mut ada = User::connect(&server, rights("ada")?).await?;
    let mut ben = User::connect(&server, rights("ben@example.com")?).await?;
    // The harness's recording isn't used: it asks for an answer where these users may not.
    let mut filtered = gateway.nats.subscribe(FILTERED_ONLINE).await?;
    let mut inbox = ben.nats.subscribe(format!("presence.inbox.{BEN}")).await?;
    for user in [&mut gateway, &mut ben] {
        assert_eq!(user.forbidden().await?, Vec::<String>::new());
    }

    let mut transport = User::connect(&server, rights("transport")?).await?;
    let connect = inputs::connect("12345", "c", now_ms());
    client(&transport).input(CONNECT, connect).await?;
    let viewers = async |messages: &mut async_nats::Subscriber| -> Result<Value> {
        use futures_util::StreamExt;
        let message = wait::guarded("a message", messages.next()).await?;
        let body: Value = serde_json::from_slice(&message.context("a message")?.payload)?;
        Ok(body["visibleTo"].clone())
    };
    assert_eq!(
        viewers(&mut filtered).await?,
        json!(["ada", "ben@example.com"])
    );
    assert_eq!(viewers(&mut inbox).await?, json!(["ben@example.com"]));

    for (user, token, id) in [(&ada, "ada", "ada"), (&ben, BEN, "ben@example.com")] {
        let subject = format!("presence.query.{token}");
        let reply = client(user)
            .request(&subject, r#"{"userIds":["12345"]}"#)
            .await?;
        assert_eq!(reply["viewerId"], id);
        assert_eq!(reply["users"][0]["status"], "online", "{reply}");
        let forged = r#"{"viewerId":"zoe","userIds":["12345"]}"#;
        let reply = client(user).request(&subject, forged).await?;
        assert_eq!(reply["field"], "viewerId", "{reply}");
    }
    for user in [
        &mut ada,
        &mut ben,
        &mut transport,
        &mut gateway,
        &mut directory,
    ] {
        assert_eq!(user.forbidden().await?, Vec::<String>::new());
    }
    let metrics = host.metrics().await?;
    assert!(
        metrics.contains("presence_nats_errors_total 0"),
        "{metrics}"
    );

    // The commands, as an operator and as a user without permission.
    site.set("nats.user", "operator")?;
    site.set("nats.password", "change-me-operator")?;
    let asked = host::run(&site, &["query", "ada", "12345", "--json"])?;
    assert_eq!(asked.status.code(), Some(0), "{asked:?}");
    let explained = host::run(&site, &["explain", "ada", "12345"])?;
    assert_eq!(explained.status.code(), Some(0), "{explained:?}");
    // A viewer, on the viewer's own subject and in the viewer's own inbox.
    for (user, id) in [("ada", "ada"), ("ben@example.com", "ben@example.com")] {
        site.set("nats.user", user)?;
        site.set("nats.password", rights(user)?.password)?;
        let asked = host::run(&site, &["query", "--as", id, "12345", "--json"])?;
        assert_eq!(asked.status.code(), Some(0), "{asked:?}");
        let answer: Value = serde_json::from_slice(&asked.stdout)?;
        assert_eq!(answer["viewerId"], id, "{answer}");
        assert_eq!(answer["users"][0]["status"], "online", "{answer}");
    }
    // A gateway hears its own replies, and a transport may not ask.
    site.set("nats.user", "gateway")?;
    site.set("nats.password", "change-me-gateway")?;
    let asked = host::run(&site, &["query", "ada", "12345"])?;
    assert_eq!(asked.status.code(), Some(0), "{asked:?}");
    site.set("nats.user", "transport")?;
    site.set("nats.password", "change-me-transport")?;
    let refused = host::run(&site, &["query", "ada", "12345"])?;
    let error = String::from_utf8(refused.stderr)?;
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        error.to_lowercase().contains("permissions violation"),
        "{error}"
    );
    host.stop().await
}

#[tokio::test]
async fn a_recorder_hears_what_comes_in() -> Result<()> {
    let server = server().await?;
    let site = Site::new(&server.url())?
        .with("nats.user", "recorder")?
        .with("nats.password", "change-me-recorder")?;
    let mut recorder = host::start(&site, &["record", "-", "--messages", "1"])?;
    let says = |line: &str| line.starts_with("recording presence.> ");
    recorder.wait_for_log("it to begin", 0, says).await?;
    let transport = User::connect(&server, rights("transport")?).await?;
    let connect = inputs::connect("12345", "c", now_ms());
    client(&transport).publish(CONNECT, &connect).await?;
    let status = recorder.wait().await?;
    assert!(status.success(), "{}", recorder.log_tail());
    assert!(recorder.stdout().concat().contains("\"12345\""));

    // A user who may not hear it is told so.
    let site = site
        .with("nats.user", "gateway")?
        .with("nats.password", "change-me-gateway")?;
    let output = host::run(&site, &["record", "-"])?;
    let stderr = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("can't listen to presence.>"), "{stderr}");
    Ok(())
}
