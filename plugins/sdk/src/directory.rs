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
pub fn contacts(user: &str) -> Audience {
    Audience::from_token(directory::contacts(user))
}

/// Everyone who has this user among their contacts.
pub fn contacts_of(user: &str) -> Audience {
    Audience::from_token(directory::contacts_of(user))
}

/// The members of a group.
pub fn members(group: &str) -> Audience {
    Audience::from_token(directory::members(group))
}

/// Everyone who shares a group with this user.
pub fn co_members(user: &str) -> Audience {
    Audience::from_token(directory::co_members(user))
}

/// Everyone this user has blocked.
pub fn blocked_by(user: &str) -> Audience {
    Audience::from_token(directory::blocked_by(user))
}

/// Everyone whom the directory knows.
pub fn everyone() -> Audience {
    Audience::from_token(directory::everyone())
}

/// The names of the groups a user is in.
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
pub fn with_setting(key: &str, value: impl Serialize) -> Audience {
    let json = serde_json::to_string(&value).unwrap_or_default();
    Audience::from_token(directory::with_setting(key, &json))
}
