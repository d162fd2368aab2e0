//! What the team's directory says about users and groups.
//!
//! A user or group that the directory doesn't know has empty sets and no
//! settings. The host remembers what was asked, and decides again when that
//! changes.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Audience;
use crate::bindings::directory;

/// A user's contacts.
///
/// ```
/// use presence_plugin::{directory, testing::Host};
///
/// let host = Host::new().contacts("ada", ["ben"]);
/// let outcome = host.online("ada").call(|event| directory::contacts(event.user()).viewers());
/// assert_eq!(outcome.answer, ["ben"]);
/// ```
pub fn contacts(user: &str) -> Audience {
    Audience::from_token(directory::contacts(user))
}

/// Everyone who has this user among their contacts.
///
/// ```
/// use presence_plugin::{directory, testing::Host};
///
/// let host = Host::new().contacts("ben", ["ada"]);
/// let outcome = host.online("ada").call(|event| directory::with_contact(event.user()).viewers());
/// assert_eq!(outcome.answer, ["ben"]);
/// ```
pub fn with_contact(user: &str) -> Audience {
    Audience::from_token(directory::with_contact(user))
}

/// The members of a group.
///
/// ```
/// use presence_plugin::{directory, testing::Host};
///
/// let host = Host::new().group("admins", ["ben"]);
/// let outcome = host.online("ada").call(|_| directory::members("admins").viewers());
/// assert_eq!(outcome.answer, ["ben"]);
/// ```
pub fn members(group: &str) -> Audience {
    Audience::from_token(directory::members(group))
}

/// Everyone who shares a group with this user.
///
/// ```
/// use presence_plugin::{directory, testing::Host};
///
/// let host = Host::new().group("team-a", ["ada", "ben"]);
/// let outcome = host.online("ada").call(|event| directory::co_members(event.user()).viewers());
/// assert_eq!(outcome.answer, ["ben"]);
/// ```
pub fn co_members(user: &str) -> Audience {
    Audience::from_token(directory::co_members(user))
}

/// Everyone this user has blocked.
///
/// ```
/// use presence_plugin::{directory, testing::Host};
///
/// let host = Host::new().blocks("ada", ["eve"]);
/// let outcome = host.online("ada").call(|event| directory::blocked_by(event.user()).viewers());
/// assert_eq!(outcome.answer, ["eve"]);
/// ```
pub fn blocked_by(user: &str) -> Audience {
    Audience::from_token(directory::blocked_by(user))
}

/// Everyone who has blocked this user.
///
/// ```
/// use presence_plugin::{directory, testing::Host};
///
/// let host = Host::new().blocks("eve", ["ada"]);
/// let outcome = host.online("ada").call(|event| directory::blockers(event.user()).viewers());
/// assert_eq!(outcome.answer, ["eve"]);
/// ```
pub fn blockers(user: &str) -> Audience {
    Audience::from_token(directory::blockers(user))
}

/// Everyone whom the directory knows.
///
/// ```
/// use presence_plugin::{directory, testing::Host};
///
/// let host = Host::new().contacts("ben", ["cleo"]);
/// let outcome = host.online("ada").call(|_| directory::everyone().viewers());
/// assert_eq!(outcome.answer, ["ben", "cleo"]);
/// ```
pub fn everyone() -> Audience {
    Audience::from_token(directory::everyone())
}

/// The names of the groups a user is in.
///
/// ```
/// use presence_plugin::{directory, testing::Host};
///
/// let host = Host::new().group("team-a", ["ada"]);
/// let outcome = host.online("ada").call(|event| directory::groups(event.user()));
/// assert_eq!(outcome.answer, ["team-a"]);
/// ```
#[must_use]
pub fn groups(user: &str) -> Vec<String> {
    directory::groups(user)
}

/// A user's setting. None if there isn't one.
///
/// # Errors
///
/// The setting is there, but is not a `T`. A rule that protects someone should
/// take that for its strictest case.
///
/// ```
/// use presence_plugin::{directory, testing::Host};
///
/// let host = Host::new().setting("ada", "invisible", true);
/// let ada = host.online("ada");
/// let invisible = ada.call(|event| directory::setting(event.user(), "invisible"));
/// assert_eq!(invisible.answer, Ok(Some(true)));
///
/// let unreadable = ada.call(|event| directory::setting::<String>(event.user(), "invisible"));
/// assert!(unreadable.answer.is_err());
/// ```
pub fn setting<T: DeserializeOwned>(user: &str, key: &str) -> Result<Option<T>, String> {
    let Some(json) = directory::setting(user, key) else {
        return Ok(None);
    };
    match serde_json::from_str(&json) {
        Ok(value) => Ok(Some(value)),
        Err(e) => Err(format!("setting {key:?} of user {user:?}: {e}")),
    }
}

/// Everyone whose setting under this key has this value. A value that has no
/// JSON form ends the call with an error.
///
/// ```
/// use presence_plugin::{directory, testing::Host};
///
/// let host = Host::new().setting("ben", "doNotDisturb", true);
/// let outcome = host.online("ada").call(|_| directory::with_setting("doNotDisturb", true).viewers());
/// assert_eq!(outcome.answer, ["ben"]);
/// ```
pub fn with_setting(key: &str, value: impl Serialize) -> Audience {
    let json = serde_json::to_string(&value).unwrap_or_default();
    Audience::from_token(directory::with_setting(key, &json))
}
