//! Which permissions the node needs from the broker, which of them the broker has refused, and
//! whether it still refuses them.
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

/// The prefix of the reply subjects of tests.
const REPLY: &str = "_R_.presence";

/// How long the broker has to answer a test.
const TEST_TIMEOUT: Duration = Duration::from_secs(10);

/// What a permission is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    Publish,
    Subscribe,
}

/// A permission that a node needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Permission {
    pub(crate) operation: Operation,
    /// The subject of the permission, which may be a pattern.
    pub(crate) subject: String,
    /// The subject to test the permission with. The pattern covers it.
    sample: String,
    /// Whether the node uses the permission in its current configuration.
    pub(crate) is_used: bool,
}

impl Permission {
    fn new(operation: Operation, subject: String, is_used: bool) -> Self {
        // A test subscription to another subject has to use the subject itself. It receives input
        // messages, and drops them.
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

    /// Whether the permission covers an operation that the broker has refused.
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

/// The key of a tenant: its prefix, or an empty string if it has none.
fn prefix_of(prefix: Option<&str>) -> &str {
    prefix.unwrap_or_default()
}

/// What the broker has refused, according to its error message.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal<'a> {
    Of(Operation, &'a str),
    /// A reply subject. The subject itself may be published to.
    Reply(&'a str),
}

/// Reads an error message of the broker.
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

/// How an error message of the broker is classified.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum BrokerErrorKind {
    /// The answer to a test.
    TestAnswer,
    /// A permission that the node needs, and that wasn't known to be forbidden.
    New(String),
    /// A permission that was known to be forbidden.
    Known,
    /// Anything else.
    Other,
}

/// A permission, and the tenants that need it.
#[derive(Debug)]
struct Needed {
    permission: Permission,
    /// The prefixes of the tenants that need the permission, each with whether it uses it in its
    /// current configuration. Empty when all of them have ended.
    by: BTreeMap<String, bool>,
}

/// All permissions that a tenant needs, or needed.
#[derive(Debug, Default)]
struct AllNeeded {
    /// An entry keeps its index for as long as the connection exists.
    rights: Vec<Needed>,
    /// The index of each permission in `rights`.
    places: HashMap<(Operation, String), usize>,
    /// For each tenant's prefix: the indexes of the permissions that it needs.
    of_tenants: HashMap<String, Vec<usize>>,
}

impl AllNeeded {
    fn get(&self, place: usize) -> Option<&Needed> {
        self.rights.get(place)
    }

    /// Notes that the tenant with this prefix needs a permission.
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

    /// Notes that the tenant with this prefix needs nothing any more. Returns the indexes of the
    /// permissions that no tenant needs now.
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

/// The permissions of all tenants that use a connection.
#[derive(Debug, Default)]
pub(crate) struct Permissions {
    needed: RwLock<AllNeeded>,
    /// The index of each forbidden permission, and since when it is forbidden, by the host's clock.
    forbidden: Mutex<BTreeMap<usize, u64>>,
    /// Permissions to publish that were refused for a subject that a client chose, such as a reply
    /// subject. They count as forbidden only after the node's own test was refused, too.
    suspected: Mutex<BTreeSet<usize>>,
    tests: AtomicU64,
    test: Mutex<PermissionTest>,
    answered: Notify,
}

/// The test in progress.
#[derive(Debug, Default)]
struct PermissionTest {
    number: u64,
    /// Whether each tested permission is granted, by its index.
    verdicts: BTreeMap<usize, bool>,
    /// How many of the test's marks the broker has answered.
    marks: u32,
    /// Whether the broker refused a mark because of its subject. Then it isn't known whether it
    /// refuses reply subjects below `_R_.`, too.
    mark_refused: bool,
    /// The subject on which marks are published: an inbox of this process.
    mark: String,
}

impl Permissions {
    /// Registers the permissions that a configuration's tenant needs.
    pub(crate) fn need(&self, config: &Config) {
        let prefix = prefix_of(config.tenant.prefix.as_deref());
        let mut known = self.needed.write().unwrap_or_else(PoisonError::into_inner);
        for permission in needed(config) {
            known.add(prefix, permission);
        }
    }

    /// Notes that the tenant with this prefix needs nothing any more.
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

    /// Notes an error message of the broker, and classifies it.
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
        let mut test = self.test();
        if number == Some(test.number) {
            match tokens.next() {
                Some("mark") => test.marks += 1,
                Some(place) => {
                    let place = place.parse().ok();
                    test.verdicts.extend(place.map(|place| (place, true)));
                }
                None => {}
            }
            self.answered.notify_one();
        }
        BrokerErrorKind::TestAnswer
    }

    fn note_refusal(&self, operation: Operation, subject: &str) -> BrokerErrorKind {
        let covers = |it: &Needed| !it.by.is_empty() && it.permission.covers(operation, subject);
        let Some(place) = self.needed().rights.iter().position(covers) else {
            return BrokerErrorKind::Other;
        };
        let permission = self.permission(place);
        let sample = permission.as_ref().map(|permission| &permission.sample);
        let is_sample = sample.is_some_and(|sample| sample.eq_ignore_ascii_case(subject));
        let mut test = self.test();
        let is_mark = operation == Operation::Publish && test.mark.eq_ignore_ascii_case(subject);
        if is_mark {
            test.marks += 1;
            test.mark_refused = true;
        }
        if is_mark || is_sample {
            test.verdicts.insert(place, false);
            self.answered.notify_one();
        }
        drop(test);
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

    /// Notes a new connection. The broker judges all subscriptions again, so forbidden ones are
    /// forgotten. A forbidden permission to publish stays until a test or a publication succeeds.
    pub(crate) fn note_connected(&self) {
        let needed = self.needed();
        let is_publish = |place: &usize| {
            let needed = needed.get(*place);
            needed.is_some_and(|it| it.permission.operation == Operation::Publish)
        };
        self.forbidden().retain(|place, _| is_publish(place));
    }

    /// The forbidden permissions among those that the tenant with this prefix needs, each with how
    /// long it has been forbidden, in milliseconds.
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

    /// How many needed permissions are forbidden.
    pub(crate) fn forbidden_count(&self) -> usize {
        self.forbidden().len()
    }

    /// Tests the forbidden permissions again, and returns those that are granted now. A permission
    /// to publish is then noted as granted. A permission to subscribe is noted only when the client
    /// has subscribed again.
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

    /// Tests all permissions that are used in the current configuration. Returns for each whether
    /// it is granted; `None` if that can't be found out.
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
        let number = self.tests.fetch_add(1, Ordering::Relaxed) + 1;
        let mark = client.new_inbox();
        *self.test() = PermissionTest {
            number,
            mark: mark.clone(),
            ..PermissionTest::default()
        };
        let subscribed = timeout(TEST_TIMEOUT, async {
            self.mark(client, number, &mark, 1).await?;
            // Publish tests are sent only if the broker is known to deliver none of them.
            let may_publish = !self.test().mark_refused;
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
        let mut verdicts = std::mem::take(&mut *self.test()).verdicts;
        for (place, _) in subscribed.into_iter().flatten() {
            // The broker would have reported a refusal before it answered the last mark.
            verdicts.entry(place).or_insert(true);
        }
        verdicts
    }

    /// Publishes a mark, and waits until `marks` of them have been answered. `None` if the
    /// connection is closed.
    async fn mark(&self, client: &Client, number: u64, mark: &str, marks: u32) -> Option<()> {
        let reply = format!("{REPLY}.{number}.mark");
        let body = Bytes::new();
        let sent = client.publish_with_reply(mark.to_owned(), reply, body);
        sent.await.ok()?;
        client.flush().await.ok()?;
        loop {
            let answered = self.answered.notified();
            if self.test().marks >= marks {
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

    fn test(&self) -> MutexGuard<'_, PermissionTest> {
        self.test.lock().unwrap_or_else(PoisonError::into_inner)
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
        // A refusal counts for each tenant that needs the permission, until the tenant ends.
        permissions.note("Permissions Violation for Subscription to \"$SRV.>\"");
        assert_eq!((of("Acme"), of("beta")), (1, 2));
        permissions.release(Some("beta"));
        assert_eq!((of("Acme"), of("beta")), (1, 0));
        let again = "Permissions Violation for Subscription to \"beta.presence.>\"";
        assert_eq!(permissions.note(again), BrokerErrorKind::Other);
        // The tenant starts again.
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
        // A client has named the subject, so the permission is tested first.
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
        permissions.note_connected();
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
