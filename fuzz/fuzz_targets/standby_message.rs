//! Messages from the owner of a shard to its standbys. A message that can be decoded is encoded to
//! the same again. A change that doesn't fit leaves the record of what viewers were told unchanged.
#![no_main]

use presence_core::fleet::standby_message::{StandbyContent, StandbyMessage, ToldViewers};
use presence_core::names::Names;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = StandbyMessage::decode(bytes) else {
        return;
    };
    let again = StandbyMessage::decode(&message.encode()).expect("what is written can be read");
    assert_eq!(again, message);
    let StandbyContent::Changes(changes) = &message.content else {
        return;
    };
    let names = Names::new();
    let mut told_viewers = ToldViewers::default();
    for change in changes.chunks(1) {
        let (users, digest) = (told_viewers.len(), told_viewers.digest());
        match told_viewers.take(change, &names) {
            Ok(records) => records.iter().for_each(|it| drop(it.encode(&names))),
            Err(_) => assert_eq!((told_viewers.len(), told_viewers.digest()), (users, digest)),
        }
    }
    assert!(!told_viewers.is_empty() || told_viewers.digest() == 0);
    // Changes in one message may build on each other.
    let mut together = ToldViewers::default();
    if let Ok(records) = together.take(changes, &names) {
        assert_eq!(records.len(), changes.len());
    }
    assert!(!together.is_empty() || together.digest() == 0);
});
