//! The world of the story: a broker, a host in its site, the transport that sends its input, and
//! the observer of what it publishes.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use presence_tests::client::Client;
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::site::Site;
use serde_json::Value;

use super::cast::{Directory, Rule};
use super::expected::Expected;
use super::filtered_event::{Change, Phrase};
use super::observer::{Observed, Observer};
use super::page::{Page, Style};
use super::transport::{Heartbeats, Transport};

/// How long a connection lives without a heartbeat: a tenth of the default, since the story waits
/// for a connection to time out.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(3);

/// How often living connections send a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The world. The fields are dropped in this order: the host before the broker.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) heartbeats: Heartbeats,
    pub(crate) transport: Transport,
    pub(crate) observer: Observer,
    pub(crate) host: Host,
    pub(crate) site: Site,
    pub(crate) directory: Directory,
    pub(crate) rule: Rule,
    pub(crate) server: NatsServer,
}

impl World {
    /// Starts everything. Nobody is online yet.
    pub(crate) async fn start() -> Result<Self> {
        let server = NatsServer::start().await?;
        let directory = Directory::new();
        let site = Site::new(&server.url())?.with("tracker.timeout_ms", millis(TIMEOUT))?;
        site.write_directory(&directory.json())?;
        let client = Client::connect(&server.url()).await?;
        let observer = Observer::new(client.clone()).await?;
        let host = Host::start(&site).await?;
        let transport = Transport::new(client);
        Ok(Self {
            heartbeats: transport.heartbeats(HEARTBEAT),
            transport,
            observer,
            host,
            site,
            directory,
            rule: Rule::ContactsAndGroups,
            server,
        })
    }

    /// Stops the host, which must end cleanly, and the broker.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.host.stop().await?;
        self.server.stop().await
    }

    /// The end of the host's log.
    pub(crate) fn log_tail(&self) -> String {
        self.host.process.log_tail()
    }

    /// Who may see a user, by the current rule and directory.
    pub(crate) fn audience(&self, user: &str) -> BTreeSet<String> {
        self.directory.audience(user, self.rule)
    }

    /// A user makes a connection. If it is the user's first one, the audience is told. Otherwise
    /// nobody is told anything.
    pub(crate) async fn connect(
        &mut self,
        page: &Page,
        user: &str,
        conn: &str,
        device: &str,
    ) -> Result<()> {
        let first = !self.transport.online().contains(user);
        page.act("presence.connect", &format!("{user}, {conn}"))
            .await;
        self.transport.connect(user, conn, device).await?;
        let expected = if first {
            Expected::online(user, self.audience(user))
        } else {
            Expected::default()
        };
        self.show(page, expected).await
    }

    /// A user closes a connection. If it was the last one, those are told who were told that the
    /// user came. Otherwise nobody is told anything.
    pub(crate) async fn disconnect(&mut self, page: &Page, user: &str, conn: &str) -> Result<()> {
        page.act("presence.disconnect", &format!("{user}, {conn}"))
            .await;
        self.transport.disconnect(user, conn).await?;
        let last = !self.transport.online().contains(user);
        let expected = if last {
            Expected::offline(user, "disconnect", self.observer.state().of(user))
        } else {
            Expected::default()
        };
        self.show(page, expected).await
    }

    /// What has to follow from a change of the rule or the directory: for each online user, who
    /// loses sight of the user and who gains it. Call this after the change has been made here, and
    /// before the host knows of it.
    pub(crate) fn corrections(&self) -> Expected {
        let mut expected = Expected::default();
        for user in self.transport.online() {
            let (told, may_see) = (self.observer.state().of(&user), self.audience(&user));
            for (online, viewers) in [(false, &told - &may_see), (true, &may_see - &told)] {
                if !viewers.is_empty() {
                    expected.filtered.insert(Change {
                        user: user.clone(),
                        online,
                        moved: false,
                        viewers,
                    });
                }
            }
        }
        expected
    }

    /// Prints what viewers are told, until all that is expected has come.
    ///
    /// # Errors
    /// When it doesn't come, or something else does.
    pub(crate) async fn show(&mut self, page: &Page, mut expected: Expected) -> Result<()> {
        let mut mark = None;
        loop {
            if mark.is_none() && expected.is_empty() {
                mark = Some(self.observer.mark().await?);
            }
            let saw = self.observer.next("what the host is to publish").await;
            match saw.with_context(|| format!("{expected}"))? {
                Observed::Broadcast { user, went } => {
                    let event = (user.clone(), went.clone());
                    ensure!(
                        expected.events.remove(&event),
                        "nobody expected the event {event:?}\n{expected}"
                    );
                    if !expected.filtered.iter().any(|change| change.user == user) {
                        page.print_phrase(&for_nobody(&user, went.is_none()));
                    }
                }
                Observed::FilteredEvent(event) => {
                    ensure!(
                        expected.filtered.remove(&event.change),
                        "nobody expected this: {}\n{expected}",
                        event.change
                    );
                    page.print_phrase(&event.phrase());
                }
                Observed::DeadLetter(letter) => {
                    let reason = letter.get("reason").and_then(Value::as_str);
                    let place = expected
                        .dead_letters
                        .iter()
                        .position(|wanted| Some(*wanted) == reason);
                    let place = place
                        .with_context(|| format!("nobody expected the dead letter {letter}"))?;
                    expected.dead_letters.swap_remove(place);
                    page.print_phrase(&dead_letter(&letter));
                }
                Observed::Mark(seen) if mark == Some(seen) => return Ok(()),
                Observed::Mark(_) => bail!("a mark that isn't ours"),
                Observed::Other => {}
            }
        }
    }
}

/// An event that nobody is told of.
fn for_nobody(user: &str, online: bool) -> Phrase {
    let came = if online {
        "came online"
    } else {
        "went offline"
    };
    Phrase {
        style: if online { Style::Green } else { Style::Red },
        left: format!("{user} {came}"),
        right: "nobody is told".into(),
        detail: String::new(),
    }
}

/// A dead letter as a line.
pub(crate) fn dead_letter(letter: &Value) -> Phrase {
    let text = |field| {
        letter
            .get(field)
            .and_then(Value::as_str)
            .unwrap_or_default()
    };
    Phrase {
        style: Style::Yellow,
        left: "a dead letter".into(),
        right: format!("{}: {}", text("reason"), text("error")),
        detail: "on presence.dlq".into(),
    }
}

/// Milliseconds as a configuration has them.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}
