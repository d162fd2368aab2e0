//! Lines of recorded traffic.
#![no_main]

libfuzzer_sys::fuzz_target!(|line: &str| {
    presence_config::fuzz::capture(line);
});
