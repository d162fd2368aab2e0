//! Converts the grants of the configuration to the capabilities of the sandbox.

use presence_config::Grant;
use presence_sandbox::{Capabilities, Capability};

/// The capabilities that a stage's entry grants. Some capabilities permit calls of host functions
/// (`Capabilities::HOST_FUNCTIONS`). A list that names none of these, and not the word `none`,
/// grants all of them. So a list that was written before they existed keeps its meaning.
pub(super) fn of_stage(grants: &[Grant]) -> Capabilities {
    let granted = all_of(grants);
    let names_some = grants.contains(&Grant::None)
        || !granted
            .intersection(Capabilities::HOST_FUNCTIONS)
            .is_empty();
    match names_some {
        true => granted,
        false => granted.union(Capabilities::HOST_FUNCTIONS),
    }
}

/// The most that any plugin may be granted. Without a list, that is everything.
pub(super) fn ceiling(grants: Option<&[Grant]>) -> Capabilities {
    grants.map_or(Capabilities::ALL, all_of)
}

fn all_of(grants: &[Grant]) -> Capabilities {
    grants
        .iter()
        .filter_map(|grant| capability(*grant))
        .collect()
}

fn capability(grant: Grant) -> Option<Capability> {
    Some(match grant {
        Grant::Widen => Capability::Widen,
        Grant::Wasi => Capability::Wasi,
        Grant::Contacts => Capability::Contacts,
        Grant::Groups => Capability::Groups,
        Grant::Blocks => Capability::Blocks,
        Grant::Settings => Capability::Settings,
        Grant::Everyone => Capability::Everyone,
        Grant::Log => Capability::Log,
        Grant::None => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_names_none_of_what_functions_need_grants_all_of_it() {
        let granted = |grants: &[Grant]| of_stage(grants);
        assert_eq!(granted(&[]), Capabilities::HOST_FUNCTIONS);
        let wide = Capabilities::HOST_FUNCTIONS.with(Capability::Widen);
        assert_eq!(granted(&[Grant::Widen]), wide);
        let some = granted(&[Grant::Widen, Grant::Contacts]);
        assert_eq!(
            some,
            Capabilities::NONE
                .with(Capability::Widen)
                .with(Capability::Contacts)
        );
        assert!(granted(&[Grant::None]).is_empty());
        // The ceiling permits only what it lists.
        assert_eq!(ceiling(None), Capabilities::ALL);
        assert!(ceiling(Some(&[])).is_empty());
    }
}
