use super::*;

const SETTINGS: FleetSettings = FleetSettings {
    relay_ms: 500,
    lease_ms: 600,
    margin_ms: 60,
    standbys: 1,
    digest_ms: 200,
    answer_ms: 100,
};
const SHARDS: u32 = 8;

/// Nodes, and a bucket that carries out everything at once, unless it is unreachable.
#[derive(Default)]
struct World {
    t: u64,
    members: Vec<Member>,
    roles: BTreeMap<(Arc<str>, u32), Role>,
    until: BTreeMap<Arc<str>, u64>,
    keys: BTreeMap<Key, (Option<String>, u64)>,
    revision: u64,
    is_away: bool,
    /// Nodes whose replicas begin to follow, but never get in step.
    catching_up: Vec<Arc<str>>,
    /// Nodes that are stopped.
    stopped: Vec<Arc<str>>,
    left: Vec<Arc<str>>,
    writes: usize,
    /// The sequence number of an owner's last message when it resigns.
    told: u64,
}

impl World {
    fn join(&mut self, name: &str) {
        self.join_as(name, false);
    }

    fn join_as(&mut self, name: &str, is_closed: bool) {
        self.told = self.told.max(5);
        let session = 1_000 * (self.members.len() as u64 + 1) + self.t;
        let mut member = Member::new(SETTINGS, name, session, SHARDS).begins_closed(is_closed);
        for (key, (value, revision)) in &self.keys {
            member.changed(self.t, key, value.as_deref(), *revision);
        }
        member.advance(self.t);
        self.members.push(member);
        self.settle();
    }

    fn run(&mut self, for_ms: u64) {
        for _ in 0..for_ms {
            self.t += 1;
            for member in &mut self.members {
                let due = member.next_deadline(self.t).is_some_and(|at| at <= self.t);
                if due && !self.stopped.contains(member.name()) {
                    member.advance(self.t);
                }
            }
            self.settle();
        }
    }

    /// The replicas that are in step report so again, as they do for each digest.
    fn say_synced(&mut self) {
        for ((name, shard), role) in &self.roles {
            let Role::Follow { epoch, owner } = role else {
                continue;
            };
            let owner = self.members.iter_mut().find(|it| it.name() == owner);
            if let Some(owner) = owner.filter(|_| !self.catching_up.contains(name)) {
                owner.synced(self.t, *shard, (*epoch, 5), name);
            }
        }
    }

    fn settle(&mut self) {
        for _ in 0..100 {
            let mut outputs = Vec::new();
            for (number, member) in self.members.iter_mut().enumerate() {
                if !self.stopped.contains(member.name()) {
                    outputs.extend(member.outputs().map(|output| (number, output)));
                }
            }
            if outputs.is_empty() {
                return;
            }
            for (number, output) in outputs {
                self.carry_out(number, output);
            }
        }
        panic!("it never ends");
    }

    fn carry_out(&mut self, number: usize, output: MemberOutput) {
        let (t, name) = (self.t, Arc::clone(self.members[number].name()));
        match output {
            MemberOutput::Write {
                id,
                key,
                value,
                revision,
            } => {
                self.writes += 1;
                let last = self.keys.get(&key).map_or(0, |(_, revision)| *revision);
                let outcome = match (self.is_away, last == revision) {
                    (true, _) => WriteOutcome::Unknown,
                    (false, false) => WriteOutcome::Refused,
                    (false, true) => {
                        self.revision += 1;
                        self.keys
                            .insert(key.clone(), (value.clone(), self.revision));
                        WriteOutcome::Stored(self.revision)
                    }
                };
                if let WriteOutcome::Stored(revision) = outcome {
                    for member in &mut self.members {
                        if !self.stopped.contains(member.name()) {
                            member.changed(t, &key, value.as_deref(), revision);
                        }
                    }
                }
                self.members[number].written(t, id, outcome);
            }
            MemberOutput::Read(key) => {
                let found = self.keys.get(&key).cloned().unwrap_or((None, 0));
                let found = (!self.is_away).then_some((found.0.as_deref(), found.1));
                self.members[number].read(t, &key, found);
            }
            MemberOutput::Role(shard, role) => {
                // A replica that resigns has told everything, and one that follows is in step at
                // once.
                match &role {
                    Role::Resign { epoch } => {
                        self.members[number].resigned(t, shard, *epoch, self.told);
                    }
                    Role::Follow { .. } if self.catching_up.contains(&name) => {}
                    Role::Follow { epoch, owner } => {
                        self.members[number].holds(shard, Some(*epoch));
                        let owner = self.members.iter_mut().find(|it| it.name() == owner);
                        owner.unwrap().synced(t, shard, (*epoch, 5), &name);
                    }
                    Role::None | Role::Lead { .. } => {}
                }
                self.roles.insert((name, shard), role);
            }
            MemberOutput::Until(until) => {
                self.until.insert(name, until);
            }
            MemberOutput::SessionLost => {}
            MemberOutput::Left => self.left.push(name),
        }
    }

