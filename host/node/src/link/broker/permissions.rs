//! What the broker must permit this node, what it has forbidden, and whether it still does.
//!
//! A broker reports a permission only when it refuses something. To test a permission to publish
//! without delivering a message, the node publishes with a reply subject below `_R_.`, which
//! nats-server reserves: the server first checks the permission to publish, then refuses the reply
//! subject, and delivers the message in neither case. That the server does so is tested first, on
//! an inbox of this process.

mod needed;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use presence_config::Config;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::clock;
use crate::link::hello;
use needed::needed;

/// What the reply subjects of trials begin with.
const REPLY: &str = "_R_.presence";

/// How long the broker has to answer a trial.
const TRIAL: Duration = Duration::from_secs(10);

/// What a right is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Publish,
    Subscribe,
}

/// One thing that a node must be permitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Permission {
    pub(crate) operation: Operation,
    /// The subject, as it is to be permitted.
    pub(crate) subject: String,
    /// A subject that it covers, and that nobody is told anything on.
    sample: String,
    /// Whether the node has use for it as it is configured.
    pub(crate) is_used: bool,
}

impl Permission {
    fn new(operation: Operation, subject: String, is_used: bool) -> Self {
        // Nobody hears more than what is to be taken in, and that is dropped.
        let is_own = operation == Operation::Publish || subject.starts_with(hello::INBOX);
        let sample = match subject.strip_suffix(['>', '*']) {
            Some(prefix) if is_own => format!("{prefix}presence-trial"),
            _ => subject.clone(),
        };
        Self {
            operation,
            subject,
            sample,
            is_used,
        }
    }

    /// Whether something that the broker has refused is a case of it.
    fn covers(&self, operation: Operation, subject: &str) -> bool {
        let begins = |prefix: &str| {
            let head = subject.get(..prefix.len());
            head.is_some_and(|head| head.eq_ignore_ascii_case(prefix))
        };
        self.operation == operation
            && match self.subject.strip_suffix(['>', '*']) {
                Some(prefix) => begins(prefix),
                None => self.subject.eq_ignore_ascii_case(subject),
            }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.operation {
            Operation::Publish => write!(f, "to publish to `{}`", self.subject),
            Operation::Subscribe => write!(f, "to subscribe to `{}`", self.subject),
        }
    }
}

/// What stands for a tenant's prefix where it has none.
fn prefix_of(prefix: Option<&str>) -> &str {
    prefix.unwrap_or_default()
}

/// What the broker says that it refuses.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal<'a> {
    Of(Operation, &'a str),
    /// A reply subject, behind the subject that may be published to.
    Reply(&'a str),
}

/// Reads what the broker says.
pub(super) fn refusal(text: &str) -> Option<Refusal<'_>> {
    const HEAD: &str = "permissions violation for ";
    let at = text.to_ascii_lowercase().find(HEAD)? + HEAD.len();
    let rest = text.get(at..)?;
    let (what, quoted) = rest.split_once('"')?;
    let (subject, _) = quoted.split_once('"')?;
    match what.trim().to_ascii_lowercase().as_str() {
        "publish to" => Some(Refusal::Of(Operation::Publish, subject)),
        "publish with reply of" => Some(Refusal::Reply(subject)),
        "subscription to" => Some(Refusal::Of(Operation::Subscribe, subject)),
        _ => None,
    }
}

/// What came of what the broker said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BrokerErrorKind {
    /// A trial's answer.
    Trial,
    /// Something that the node needs, and that wasn't known to be forbidden.
    New(String),
    /// As it was known.
    Known,
    /// Something else.
    Other,
}

/// A right, and who needs it.
#[derive(Debug)]
struct Needed {
    permission: Permission,
    /// The prefixes of the tenants that do, each with whether it has use for it as it is
    /// configured. None when all of them have ended.
    by: BTreeMap<String, bool>,
}

