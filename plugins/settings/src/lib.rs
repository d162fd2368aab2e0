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

use presence_plugin::{Audience, directory, explain, log};
use serde::Deserialize;

/// The key under which users say who may know when they were last seen.
pub const LAST_SEEN: &str = "lastSeen";

/// To whom a user shows something.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Who {
    /// `"everyone"`: to whomever the pipeline admits.
    Everyone,
    /// `"contacts"`: to those of them who are the user's contacts.
    Contacts,
    /// `{"contactsExcept": ["67890"]}`: to the contacts, but not to these users.
    ContactsExcept(Vec<String>),
    /// `"nobody"`.
    Nobody,
}

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

/// Those of an audience to whom a user shows something. Contacts are asked for
/// only where they decide.
pub fn shown_to(who: &Who, audience: Audience, user: &str) -> Audience {
    match who {
        Who::Everyone => audience,
        Who::Contacts => audience & directory::contacts(user),
        Who::ContactsExcept(users) => (audience & directory::contacts(user)) - Audience::of(users),
        Who::Nobody => Audience::nobody(),
    }
}

fn who(user: &str, key: &str) -> Option<Who> {
    directory::setting(user, key).unwrap_or_else(|error| Some(unreadable(&error)))
}

fn unreadable(error: &str) -> Who {
    log::warn!("{error}: taken for the strictest");
    explain("a setting of the user can't be read, and so is taken for the strictest");
    Who::Nobody
}

#[cfg(test)]
mod tests {
    use presence_plugin::log::Level;
    use presence_plugin::testing::{Host, Outcome};

    use super::*;

    /// Of the four in the audience two are contacts, as is one who isn't in it.
    fn shown(who: &Who) -> Outcome<Vec<String>> {
        let host = Host::new().contacts("ada", ["ben", "cleo", "fay"]);
        host.online("ada").call(|event| {
            let audience = Audience::of(["ben", "cleo", "dan", "eve"]);
            shown_to(who, audience, event.user()).viewers()
        })
    }

    #[test]
    fn each_case_lets_through_whom_it_names_and_nobody_who_was_not_admitted() {
        let except = |users: &[&str]| {
            Who::ContactsExcept(users.iter().map(|user| (*user).to_owned()).collect())
        };
        let everyone = shown(&Who::Everyone).answer;
        assert_eq!(everyone, ["ben", "cleo", "dan", "eve"]);
        assert_eq!(shown(&Who::Contacts).answer, ["ben", "cleo"]);
        assert_eq!(shown(&except(&["ben", "dan"])).answer, ["cleo"]);
        assert_eq!(shown(&except(&[])).answer, ["ben", "cleo"]);
        assert!(shown(&Who::Nobody).answer.is_empty());
    }

    #[test]
    fn contacts_are_asked_for_only_where_they_decide() {
        for who in [Who::Everyone, Who::Nobody] {
            assert!(shown(&who).reads.is_empty(), "{who:?}");
        }
        assert!(!shown(&Who::Contacts).reads.is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_taken_for_the_strictest_and_logged() {
        let said = [
            Host::new().setting("ada", "online", "sometimes"),
            Host::new().setting("ada", "invisible", "yes"),
        ];
        for host in said {
            let outcome = host.online("ada").call(|event| online(event.user()));
            assert_eq!(outcome.answer, Some(Who::Nobody));
            let (level, line) = &outcome.logged[0];
            assert_eq!(*level, Level::Warn);
            assert!(line.ends_with(": taken for the strictest"), "{line}");
        }
    }

    #[test]
    fn a_user_without_the_setting_leaves_it_to_the_pipeline() {
        let host = Host::new();
        let ada = host.online("ada");
        assert_eq!(ada.call(|event| online(event.user())).answer, None);
        assert_eq!(ada.call(|event| last_seen(event.user())).answer, None);
    }
}
