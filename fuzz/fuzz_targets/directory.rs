//! What sources of a directory say.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    presence_config::fuzz::directory(bytes);
});