/// All rights that somebody needs, or needed.
#[derive(Debug, Default)]
struct AllNeeded {
    /// Each has its place for as long as the connection is there.
    rights: Vec<Needed>,
    /// The place of each.
    places: HashMap<(Operation, String), usize>,
    /// The places of what the tenant with a prefix needs.
    of_tenants: HashMap<String, Vec<usize>>,
}

impl AllNeeded {
    fn get(&self, place: usize) -> Option<&Needed> {
        self.rights.get(place)
    }

    /// Notes that the tenant with a prefix needs a right.
    fn add(&mut self, prefix: &str, permission: Permission) {
        let is_used = permission.is_used;
        let key = (permission.operation, permission.subject.clone());
        let place = *self.places.entry(key).or_insert(self.rights.len());
        if place == self.rights.len() {
            self.rights.push(Needed {
                permission,
                by: BTreeMap::new(),
            });
        }
        if let Some(needed) = self.rights.get_mut(place)
            && needed.by.insert(prefix.to_owned(), is_used).is_none()
        {
            let places = self.of_tenants.entry(prefix.to_owned()).or_default();
            places.push(place);
        }
    }

    /// Notes that the tenant with a prefix needs nothing any more. Says what nobody does.
    fn remove(&mut self, prefix: &str) -> Vec<usize> {
        let mut unneeded = self.of_tenants.remove(prefix).unwrap_or_default();
        unneeded.retain(|place| {
            self.rights.get_mut(*place).is_some_and(|needed| {
                needed.by.remove(prefix);
                needed.by.is_empty()
            })
        });
        unneeded
    }
}

/// What is known of the rights of those who use a connection.
#[derive(Debug, Default)]
pub(crate) struct Permissions {
    needed: RwLock<AllNeeded>,
    /// Since when each is forbidden, by its place, and by the host's clock.
    forbidden: Mutex<BTreeMap<usize, u64>>,
    /// Rights that were refused for a subject that a client chose, such as a reply subject. They
    /// count as forbidden only after the node's own test was refused, too.
    suspected: Mutex<BTreeSet<usize>>,
    trials: AtomicU64,
    trial: Mutex<Trial>,
    answered: Notify,
}

/// The trial that is under way.
#[derive(Debug, Default)]
struct Trial {
    number: u64,
    /// What the broker has said of each, by its place.
    verdicts: BTreeMap<usize, bool>,
    /// How many of the trial's marks the broker has answered.
    marks: u32,
    /// Whether it has refused a mark itself, and so not said how it takes their replies.
    is_deaf_to_replies: bool,
    /// Where marks are published.
    mark: String,
}

impl Permissions {
    /// Notes what the tenant of a configuration needs.
    pub(crate) fn need(&self, config: &Config) {
        let prefix = prefix_of(config.tenant.prefix.as_deref());
        let mut known = self.needed.write().unwrap_or_else(PoisonError::into_inner);
        for permission in needed(config) {
            known.add(prefix, permission);
        }
    }

    /// Notes that the tenant with a prefix needs nothing any more.
    pub(crate) fn release(&self, prefix: Option<&str>) {
        let mut known = self.needed.write().unwrap_or_else(PoisonError::into_inner);
        let unneeded = known.remove(prefix_of(prefix));
        drop(known);
        for place in unneeded {
            self.forbidden().remove(&place);
            self.suspected().remove(&place);
        }
    }

    fn needed(&self) -> RwLockReadGuard<'_, AllNeeded> {
        self.needed.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn permission(&self, place: usize) -> Option<Permission> {
        let needed = self.needed();
        needed.get(place).map(|it| it.permission.clone())
    }

    /// Notes what the broker says.
    pub(crate) fn note(&self, text: &str) -> BrokerErrorKind {
        match refusal(text) {
            Some(Refusal::Reply(reply)) => self.note_reply(reply),
            Some(Refusal::Of(operation, subject)) => self.note_refusal(operation, subject),
            None => BrokerErrorKind::Other,
        }
    }