    /// The owner of each shard that has one.
    fn owners(&self) -> Vec<String> {
        let owner = |shard| {
            let lead = self
                .roles
                .iter()
                .filter(|((_, of), role)| *of == shard && matches!(role, Role::Lead { .. }));
            let names: Vec<_> = lead.map(|((name, _), _)| &**name).collect();
            names.join("+")
        };
        (0..SHARDS).map(owner).collect()
    }

    fn meant(nodes: &[&str]) -> Vec<String> {
        let first = |shard| crate::fleet::hash::rank(0, shard, nodes.iter().copied())[0].to_owned();
        (0..SHARDS).map(first).collect()
    }
}

#[test]
fn shards_go_to_the_nodes_that_are_meant_to_have_them() {
    let mut world = World::default();
    world.join("a");
    world.run(500);
    assert_eq!(world.owners(), World::meant(&["a"]));
    world.join("b");
    world.run(500);
    world.join("c");
    world.run(500);
    assert_eq!(world.owners(), World::meant(&["a", "b", "c"]));
    // Each shard has one node that follows, and one that doesn't.
    for shard in 0..SHARDS {
        let roles = world.roles.iter().filter(|((_, of), _)| *of == shard);
        let follow = roles.filter(|(_, role)| matches!(role, Role::Follow { .. }));
        assert_eq!(follow.count(), 1, "shard {shard}");
    }
    // The number of writes doesn't grow with the shards: it is that of three leases, each renewed
    // in every third of its time.
    world.writes = 0;
    world.run(2_000);
    assert!((27..=33).contains(&world.writes), "{}", world.writes);
}

#[test]
fn a_node_that_is_closed_gets_nothing_that_another_one_can_have() {
    let mut world = World::default();
    // A closed node owns the shards if there is no other.
    world.join_as("a", true);
    world.run(1_000);
    assert_eq!(world.owners(), World::meant(&["a"]));
    world.join("b");
    world.run(1_000);
    assert_eq!(world.owners(), World::meant(&["b"]));
    world.join("c");
    world.run(1_000);
    assert_eq!(world.owners(), World::meant(&["b", "c"]));
    let set_closed = |world: &mut World, number: usize, is_closed| {
        let t = world.t;
        assert!(world.members[number].set_closed(t, is_closed));
        world.settle();
        world.run(20);
        world.say_synced();
        world.run(1_000);
    };
    set_closed(&mut world, 0, false);
    assert_eq!(world.owners(), World::meant(&["a", "b", "c"]));
    set_closed(&mut world, 1, true);
    assert_eq!(world.owners(), World::meant(&["a", "c"]));
    set_closed(&mut world, 0, true);
    set_closed(&mut world, 2, true);
    assert_eq!(world.owners(), World::meant(&["a", "b", "c"]));
}

#[test]
fn a_shard_is_handed_over_by_one_write_that_says_how_far_it_was_told() {
    let mut world = World::default();
    world.join("a");
    world.run(500);
    let before: Vec<_> = (0..SHARDS)
        .map(|shard| world.keys[&Key::Owner(shard)].1)
        .collect();
    world.join("b");
    world.run(300);
    for shard in 0..SHARDS {
        let (value, _) = &world.keys[&Key::Owner(shard)];
        let entry = OwnerEntry::parse(value.as_deref().unwrap()).unwrap();
        if *entry.node == *"b" {
            let epoch = before[shard as usize];
            assert_eq!(entry.handed_over, Some(("a".into(), epoch, 5)));
            assert_eq!(entry.before, epoch);
        }
    }
    assert_eq!(world.owners(), World::meant(&["a", "b"]));
}

