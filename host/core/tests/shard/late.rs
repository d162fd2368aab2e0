//! Messages that a node held while it was stopped.

use presence_core::message::Kind;
use presence_core::{Input, Settings};
use serde_json::json;

use super::{World, early};

#[test]
fn what_a_node_held_for_longer_than_a_timeout_undoes_nothing_that_was_said_since() {
    let timeout_ms = Settings::default().tracker.timeout_ms;
    let late = |world: &mut World, kind, at: u64| {
        let body = json!({"userId": "a", "timestamp": at, "connId": "late"});
        let mut message = early::message(kind, &body);
        message.delayed_ms = world.now;
        world.input(Input::Message {
            message,
            reply: None,
        })
    };
    let say = |world: &mut World, kind, at: u64| {
        world.now = at;
        world.send(kind, json!({"userId": "a", "connId": "c", "timestamp": at}))
    };
    let begin = || {
        let mut world = World::new(&[("a", &["b"])]);
        world.shard.keep_standby_records(true);
        world
    };

    // The application's last statement is that the user is offline, or that the user is online.
    let mut world = begin();
    say(&mut world, Kind::Online, 1_000);
    say(&mut world, Kind::Offline, 3_000);
    world.now = 4_000 + timeout_ms;
    assert_eq!(late(&mut world, Kind::Online, 2_000), []);
    assert_eq!(late(&mut world, Kind::Connect, 2_001), []);
    world.now += timeout_ms + 1;
    assert_ne!(late(&mut world, Kind::Online, 3_500), []);
    let mut world = begin();
    say(&mut world, Kind::Online, 3_000);
    world.now = 4_000 + timeout_ms;
    assert_eq!(late(&mut world, Kind::Offline, 2_000), []);
    world.now += timeout_ms + 1;
    assert_ne!(late(&mut world, Kind::Offline, 3_500), []);

    // A user who was stated to be offline has connected since.
    let mut world = begin();
    say(&mut world, Kind::Connect, 3_000);
    let seconds = 3..=(4_000 + timeout_ms) / 1_000;
    seconds.for_each(|second| drop(say(&mut world, Kind::Heartbeat, second * 1_000)));
    assert_eq!(late(&mut world, Kind::Offline, 2_000), []);
    let until = world.now / 1_000 + timeout_ms / 1_000 + 1;
    (world.now / 1_000..=until)
        .for_each(|second| drop(say(&mut world, Kind::Heartbeat, second * 1_000)));
    assert_ne!(late(&mut world, Kind::Offline, 3_500), []);
}