    fn note_reply(&self, reply: &str) -> BrokerErrorKind {
        let lower = reply.to_ascii_lowercase();
        let Some(rest) = lower.strip_prefix(&REPLY.to_ascii_lowercase()) else {
            return BrokerErrorKind::Other;
        };
        let mut tokens = rest.split('.').skip(1);
        let number = tokens.next().and_then(|token| token.parse().ok());
        let mut trial = self.trial();
        if number == Some(trial.number) {
            match tokens.next() {
                Some("mark") => trial.marks += 1,
                Some(place) => {
                    let place = place.parse().ok();
                    trial.verdicts.extend(place.map(|place| (place, true)));
                }
                None => {}
            }
            self.answered.notify_one();
        }
        BrokerErrorKind::Trial
    }

    fn note_refusal(&self, operation: Operation, subject: &str) -> BrokerErrorKind {
        let covers = |it: &Needed| !it.by.is_empty() && it.permission.covers(operation, subject);
        let Some(place) = self.needed().rights.iter().position(covers) else {
            return BrokerErrorKind::Other;
        };
        let permission = self.permission(place);
        let sample = permission.as_ref().map(|permission| &permission.sample);
        let is_sample = sample.is_some_and(|sample| sample.eq_ignore_ascii_case(subject));
        let mut trial = self.trial();
        let is_mark = operation == Operation::Publish && trial.mark.eq_ignore_ascii_case(subject);
        if is_mark {
            trial.marks += 1;
            trial.is_deaf_to_replies = true;
        }
        if is_mark || is_sample {
            trial.verdicts.insert(place, false);
            self.answered.notify_one();
        }
        drop(trial);
        let mut forbidden = self.forbidden();
        if forbidden.contains_key(&place) {
            return BrokerErrorKind::Known;
        }
        if operation == Operation::Publish && !is_mark && !is_sample {
            self.suspected().insert(place);
            return BrokerErrorKind::Other;
        }
        forbidden.insert(place, clock::now_ms());
        let permission = permission.as_ref().map(ToString::to_string);
        BrokerErrorKind::New(permission.unwrap_or_default())
    }

    /// There is a new connection: what is subscribed to is judged anew. What is published
    /// is not until it is published, or tried, again.
    pub(crate) fn connected(&self) {
        let needed = self.needed();
        let is_publish = |place: &usize| {
            let needed = needed.get(*place);
            needed.is_some_and(|it| it.permission.operation == Operation::Publish)
        };
        self.forbidden().retain(|place, _| is_publish(place));
    }

    /// What is forbidden of what the tenant with a prefix needs, and for how long, in
    /// milliseconds.
    pub(crate) fn forbidden_to(&self, prefix: Option<&str>) -> Vec<(Permission, u64)> {
        let now = clock::now_ms();
        let (needed, forbidden) = (self.needed(), self.forbidden());
        let forbidden = forbidden.iter().filter_map(|(place, since)| {
            let needed = needed.get(*place)?;
            let is_needed = needed.by.contains_key(prefix_of(prefix));
            is_needed.then(|| (needed.permission.clone(), now.saturating_sub(*since)))
        });
        forbidden.collect()
    }

    /// How much is forbidden of what anybody needs.
    pub(crate) fn forbidden_count(&self) -> usize {
        self.forbidden().len()
    }

    /// Has what is forbidden tried again: says what no longer is. Of that, what is published
    /// is noted as permitted, and what is subscribed to once it is subscribed to again.
    pub(crate) async fn retry(&self, client: &Client) -> Vec<Permission> {
        let mut places = std::mem::take(&mut *self.suspected());
        places.extend(self.forbidden().keys());
        let places: Vec<_> = places.into_iter().collect();
        if places.is_empty() {
            return Vec::new();
        }
        let verdicts = self.attempt(client, &places).await;
        let permitted = |place: &usize| verdicts.get(place) == Some(&true);
        let mut again = Vec::new();
        for place in places.iter().filter(|place| permitted(place)) {
            let Some(permission) = self.permission(*place) else {
                continue;
            };
            let was_forbidden = match permission.operation {
                Operation::Publish => self.forbidden().remove(place).is_some(),
                Operation::Subscribe => true,
            };
            if was_forbidden {
                again.push(permission);
            }
        }
        again
    }

