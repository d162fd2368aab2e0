use super::*;
use crate::fleet::testing::{message, shard};
use crate::message::Kind;
use crate::names::Names;

#[test]
fn who_leaves_is_not_kept_as_one_to_be_shown_anew() {
    let mut shard = shard(&Arc::new(Names::new()));
    shard.keep_standby_records(true);
    for conn in ["c1", "c2"] {
        shard.follow(
            1_700_000_000_000,
            message(Kind::Connect, "ann", conn, 1_700_000_000_000),
        );
    }
    let mut leave = |conn, at| shard.follow(at, message(Kind::Disconnect, "ann", conn, at));
    leave("c1", 1_700_000_000_001);
    leave("c2", 1_700_000_000_002);
    let standby = &shard.presence.standby;
    assert_eq!(standby.reshown.len(), 0);
    assert_eq!(standby.missed.len(), 1);
}
