//! Records of the state: a record that can be decoded is encoded to the same again. The bytes are a
//! key's length, the key, and the value.
#![no_main]

use presence_core::names::Names;
use presence_core::record::Record;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((size, rest)) = bytes.split_first() else {
        return;
    };
    let (key, value) = rest.split_at(rest.len().min(usize::from(*size)));
    let names = Names::new();
    let Ok(record) = Record::decode(key, value, &names) else {
        return;
    };
    let (key, value) = record.encode(&names);
    let Some(value) = value else {
        return;
    };
    let again = Record::decode(&key, &value, &names).expect("what is written can be read");
    assert_eq!(again.encode(&names), (key, Some(value)));
    assert_eq!(again.user(), record.user());
    assert_eq!(again.ids(), record.ids());
});
