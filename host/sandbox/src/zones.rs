//! Local times in time zones. The database of time zones is part of the program, so that a rule
//! gives the same answer on every machine.

use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::tz::TimeZoneDatabase;

use crate::api::LocalTime;

static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

/// The local time in a zone at a moment, in milliseconds since the Unix epoch. `None` if there is
/// no such zone, or the moment is past the year 9999.
pub(crate) fn local_time(zone: &str, at: u64) -> Option<LocalTime> {
    let at = Timestamp::from_millisecond(i64::try_from(at).ok()?).ok()?;
    let zone = ZONES.get(zone).ok()?;
    let next = zone.following(at).next();
    let next = next.map(|change| change.timestamp().as_millisecond());
    let time = at.to_zoned(zone);
    let small = |number: i8| u8::try_from(number).unwrap_or_default();
    Some(LocalTime {
        year: time.year(),
        month: small(time.month()),
        day: small(time.day()),
        hour: small(time.hour()),
        minute: small(time.minute()),
        second: small(time.second()),
        weekday: small(time.weekday().to_monday_one_offset()),
        utc_offset_s: time.offset().seconds(),
        next_change: next.and_then(|at| u64::try_from(at).ok()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-03-29 01:00 UTC, when clocks in Berlin go from 2 to 3 o'clock, and 2026-10-25 01:00
    /// UTC, when they go from 3 to 2 o'clock.
    const SPRING: u64 = 1_774_746_000_000;
    const AUTUMN: u64 = 1_792_890_000_000;

    fn shown(zone: &str, at: u64) -> (u8, u8, i32, Option<u64>) {
        let time = local_time(zone, at).unwrap();
        (
            time.hour,
            time.minute,
            time.utc_offset_s / 3_600,
            time.next_change,
        )
    }

    #[test]
    fn clocks_change_in_both_directions_at_the_moment_that_was_announced() {
        let berlin = |at| shown("Europe/Berlin", at);
        assert_eq!(berlin(SPRING - 60_000), (1, 59, 1, Some(SPRING)));
        assert_eq!(berlin(SPRING), (3, 0, 2, Some(AUTUMN)));
        assert_eq!(berlin(AUTUMN - 60_000), (2, 59, 2, Some(AUTUMN)));
        let (hour, minute, offset, next) = berlin(AUTUMN);
        assert_eq!((hour, minute, offset), (2, 0, 1));
        assert!(next > Some(AUTUMN));
    }

    #[test]
    fn a_date_is_the_zones_own() {
        let time = local_time("Asia/Kolkata", 1_798_739_100_000).unwrap();
        assert_eq!((time.year, time.month, time.day), (2026, 12, 31));
        assert_eq!((time.hour, time.minute, time.second), (23, 15, 0));
        assert_eq!((time.weekday, time.utc_offset_s), (4, 19_800));
        assert_eq!(time.next_change, None);
        assert_eq!(shown("UTC", 0), (0, 0, 0, None));
    }

    #[test]
    fn what_is_no_zone_has_no_time() {
        for zone in ["", "Europe/Atlantis", "../Europe/Berlin", "Europe/Berlin\0"] {
            assert!(local_time(zone, 0).is_none(), "{zone:?}");
        }
        assert!(local_time("UTC", u64::MAX).is_none());
    }
}
