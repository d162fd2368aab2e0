//! Formats numbers for people.

use std::time::Duration;

/// A number with its digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// An amount of memory.
pub fn bytes(bytes: u64) -> String {
    const KIB: u64 = 1024;
    const MIB: u64 = KIB * KIB;
    match bytes {
        0..KIB => format!("{bytes} B"),
        KIB..MIB => format!("{} KiB", tenths(bytes, KIB)),
        _ => format!("{} MiB", tenths(bytes, MIB)),
    }
}

/// A span of time.
pub fn time(time: Duration) -> String {
    match u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) {
        ns @ 0..1_000 => format!("{ns} ns"),
        ns @ 1_000..1_000_000 => format!("{} µs", tenths(ns, 1_000)),
        ns @ 1_000_000..1_000_000_000 => format!("{} ms", tenths(ns, 1_000_000)),
        ns => format!("{} s", tenths(ns, 1_000_000_000)),
    }
}

/// The amount in units, with one decimal place for values below 100.
fn tenths(amount: u64, unit: u64) -> String {
    let tenths = (u128::from(amount) * 10 + u128::from(unit) / 2) / u128::from(unit);
    match (tenths / 10, tenths % 10) {
        (whole, 0) => whole.to_string(),
        (whole @ 0..100, tenth) => format!("{whole}.{tenth}"),
        (whole, tenth) => (whole + tenth / 5).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_have_units() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(12_345_678), "12,345,678");
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(bytes(64 << 20), "64 MiB");
        assert_eq!(time(Duration::from_nanos(640)), "640 ns");
        assert_eq!(time(Duration::from_nanos(24_340)), "24.3 µs");
        assert_eq!(time(Duration::from_micros(123_400)), "123 ms");
        assert_eq!(time(Duration::from_millis(99_960)), "100 s");
    }
}
