//! The settings of users that the default components share: to whom a user shows
//! that they are online, and to whom, when they were last seen.
//!
//! In the directory they look like this:
//!
//! ```json
//! {"settings": {"12345": {
//!     "online": "contacts",
//!     "lastSeen": {"contactsExcept": ["67890"]},
//!     "invisible": false
//! }}}
//! ```
//!
//! One that isn't there leaves things to the pipeline. One that can't be read
//! counts as its strictest case, and is logged: whoever set it wanted something
//! hidden.

mod rule;

pub use rule::Who;

use presence_plugin::{Audience, directory, explain, log};

/// The key under which users say who may know when they were last seen.
pub const LAST_SEEN: &str = "lastSeen";

/// To whom a user shows that they are online: to nobody while they are
/// invisible. None if the user hasn't said.
#[must_use]
pub fn online(user: &str) -> Option<Who> {
    match directory::setting(user, "invisible") {
        Ok(None | Some(false)) => who(user, "online"),
        Ok(Some(true)) => {
            explain("the user is invisible");
            Some(Who::Nobody)
        }
        Err(error) => Some(unreadable(&error)),
    }
}

/// To whom a user shows when they were last seen. None if the user hasn't said.
#[must_use]
pub fn last_seen(user: &str) -> Option<Who> {
    who(user, LAST_SEEN)
}

/// Those of an audience to whom a user shows something.
pub fn shown_to(who: &Who, audience: Audience, user: &str) -> Audience {
    who.keep(
        audience,
        Audience::nobody,
        || directory::contacts(user),
        |users| Audience::of(users),
    )
}

fn who(user: &str, key: &str) -> Option<Who> {
    directory::setting(user, key).unwrap_or_else(|error| Some(unreadable(&error)))
}

fn unreadable(error: &str) -> Who {
    log::warn!("{error}: taken for the strictest");
    explain("a setting of the user can't be read, and so is taken for the strictest");
    Who::Nobody
}