    /// Tries all that the node has use for as it is configured. Of each: whether it is
    /// permitted, and none where that can't be found out.
    pub(crate) async fn try_all(&self, client: &Client) -> Vec<(Permission, Option<bool>)> {
        let places: Vec<_> = {
            let needed = self.needed();
            let used = needed.rights.iter().enumerate();
            let used = used.filter(|(_, it)| it.by.values().any(|is_used| *is_used));
            used.map(|(place, _)| place).collect()
        };
        let verdicts = self.attempt(client, &places).await;
        let of = |place: usize| Some((self.permission(place)?, verdicts.get(&place).copied()));
        places.into_iter().filter_map(of).collect()
    }

    async fn attempt(&self, client: &Client, places: &[usize]) -> BTreeMap<usize, bool> {
        let number = self.trials.fetch_add(1, Ordering::Relaxed) + 1;
        let mark = client.new_inbox();
        *self.trial() = Trial {
            number,
            mark: mark.clone(),
            ..Trial::default()
        };
        let subscribed = timeout(TRIAL, async {
            self.mark(client, number, &mark, 1).await?;
            // Only where it is known that nothing gets through.
            let may_publish = !self.trial().is_deaf_to_replies;
            let mut subscribed = Vec::new();
            for place in places {
                let Some(permission) = self.permission(*place) else {
                    continue;
                };
                let sample = permission.sample;
                match permission.operation {
                    Operation::Subscribe => {
                        subscribed.push((*place, client.subscribe(sample).await.ok()?))
                    }
                    Operation::Publish if !may_publish => {}
                    Operation::Publish => {
                        let reply = format!("{REPLY}.{number}.{place}");
                        let body = Bytes::new();
                        client.publish_with_reply(sample, reply, body).await.ok()?;
                    }
                }
            }
            self.mark(client, number, &mark, 2).await?;
            Some(subscribed)
        });
        let subscribed = subscribed.await.ok().flatten();
        let mut verdicts = std::mem::take(&mut *self.trial()).verdicts;
        for (place, _) in subscribed.into_iter().flatten() {
            // The broker would have said so before the last mark.
            verdicts.entry(place).or_insert(true);
        }
        verdicts
    }

    /// Publishes a mark, and waits until so many have been answered; none if they can't be.
    async fn mark(&self, client: &Client, number: u64, mark: &str, marks: u32) -> Option<()> {
        let reply = format!("{REPLY}.{number}.mark");
        let body = Bytes::new();
        let sent = client.publish_with_reply(mark.to_owned(), reply, body);
        sent.await.ok()?;
        client.flush().await.ok()?;
        loop {
            let answered = self.answered.notified();
            if self.trial().marks >= marks {
                return Some(());
            }
            answered.await;
        }
    }

