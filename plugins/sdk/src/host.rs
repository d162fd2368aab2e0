//! What else a component may ask of, and tell, the host.

use crate::Audience;
use crate::bindings::host;

/// Says why the verdict is what it is, for whoever asks "why can A see B?".
///
/// ```
/// use presence_plugin::{explain, testing::Host};
///
/// let outcome = Host::new().online("ada").call(|_| explain("the user is invisible"));
/// assert_eq!(outcome.explained, ["the user is invisible"]);
/// ```
pub fn explain(text: &str) {
    host::explain(text);
}

/// Says why the verdict is what it is for these viewers, and no others.
///
/// ```
/// use presence_plugin::{Audience, explain_for, testing::Host};
///
/// let outcome = Host::new().online("ada").call(|_| {
///     explain_for(Audience::of(["ben"]), "it is night, and they aren't close friends");
/// });
/// assert_eq!(outcome.explained, ["ben: it is night, and they aren't close friends"]);
/// ```
pub fn explain_for(viewers: Audience, text: &str) {
    host::explain_for(viewers.token(), text);
}

/// The time, in milliseconds since the Unix epoch.
///
/// A verdict that read the time is not reused, unless [`reconsider_at`] says
/// until when it holds.
///
/// ```
/// use presence_plugin::{now, testing::Host};
///
/// let outcome = Host::new().now(1_000).online("ada").call(|_| now());
/// assert_eq!(outcome.answer, 1_000);
/// ```
#[must_use]
pub fn now() -> u64 {
    host::now()
}

/// Asks the host to decide again at this time (milliseconds since the Unix
/// epoch). Until then the verdict holds, though it read the time.
///
/// ```
/// use presence_plugin::{Audience, now, reconsider_at, testing::Host};
///
/// /// Nobody from a certain time on.
/// fn until(ms: u64, audience: Audience) -> Audience {
///     if now() >= ms {
///         return Audience::nobody();
///     }
///     reconsider_at(ms);
///     audience
/// }
///
/// let host = Host::new().now(1_000);
/// let outcome = host.online("ada").call(|_| until(5_000, Audience::of(["ben"])).len());
/// assert_eq!((outcome.answer, outcome.reconsider_at), (1, Some(5_000)));
/// ```
pub fn reconsider_at(ms: u64) {
    host::reconsider_at(ms);
}

/// Sends the [`log`] crate's records, and panics, to the host's log.
pub(crate) fn install_log() {
    static LOG: HostLog = HostLog;
    // Refused when it is installed already: a plugin may be configured again.
    if log::set_logger(&LOG).is_ok() {
        log::set_max_level(log::LevelFilter::Debug);
        // A test's panics are its own.
        #[cfg(target_arch = "wasm32")]
        std::panic::set_hook(Box::new(|panic| {
            host::log(host::Level::Error, &panic.to_string());
        }));
    }
}

struct HostLog;

impl log::Log for HostLog {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.level() <= log::Level::Debug
    }

    fn log(&self, record: &log::Record<'_>) {
        let level = match record.level() {
            log::Level::Error => host::Level::Error,
            log::Level::Warn => host::Level::Warn,
            log::Level::Info => host::Level::Info,
            log::Level::Debug => host::Level::Debug,
            log::Level::Trace => return,
        };
        match record.args().as_str() {
            Some(text) => host::log(level, text),
            None => host::log(level, &record.args().to_string()),
        }
    }

    fn flush(&self) {}
}
