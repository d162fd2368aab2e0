//! Configuration files.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| {
    presence_config::fuzz::configuration(text);
});