#[test]
fn a_shard_stays_where_it_is_if_the_other_does_not_have_all() {
    let mut world = World::default();
    world.join("a");
    world.run(500);
    let before: Vec<_> = (0..SHARDS)
        .map(|shard| world.keys[&Key::Owner(shard)].clone())
        .collect();
    // The owner that resigns has told more than the other node has received.
    world.told = 6;
    world.join("b");
    world.run(90);
    let resigned = |world: &World| {
        let roles = world.roles.values();
        roles
            .filter(|role| matches!(role, Role::Resign { .. }))
            .count()
    };
    assert!(resigned(&world) > 0);
    world.run(100);
    assert_eq!(resigned(&world), 0);
    assert_eq!(world.owners(), World::meant(&["a"]));
    let after: Vec<_> = (0..SHARDS)
        .map(|shard| world.keys[&Key::Owner(shard)].clone())
        .collect();
    assert_eq!(after, before);
}

#[test]
fn a_shard_is_handed_over_once_its_next_standby_holds_it() {
    let mut world = World::default();
    world.join("a");
    world.run(500);
    // The shards of which neither the next owner nor the next standby held anything before.
    let ranks = |shard| crate::fleet::hash::rank(0, shard, ["a", "b", "c"]);
    let shards: Vec<_> = (0..SHARDS).filter(|it| ranks(*it)[2] == "a").collect();
    let shards: Vec<_> = shards.iter().filter(|it| ranks(**it)[0] == "b").collect();
    assert!(!shards.is_empty());
    world.catching_up.push("c".into());
    world.join("c");
    world.join("b");
    world.run(100);
    for shard in &shards {
        assert_eq!(world.owners()[**shard as usize], "a");
    }
    let t = world.t;
    let epoch = |shard: u32| world.keys[&Key::Owner(shard)].1;
    let (first, others) = shards.split_first().unwrap();
    let synced = (epoch(**first), 5);
    world.members[0].synced(t, **first, synced, "c");
    world.run(20);
    assert_eq!(world.owners()[**first as usize], "b");
    // The owner doesn't wait long for a standby that doesn't get in step.
    world.run(300);
    for shard in others {
        assert_eq!(world.owners()[**shard as usize], "b");
    }
}

#[test]
fn a_dead_nodes_shards_are_taken_when_its_lease_is_over_and_not_before() {
    let mut world = World::default();
    for name in ["a", "b", "c"] {
        world.join(name);
        world.run(300);
    }
    world.run(500);
    let until = world.until["b"];
    world.stopped.push("b".into());
    let before = world.owners();
    while world.t < until {
        world.run(1);
        let (value, _) = &world.keys[&Key::Node("b".into())];
        assert!(
            value.is_some(),
            "its lease was ended at {}, and it may go on until {until}",
            world.t
        );
    }
    assert_eq!(world.owners(), before);
    world.run(SETTINGS.lease_ms + SETTINGS.margin_ms);
    world.roles.retain(|(name, _), _| **name != *"b");
    assert_eq!(world.owners(), World::meant(&["a", "c"]));
    // The stopped node continues, and finds that others own everything.
    world.stopped.clear();
    world.run(1_000);
    assert_eq!(world.owners(), World::meant(&["a", "b", "c"]));
}

#[test]
fn an_outage_of_the_bucket_ends_no_lease() {
    let mut world = World::default();
    for name in ["a", "b"] {
        world.join(name);
        world.run(500);
    }
    let owners: Vec<_> = (0..SHARDS)
        .map(|shard| world.keys[&Key::Owner(shard)].clone())
        .collect();
    world.is_away = true;
    world.run(5_000);
    assert!(
        world.until.values().all(|until| *until < world.t),
        "none may go on without the bucket"
    );
    world.is_away = false;
    world.run(1_000);
    let after: Vec<_> = (0..SHARDS)
        .map(|shard| world.keys[&Key::Owner(shard)].clone())
        .collect();
    assert_eq!(after, owners);
    assert!(world.until.values().all(|until| *until > world.t));
}

