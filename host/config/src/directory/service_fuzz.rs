//! Fuzzing of what a directory service says.

use presence_core::directory::Question;
use presence_core::names::Names;

use super::service as protocol;

/// Reads an answer to a question, or a message that an answer has changed. The changed answer can
/// be asked for again.
pub fn service(question: u8, payload: &[u8]) -> bool {
    let names = Names::new();
    let user = names.intern("ada");
    let question = match question % 4 {
        0 => Question::Contacts(user),
        1 => Question::Groups(user),
        2 => Question::Settings(user),
        _ => {
            return match protocol::invalidated(payload, &names) {
                Ok(Some(question)) => {
                    let asked = protocol::request("directory", &question, &names);
                    let (_, body) = asked.expect("what has changed can be asked for");
                    let again = protocol::invalidated(&body, &names);
                    assert_eq!(again.ok().flatten().as_ref(), Some(&question));
                    true
                }
                Ok(None) => payload.is_empty(),
                Err(_) => false,
            };
        }
    };
    protocol::answer(&question, payload, &names).is_ok()
}
