//! The functions that the bindings have of a real host, and no others.

pub(crate) mod events {
    use crate::bindings::filter::presence::plugin::events;
    use crate::testing::Read;
    use crate::testing::call::running;

    pub(crate) use events::{Event, OfflineReason, Value};

    pub(crate) fn timestamp() -> u64 {
        running(|call| {
            call.read(Read::Timestamp);
            call.about.timestamp
        })
    }

    pub(crate) fn last_seen() -> Option<u64> {
        running(|call| call.about.departure.map(|(last_seen, _)| last_seen))
    }

    pub(crate) fn reason() -> Option<OfflineReason> {
        running(|call| call.about.departure.map(|(_, reason)| reason))
    }

    pub(crate) fn get(key: &str) -> Option<Value> {
        running(|call| {
            call.read(Read::Metadata(key.to_owned()));
            let mut entries = call.about.metadata.iter();
            let entry = entries.find(|(other, _)| other == key);
            entry.map(|(_, value)| value.clone())
        })
    }

    pub(crate) fn entries() -> Vec<(String, Value)> {
        running(|call| {
            call.read(Read::AllMetadata);
            call.about.metadata.clone()
        })
    }
}

pub(crate) mod audiences {
    use crate::bindings::filter::presence::plugin::audiences;
    use crate::testing::call::running;
    use crate::testing::host::{Users, set};

    pub(crate) use audiences::Audience;

    pub(crate) fn nobody() -> Audience {
        running(|call| call.put(Users::new()))
    }

    pub(crate) fn of(users: &[String]) -> Audience {
        running(|call| call.put(set(users)))
    }

    pub(crate) fn union(a: Audience, b: Audience) -> Audience {
        combine(a, b, |a, b| a | b)
    }

    pub(crate) fn intersection(a: Audience, b: Audience) -> Audience {
        combine(a, b, |a, b| a & b)
    }

    pub(crate) fn difference(a: Audience, b: Audience) -> Audience {
        combine(a, b, |a, b| a - b)
    }

    pub(crate) fn contains(a: Audience, user: &str) -> bool {
        running(|call| call.audience(a).contains(user))
    }

    pub(crate) fn len(a: Audience) -> u32 {
        running(|call| u32::try_from(call.audience(a).len()).unwrap_or(u32::MAX))
    }

    pub(crate) fn viewers(a: Audience) -> Vec<String> {
        running(|call| call.audience(a).iter().cloned().collect())
    }

    fn combine(a: Audience, b: Audience, by: fn(&Users, &Users) -> Users) -> Audience {
        running(|call| {
            let result = by(call.audience(a), call.audience(b));
            call.put(result)
        })
    }
}

pub(crate) mod directory {
    use super::audiences::Audience;
    use crate::testing::Read;
    use crate::testing::call::running;
    use crate::testing::host::json;

    pub(crate) fn contacts(user: &str) -> Audience {
        let read = Read::Contacts(user.to_owned());
        running(|call| call.ask(read, |host| host.contacts_of(user)))
    }

    pub(crate) fn with_contact(user: &str) -> Audience {
        let read = Read::WithContact(user.to_owned());
        running(|call| call.ask(read, |host| host.with_contact(user)))
    }

    pub(crate) fn members(group: &str) -> Audience {
        let read = Read::Members(group.to_owned());
        running(|call| call.ask(read, |host| host.members(group)))
    }

    pub(crate) fn co_members(user: &str) -> Audience {
        let read = Read::CoMembers(user.to_owned());
        running(|call| call.ask(read, |host| host.co_members(user)))
    }

    pub(crate) fn blocked_by(user: &str) -> Audience {
        let read = Read::BlockedBy(user.to_owned());
        running(|call| call.ask(read, |host| host.blocked_by(user)))
    }

    pub(crate) fn blockers(user: &str) -> Audience {
        let read = Read::Blockers(user.to_owned());
        running(|call| call.ask(read, |host| host.blockers(user)))
    }

    pub(crate) fn everyone() -> Audience {
        running(|call| call.ask(Read::Everyone, |host| host.everyone()))
    }

    pub(crate) fn groups(user: &str) -> Vec<String> {
        running(|call| {
            call.read(Read::Groups(user.to_owned()));
            call.host.groups_of(user)
        })
    }

    pub(crate) fn setting(user: &str, key: &str) -> Option<String> {
        running(|call| {
            call.read(Read::Settings(user.to_owned()));
            call.host.setting_of(user, key)
        })
    }

    pub(crate) fn with_setting(key: &str, value: &str) -> Audience {
        let value = match serde_json::from_str::<serde_json::Value>(value) {
            Ok(value) => json(value),
            Err(error) => panic!("asked for a setting that is not JSON: {error}"),
        };
        let read = Read::WithSetting(key.to_owned(), value.clone());
        running(|call| call.ask(read, |host| host.with_setting(key, &value)))
    }
}

pub(crate) mod host {
    use super::audiences::Audience;
    use crate::bindings::filter::presence::plugin::host;
    use crate::log;
    use crate::testing::Read;
    use crate::testing::call::{running, try_running};

    pub(crate) use host::{ClockTime, Level};

    pub(crate) fn explain(text: &str) {
        running(|call| call.explain(text));
    }

    /// As the real host has it recorded: first whom it is about.
    pub(crate) fn explain_for(viewers: Audience, text: &str) {
        running(|call| {
            let viewers: Vec<_> = call.audience(viewers).iter().cloned().collect();
            call.explain(&format!("{}: {text}", viewers.join(", ")));
        });
    }

    pub(crate) fn local_time(zone: &str, at: u64) -> Option<ClockTime> {
        let at = jiff::Timestamp::from_millisecond(i64::try_from(at).ok()?).ok()?;
        let zone = jiff::tz::TimeZoneDatabase::bundled().get(zone).ok()?;
        let next = zone.following(at).next();
        let next = next.map(|change| change.timestamp().as_millisecond());
        let time = at.to_zoned(zone);
        let small = |number: i8| u8::try_from(number).unwrap_or_default();
        Some(ClockTime {
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

    pub(crate) fn now() -> u64 {
        running(|call| {
            call.read(Read::Now);
            call.host.now
        })
    }

    pub(crate) fn reconsider_at(ms: u64) {
        running(|call| call.reconsider_at(ms));
    }

    /// A line that belongs to no call is for nobody to look at.
    pub(crate) fn log(level: Level, text: &str) {
        let level = match level {
            Level::Error => log::Level::Error,
            Level::Warn => log::Level::Warn,
            Level::Info => log::Level::Info,
            Level::Debug => log::Level::Debug,
        };
        try_running(|call| call.log(level, text));
    }
}
