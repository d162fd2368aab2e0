//! A shard with many bytes in the outbox rests, so that others have room in it.

use super::*;

/// A shard rests when it has an eighth of the outbox's limit.
const SETTINGS: OutboxSettings = OutboxSettings {
    bytes_max: 64_000,
    shard_bytes_max: Some(8_000),
    beacon_ms: 3_600_000,
};

#[test]
fn a_shard_that_says_much_rests_before_the_outbox_is_full_while_there_is_a_connection() {
    let mut node = Node::with(SETTINGS, 1);
    let (loud, quiet) = (node.tenant(1), node.tenant(1));
    node.work();
    for batch in 0..4 {
        offer(&loud.handles[0], connects(batch * 256, 256, None));
    }
    node.work();
    let first = node.broker.count(ONLINE, &loud);
    for user in 0..3 {
        offer(&quiet.handles[0], connects(user, 1, None));
        node.work();
    }
    assert_eq!(node.broker.count(ONLINE, &quiet), 3, "it doesn't rest");
    assert_eq!(node.broker.count(ONLINE, &loud), first);
    node.acknowledge();
    node.work();
    let second = node.broker.count(ONLINE, &loud);
    assert!(second > first && second < 1_024, "{first} {second}");
    // Without a connection, no other shard has to wait, so the shard may continue.
    node.broker.set(|taken| taken.is_connected = false);
    node.work();
    let online = loud.handles[0].figures.online_users.load(Ordering::Relaxed);
    assert!(online as usize > second, "{online}");
    node.broker
        .set(|taken| (taken.link, taken.is_connected) = (2, true));
    let mut rounds = 0;
    while node.broker.count(ONLINE, &loud) < 1_024 {
        node.acknowledge();
        node.work();
        rounds += 1;
        assert!(rounds < 1_000);
    }
}

#[tokio::test]
async fn a_shard_that_rests_goes_on_once_the_connection_is_lost() {
    let mut node = Node::with(SETTINGS, 1);
    let tenant = node.tenant(1);
    offer(&tenant.handles[0], connects(0, 256, None));
    offer(&tenant.handles[0], connects(256, 256, None));
    node.work();
    let online = || {
        tenant.handles[0]
            .figures
            .online_users
            .load(Ordering::Relaxed)
    };
    let first = online();
    let goes_on = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(online(), first, "it rests");
        node.broker.set(|taken| taken.is_connected = false);
        while online() == first {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = Rc::clone(&node.worker).run() => {}
        goes_on = tokio::time::timeout(Duration::from_secs(10), goes_on) => goes_on.unwrap(),
    }
}
