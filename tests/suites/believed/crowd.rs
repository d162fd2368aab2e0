//! A crowd of users who come and go, as their transports report it, and the oracle: who is online,
//! and who may see whom. Reports may be lost. Heartbeats and timeouts make up for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use presence_tests::client::{Client, now_ms};
use presence_tests::site::Site;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::inputs::{self, CONNECT, DISCONNECT, HEARTBEAT};

const USERS: usize = 40;
const VIEWERS: usize = 8;

/// The interval of steps, in each of which somebody comes or goes; and the number of steps between
/// two heartbeats of everyone.
const STEP: Duration = Duration::from_millis(20);
const STEPS_A_HEARTBEAT: usize = 25;

/// Random numbers (SplitMix64), the same for the same seed.
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % end as u64).unwrap_or_default()
    }
}

/// Who sees whom: viewer → users.
pub(super) type Sight = BTreeMap<String, BTreeSet<String>>;

/// The crowd, and all that is true of it.
#[derive(Clone)]
pub(super) struct Crowd {
    truth: Arc<Mutex<Truth>>,
}

struct Truth {
    random: Random,
    /// Whether anybody comes or goes.
    moving: bool,
    /// By user: the connection they have, if they are there.
    there: BTreeMap<String, Option<String>>,
    stays: usize,
    /// Whom each viewer may see if they are there, and whom they ever could.
    may_see: Sight,
    could_see: Sight,
}

impl Crowd {
    pub(super) fn new(random: Random) -> Self {
        let users = (0..USERS).map(|number| (format!("user-{number}"), None));
        let truth = Truth {
            random,
            moving: true,
            there: users.collect(),
            stays: 0,
            may_see: Sight::new(),
            could_see: Sight::new(),
        };
        Self {
            truth: Arc::new(Mutex::new(truth)),
        }
    }

    fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn viewers() -> Vec<String> {
        (0..VIEWERS)
            .map(|number| format!("viewer-{number}"))
            .collect()
    }

    pub(super) fn users(&self) -> Vec<String> {
        self.truth().there.keys().cloned().collect()
    }

    /// Decides anew who may see whom, and puts it into the directory.
    pub(super) fn meet(&self, site: &Site) -> Result<()> {
        let directory = self.truth().meet();
        site.write_directory_value(&directory)
    }

    /// Makes them come and go until the handle is aborted.
    pub(super) fn start(&self, client: Client) -> JoinHandle<()> {
        let crowd = self.clone();
        tokio::spawn(async move {
            let mut step = tokio::time::interval(STEP);
            for number in 0_usize.. {
                step.tick().await;
                let mut said = Vec::new();
                {
                    let mut truth = crowd.truth();
                    if truth.moving {
                        said.push(truth.step());
                    }
                    if number % STEPS_A_HEARTBEAT == 0 {
                        said.extend(truth.heartbeats());
                    }
                }
                for (subject, body) in said {
                    // A message that can't be published is lost, as in the network.
                    let _ = client.publish(subject, &body).await;
                }
            }
        })
    }

    /// Nobody comes or goes from here on.
    pub(super) fn settle(&self) {
        self.truth().moving = false;
    }

    /// How many are there.
    pub(super) fn online(&self) -> usize {
        self.truth().there.values().flatten().count()
    }

    /// The users whom each viewer sees if the viewer believes what is true.
    pub(super) fn seen(&self) -> Sight {
        let truth = self.truth();
        let is_there = |user: &&String| truth.there.get(*user).is_some_and(Option::is_some);
        let seen = |users: &BTreeSet<String>| users.iter().filter(is_there).cloned().collect();
        let all = truth.may_see.iter();
        all.map(|(viewer, users)| (viewer.clone(), seen(users)))
            .collect()
    }

    /// Whom each viewer could ever see.
    pub(super) fn could_see(&self) -> Sight {
        self.truth().could_see.clone()
    }
}

impl Truth {
    /// Contacts, a few of whom are blocked.
    fn meet(&mut self) -> Value {
        let (mut contacts, mut blocks) = (BTreeMap::new(), BTreeMap::new());
        let viewers = Crowd::viewers();
        self.may_see = viewers
            .iter()
            .map(|viewer| (viewer.clone(), BTreeSet::new()))
            .collect();
        for user in self.there.keys() {
            let (mut known, mut blocked) = (Vec::new(), Vec::new());
            for viewer in &viewers {
                if self.random.below(2) == 0 {
                    continue;
                }
                known.push(viewer);
                if self.random.below(5) == 0 {
                    blocked.push(viewer);
                } else {
                    for sight in [&mut self.may_see, &mut self.could_see] {
                        sight
                            .entry(viewer.clone())
                            .or_default()
                            .insert(user.clone());
                    }
                }
            }
            contacts.insert(user, json!(known));
            blocks.insert(user, json!(blocked));
        }
        json!({"contacts": contacts, "blocks": blocks})
    }

    /// Somebody comes, or goes.
    fn step(&mut self) -> (&'static str, Value) {
        let nth = self.random.below(self.there.len());
        self.stays += 1;
        let Some((user, conn)) = self.there.iter_mut().nth(nth) else {
            return (CONNECT, Value::Null);
        };
        if let Some(conn) = conn.take() {
            let body = inputs::disconnect(user, &conn, now_ms(), "client_disconnect");
            return (DISCONNECT, body);
        }
        let new = format!("c{}", self.stays);
        let body = inputs::connect(user, &new, now_ms());
        *conn = Some(new);
        (CONNECT, body)
    }

    fn heartbeats(&self) -> Vec<(&'static str, Value)> {
        let there = self
            .there
            .iter()
            .filter_map(|(user, conn)| Some((user, conn.as_ref()?)));
        there
            .map(|(user, conn)| (HEARTBEAT, inputs::heartbeat(user, conn, now_ms())))
            .collect()
    }
}
