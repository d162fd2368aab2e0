//! What the clocks of a time zone show.

use crate::bindings::host;

const MINUTE_MS: u64 = 60_000;
const DAY_MINUTES: u64 = 24 * 60;

/// A date and a time of the day, as the clocks of a time zone show them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime {
    /// The year.
    pub year: i16,
    /// From 1, January.
    pub month: u8,
    /// From 1.
    pub day: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
    /// From 1, Monday, to 7, Sunday.
    pub weekday: u8,
    /// How far the clocks are ahead of UTC, in seconds.
    pub utc_offset_s: i32,
    /// When the clocks are changed next, in milliseconds since the Unix epoch, if a change is
    /// known.
    pub next_change: Option<u64>,
    /// The moment, in milliseconds since the Unix epoch.
    at: u64,
}

/// What the clocks of a time zone show at a time (milliseconds since the Unix epoch). The zone
/// has its name in the IANA database; there is no time where there is no such zone.
///
/// ```
/// use presence_plugin::{local_time, now, testing::Host};
///
/// let host = Host::new().now(1_698_000_000_000);
/// let outcome = host.online("ada").call(|_| local_time("Europe/Berlin", now()));
/// let time = outcome.answer.unwrap();
/// assert_eq!((time.hour, time.minute, time.weekday), (20, 40, 7));
/// assert_eq!(time.utc_offset_s, 2 * 60 * 60);
///
/// let outcome = host.online("ada").call(|_| local_time("Europe/Atlantis", now()));
/// assert_eq!(outcome.answer, None);
/// ```
#[must_use]
pub fn local_time(zone: &str, at_ms: u64) -> Option<LocalTime> {
    let time = host::local_time(zone, at_ms)?;
    Some(LocalTime {
        year: time.year,
        month: time.month,
        day: time.day,
        hour: time.hour,
        minute: time.minute,
        second: time.second,
        weekday: time.weekday,
        utc_offset_s: time.utc_offset_s,
        next_change: time.next_change,
        at: at_ms,
    })
}

impl LocalTime {
    /// Minutes since midnight, as the clocks show them.
    ///
    /// ```
    /// use presence_plugin::{local_time, testing::Host};
    ///
    /// let host = Host::new();
    /// let time = host.online("ada").call(|_| local_time("Asia/Kolkata", 0)).answer.unwrap();
    /// assert_eq!(time.minutes(), 5 * 60 + 30);
    /// ```
    #[must_use]
    pub fn minutes(&self) -> u16 {
        u16::from(self.hour) * 60 + u16::from(self.minute)
    }

    /// Until when what a rule makes of this time holds, if it changes at an hour and a minute of
    /// the day, in milliseconds since the Unix epoch: until the clocks show that again, or until
    /// they are changed, if that is sooner. For [`reconsider_at`](crate::reconsider_at).
    ///
    /// ```
    /// use presence_plugin::{local_time, testing::Host};
    ///
    /// // Half past eleven in the evening. At 2, the clocks go on to 3.
    /// let (evening, change) = (1_774_737_000_000, 1_774_746_000_000);
    /// let host = Host::new();
    /// let at = |ms| host.online("ada").call(|_| local_time("Europe/Berlin", ms)).answer.unwrap();
    /// assert_eq!(at(evening).until(1, 0), evening + 90 * 60_000);
    /// assert_eq!(at(evening).until(7, 0), change);
    /// assert_eq!(at(change).until(7, 0), change + 4 * 60 * 60_000);
    /// ```
    #[must_use]
    pub fn until(&self, hour: u8, minute: u8) -> u64 {
        let then = u64::from(hour) * 60 + u64::from(minute);
        let minutes = (then + DAY_MINUTES - u64::from(self.minutes()) % DAY_MINUTES) % DAY_MINUTES;
        // As the clocks show it now, it is a day until then.
        let minutes = if minutes == 0 { DAY_MINUTES } else { minutes };
        let shown = (self.at / MINUTE_MS + minutes) * MINUTE_MS;
        self.next_change.map_or(shown, |change| change.min(shown))
    }
}
