//! Metadata: valid metadata reads the same here and in any other JSON reader.
#![no_main]

use presence_core::metadata::Limits;
use serde_json::{Map, Value};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let limits = Limits {
        keys: 40,
        bytes: 4_096,
        depth: 8,
    };
    let Ok(checked) = limits.read(text) else {
        return;
    };
    let read: Map<String, Value> = serde_json::from_str(text).expect("any reader takes it");
    assert!(read.len() <= limits.keys && depth_of(&Value::Object(read.clone())) <= limits.depth);
    let metadata = checked.metadata(|key| key.len() % 2 == 0);
    let here: Vec<_> = metadata.entries().collect();
    assert_eq!(here.len(), read.len());
    for (entry, (key, value)) in here.iter().zip(&read) {
        assert_eq!(entry.key, key);
        assert_eq!(
            serde_json::from_str::<Value>(entry.value).ok().as_ref(),
            Some(value)
        );
        assert_eq!(metadata.get(key), Some(entry.value));
    }
    let mut written = Vec::new();
    metadata.write_public(&mut written, |_| true);
    let public: Map<String, Value> = serde_json::from_slice(&written).expect("it is JSON");
    for key in public.keys() {
        assert!(
            key.len() % 2 == 0 && key != "ip" && key != "socketId",
            "{key}"
        );
    }
});

fn depth_of(value: &Value) -> usize {
    match value {
        Value::Object(map) => 1 + map.values().map(depth_of).max().unwrap_or(0),
        Value::Array(list) => 1 + list.iter().map(depth_of).max().unwrap_or(0),
        _ => 0,
    }
}
