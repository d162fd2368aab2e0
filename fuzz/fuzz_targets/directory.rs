//! The answers and entries of a directory's sources.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    presence_config::fuzz::directory(bytes);
});
