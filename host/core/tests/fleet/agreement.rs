//! When everything has settled, each shard has an owner, and a standby with the same state.

use std::collections::{BTreeMap, BTreeSet};

use presence_core::fleet::replica::{Replica, Role};
use presence_core::record::Record;
use presence_core::tracker::{Activity, Connected, TrackerRecord};

use crate::node::Node;
use crate::world::SHARDS;

/// What is wrong with the owners and standbys at `t`.
pub(crate) fn disagreements(t: u64, nodes: &mut [Node]) -> Vec<String> {
    let mut wrong = Vec::new();
    let running = nodes.iter().filter(|node| node.process.is_some()).count();
    for shard in 0..SHARDS as usize {
        let mut held = BTreeMap::new();
        for node in nodes.iter_mut() {
            if let Some(process) = &mut node.process {
                held.insert(node.number, held_by(&mut process.replicas[shard]));
            }
        }
        let replicas = nodes.iter().filter_map(|node| {
            let process = node.process.as_ref()?;
            Some((node, &process.replicas[shard], &process.roles[shard]))
        });
        let replicas: Vec<_> = replicas.collect();
        let leader = replicas
            .iter()
            .find(|(node, replica, _)| replica.is_leading(node.now(t)));
        let Some((owner, leader, _)) = leader else {
            wrong.push(format!("in the end, nobody owns shard {shard}"));
            continue;
        };
        let expected = &held[&owner.number];
        wrong.extend(expected.iter().filter_map(|held| {
            let user = held.strip_suffix(LEFT)?;
            Some(format!(
                "in the end, the owner of shard {shard} keeps what {user} says, who has left"
            ))
        }));
        let mut standbys = 0;
        for (node, replica, role) in &replicas {
            if !matches!(role, Role::Follow { .. })
                || replica.complete_epoch() != Some(leader.epoch())
            {
                continue;
            }
            standbys += 1;
            let held = &held[&node.number];
            if held != expected {
                let lacks: Vec<_> = expected.difference(held).collect();
                let has: Vec<_> = held.difference(expected).collect();
                wrong.push(format!(
                    "in the end, the standby {} of shard {shard} differs: {has:?}, not {lacks:?}",
                    node.name
                ));
            }
        }
        if standbys != 1.min(running - 1) {
            let states = replicas.iter().map(|(node, replica, role)| {
                let differed = node.process.as_ref().map(|it| it.differed.clone());
                (&node.name, role, replica.complete_epoch(), differed)
            });
            let states: Vec<_> = states.collect();
            wrong.push(format!(
                "in the end, shard {shard} has {standbys} standbys of {running} nodes: {states:?}"
            ));
        }
    }
    wrong
}

/// The text behind the name of a user who has left, but whose status is still kept.
const LEFT: &str = " has left, and says something";

/// The part of a replica's state that determines what viewers are told.
fn held_by(replica: &mut Replica) -> BTreeSet<String> {
    let records = replica.shard_mut().all_records();
    let mut shown = BTreeMap::new();
    for record in &records {
        if let Record::Tracker(TrackerRecord::Connection {
            user,
            conn,
            state: Some(Connected::Live { order, .. }),
        }) = record
        {
            let newest = shown.entry(user.to_string()).or_insert((*order, ""));
            *newest = (*order, &**conn).max(*newest);
        }
    }
    let mut held: BTreeSet<_> = shown
        .iter()
        .map(|(user, (_, conn))| format!("{user} is shown by {conn}"))
        .collect();
    held.extend(records.iter().filter_map(|record| match record {
        Record::Ledger {
            user,
            entry: Some(entry),
        } => {
            let viewers = entry.recipients.audience().len();
            Some(format!("{} is told to {viewers}", user.as_str()))
        }
        Record::Tracker(TrackerRecord::Connection {
            user,
            conn,
            state:
                Some(Connected::Live {
                    activity,
                    metadata,
                    order,
                    ..
                }),
        }) if !conn.is_empty() => {
            // An owner ends "typing", and a standby doesn't.
            let activity = activity.map(|it| it.min(Activity::Active));
            let device = metadata.get("device");
            let is_opened = *order >= 0;
            Some(format!(
                "{user} has {conn}, {device:?} {activity:?} {is_opened}"
            ))
        }
        Record::Status { user, .. } if !shown.contains_key(user.as_str()) => {
            Some(format!("{}{LEFT}", user.as_str()))
        }
        Record::Status {
            user,
            own_status: Some(own_status),
        } => {
            let status = own_status
                .status
                .as_ref()
                .filter(|status| status.expires_at.is_none())?;
            Some(format!("{} says {}", user.as_str(), status.text))
        }
        Record::Stated {
            user,
            statement: Some((_, statement)),
        } => {
            let statement = std::mem::discriminant(statement);
            Some(format!("{} is stated as {statement:?}", user.as_str()))
        }
        _ => None,
    }));
    held
}
