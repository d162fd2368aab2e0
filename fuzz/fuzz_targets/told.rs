//! Messages from the owner of a shard to its standbys. A message that can be decoded is encoded to
//! the same again. A change that doesn't fit leaves the books unchanged.
#![no_main]

use presence_core::fleet::standby_message::{StandbyContent, StandbyMessage, ToldViewers};
use presence_core::names::Names;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(told) = StandbyMessage::decode(bytes) else {
        return;
    };
    let again = StandbyMessage::decode(&told.encode()).expect("what is written can be read");
    assert_eq!(again, told);
    let StandbyContent::Changes(changes) = &told.said else {
        return;
    };
    let names = Names::new();
    let mut books = ToldViewers::default();
    for change in changes.chunks(1) {
        let (users, digest) = (books.len(), books.digest());
        match books.take(change, &names) {
            Ok(records) => records.iter().for_each(|it| drop(it.encode(&names))),
            Err(_) => assert_eq!((books.len(), books.digest()), (users, digest)),
        }
    }
    assert!(!books.is_empty() || books.digest() == 0);
    // Changes in one message may build on each other.
    let mut together = ToldViewers::default();
    if let Ok(records) = together.take(changes, &names) {
        assert_eq!(records.len(), changes.len());
    }
    assert!(!together.is_empty() || together.digest() == 0);
});