    fn forbidden(&self) -> MutexGuard<'_, BTreeMap<usize, u64>> {
        self.forbidden
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn suspected(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.suspected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn trial(&self) -> MutexGuard<'_, Trial> {
        self.trial.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permissions() -> Permissions {
        let mut config = Config::default();
        config.tenant.prefix = Some("Acme".into());
        let permissions = Permissions::default();
        permissions.need(&config);
        permissions
    }

    #[test]
    fn what_one_tenant_may_not_is_no_other_tenants_matter() {
        let permissions = permissions();
        let mut other = Config::default();
        other.tenant.prefix = Some("beta".into());
        permissions.need(&other);
        let of = |prefix| permissions.forbidden_to(Some(prefix)).len();
        permissions.note("Permissions Violation for Subscription to \"beta.presence.>\"");
        assert_eq!((of("Acme"), of("beta")), (0, 1));
        // What both need is both their matter, until one ends.
        permissions.note("Permissions Violation for Subscription to \"$SRV.>\"");
        assert_eq!((of("Acme"), of("beta")), (1, 2));
        permissions.release(Some("beta"));
        assert_eq!((of("Acme"), of("beta")), (1, 0));
        let again = "Permissions Violation for Subscription to \"beta.presence.>\"";
        assert_eq!(permissions.note(again), BrokerErrorKind::Other);
        // It comes again.
        permissions.need(&other);
        assert_eq!((of("Acme"), of("beta")), (1, 1));
        assert!(matches!(permissions.note(again), BrokerErrorKind::New(_)));
    }

    #[test]
    fn what_the_broker_refuses_is_read() {
        let text = "nats: Permissions Violation for Publish to \"a.b\"";
        assert_eq!(refusal(text), Some(Refusal::Of(Operation::Publish, "a.b")));
        let text = "nats: permissions violation for subscription to \"a.>\" using queue \"q\"";
        assert_eq!(
            refusal(text),
            Some(Refusal::Of(Operation::Subscribe, "a.>"))
        );
        let text = "Permissions Violation for Publish with Reply of \"_R_.presence.1.mark\"";
        assert_eq!(refusal(text), Some(Refusal::Reply("_R_.presence.1.mark")));
        for text in [
            "",
            "nats: slow consumer",
            "Permissions Violation for Publish to \"a",
        ] {
            assert_eq!(refusal(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_needed_and_forbidden_is_known_once_and_whatever_its_case() {
        let permissions = permissions();
        let text = "Permissions Violation for Publish to \"acme.presence.dlq\"";
        let new = BrokerErrorKind::New("to publish to `Acme.presence.dlq`".into());
        assert_eq!(permissions.note(text), new);
        assert_eq!(permissions.note(text), BrokerErrorKind::Known);
        // Who it is for, others have named: it is tried first.
        let text = "Permissions Violation for Publish to \"Acme.presence.inbox.=YQ\"";
        assert_eq!(permissions.note(text), BrokerErrorKind::Other);
        assert_eq!(permissions.forbidden_to(Some("Acme")).len(), 1);
        let text = "Permissions Violation for Publish to \"Acme.presence.inbox.presence-trial\"";
        let new = BrokerErrorKind::New("to publish to `Acme.presence.inbox.*`".into());
        assert_eq!(permissions.note(text), new);
        let text = "Permissions Violation for Publish to \"Acme.presence.inbox.=Yg\"";
        assert_eq!(permissions.note(text), BrokerErrorKind::Known);
        let other = "Permissions Violation for Publish to \"elsewhere\"";
        assert_eq!(permissions.note(other), BrokerErrorKind::Other);
        assert_eq!(permissions.forbidden_to(Some("Acme")).len(), 2);
    }

    #[test]
    fn a_new_connection_judges_anew_what_is_subscribed_to() {
        let permissions = permissions();
        permissions.note("Permissions Violation for Subscription to \"Acme.presence.>\"");
        permissions.note("Permissions Violation for Publish to \"Acme.presence.events\"");
        permissions.connected();
        let left: Vec<_> = permissions.forbidden_to(Some("Acme"));
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].0.subject, "Acme.presence.events");
    }

    #[test]
    fn what_is_turned_off_is_not_used() {
        let config = Config::default();
        let used = needed(&config)
            .into_iter()
            .filter(|permission| permission.is_used);
        let used: Vec<_> = used.map(|permission| permission.subject).collect();
        assert!(used.contains(&"presence.filtered.user_online".to_owned()));
        assert!(!used.contains(&"presence.events.user_updated".to_owned()));
        assert!(!used.contains(&"presence.inbox.*".to_owned()));
    }
}