#[test]
fn a_node_that_leaves_hands_over_first_and_the_last_one_just_goes() {
    let mut world = World::default();
    for name in ["a", "b"] {
        world.join(name);
        world.run(500);
    }
    let t = world.t;
    world.members[0].leave(t);
    world.run(300);
    assert_eq!(world.left, ["a".into()]);
    assert_eq!(world.owners(), World::meant(&["b"]));
    for shard in 0..SHARDS {
        let (value, _) = &world.keys[&Key::Owner(shard)];
        let entry = OwnerEntry::parse(value.as_deref().unwrap()).unwrap();
        assert!(entry.handed_over.is_none() || *entry.node == *"b");
    }
    assert_eq!(world.keys[&Key::Node("a".into())].0, None);
    let t = world.t;
    world.members[1].leave(t);
    world.run(300);
    assert_eq!(world.left, ["a".into(), "b".into()]);
}

#[test]
fn a_node_that_has_restarted_is_handed_nothing_by_what_it_said_before() {
    let mut world = World::default();
    for name in ["a", "b"] {
        world.join(name);
        world.run(500);
    }
    let of_b = World::meant(&["a", "b"])
        .iter()
        .filter(|owner| *owner == "b")
        .count();
    assert!(of_b > 0);
    // The node leaves in order, and stands by until it is gone.
    let t = world.t;
    world.members[1].leave(t);
    world.run(100);
    assert_eq!(world.owners(), World::meant(&["a"]));
    let t = world.t;
    for shard in 0..SHARDS {
        let epoch = world.keys[&Key::Owner(shard)].1;
        world.members[0].synced(t, shard, (epoch, 5), "b");
    }
    // The node comes back soon, and is in step with nothing yet.
    world.members.remove(1);
    world.catching_up.push("b".into());
    world.join("b");
    world.run(100);
    assert_eq!(world.owners(), World::meant(&["a"]));
    let t = world.t;
    for shard in 0..SHARDS {
        let epoch = world.keys[&Key::Owner(shard)].1;
        world.members[0].synced(t, shard, (epoch, 5), "b");
    }
    world.run(100);
    assert_eq!(world.owners(), World::meant(&["a", "b"]));
}

#[test]
fn a_claim_that_another_one_won_is_given_up() {
    let mut world = World::default();
    world.join("a");
    // Another node takes the shard at the same time.
    let theirs = OwnerEntry {
        node: "b".into(),
        session: 7,
        handed_over: None,
        before: 0,
    };
    let node = NodeEntry {
        session: 7,
        count: 1,
        leaving: false,
        closed: false,
    };
    world.revision += 2;
    let (first, second) = (world.revision - 1, world.revision);
    world
        .keys
        .insert(Key::Node("b".into()), (Some(node.to_json()), first));
    world
        .keys
        .insert(Key::Owner(0), (Some(theirs.to_json()), second));
    world.run(300);
    assert_ne!(world.owners()[0], "a");
    assert_eq!(world.keys[&Key::Owner(0)].1, second);
}

#[test]
fn what_is_removed_without_a_trace_is_written_again() {
    let mut world = World::default();
    world.join("a");
    world.join("b");
    world.run(2_000);
    let owner = |world: &World, shard| {
        let (value, revision) = world.keys.get(&Key::Owner(shard))?;
        Some((OwnerEntry::parse(value.as_deref()?)?, *revision))
    };
    let of_b = (0..SHARDS).find(|shard| &*owner(&world, *shard).unwrap().0.node == "b");
    let of_b = of_b.unwrap();
    // The watch reports nothing of this.
    world.keys.remove(&Key::Node("a".into()));
    world.keys.remove(&Key::Owner(of_b));
    world.run(2_000);
    let session = |world: &World, name: &str| {
        let (value, _) = world.keys.get(&Key::Node(name.into()))?;
        Some(NodeEntry::parse(value.as_deref()?)?.session)
    };
    assert!(session(&world, "a").is_some());
    // The node leads until another node should own the shard.
    world.stopped.push("b".into());
    world.run(4_000);
    for shard in 0..SHARDS {
        let (entry, _) = owner(&world, shard).unwrap();
        assert_eq!(&*entry.node, "a", "shard {shard}");
        assert_eq!(Some(entry.session), session(&world, "a"));
        // The node that takes the shard doesn't consider itself its first owner.
        assert!(entry.before > 0);
    }
}
