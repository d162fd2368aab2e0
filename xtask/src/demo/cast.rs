//! The people in the story, whom they know, and who may therefore see them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// The people with a name. Ada comes first in most steps.
pub(crate) const PEOPLE: [&str; 6] = ["ada", "ben", "cleo", "dan", "eve", "fay"];

/// The number of teams in the crowd.
const TEAMS: usize = 6;

/// The number of people in a team.
const TEAM_MEMBERS: usize = 8;

/// The number of people in the crowd.
pub(crate) const CROWD: usize = TEAMS * TEAM_MEMBERS;

/// A list of people for each name.
type Lists = BTreeMap<String, Vec<String>>;

/// The rule that decides who is told that somebody comes online.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// Contacts and those who share a group.
    ContactsAndGroups,
    /// Those who share a group alone.
    GroupsAlone,
}

/// The content of `directory.json`.
#[derive(Clone, Debug)]
pub(crate) struct Directory {
    /// Who may see a user, as the user's contact.
    contacts: Lists,
    groups: Lists,
    /// Whom a user has blocked.
    blocks: Lists,
}

impl Directory {
    /// The directory of the story.
    pub(crate) fn new() -> Self {
        let contacts = [
            ("ada", &["ben", "cleo", "dan"][..]),
            ("ben", &["ada", "cleo"]),
            ("cleo", &["ada"]),
            ("dan", &["ben"]),
            ("fay", &["ada", "ben"]),
        ];
        let mut groups = lists(&[("chess", &["ada", "eve"])]);
        for team in 0..TEAMS {
            let members = (0..TEAM_MEMBERS).map(|member| name(team * TEAM_MEMBERS + member));
            groups.insert(format!("team-{}", team + 1), members.collect());
        }
        Self {
            contacts: lists(&contacts),
            groups,
            blocks: lists(&[("ada", &["dan"])]),
        }
    }

    /// Who may see a user, by the demo's own implementation of the rules. The host's decisions are
    /// compared with it.
    pub(crate) fn audience(&self, user: &str, rule: Rule) -> BTreeSet<String> {
        let contacts = self
            .contacts
            .get(user)
            .filter(|_| rule == Rule::ContactsAndGroups);
        let groups = self.groups.values();
        let groups = groups.filter(|members| members.iter().any(|member| member == user));
        let mut audience: BTreeSet<_> = contacts
            .into_iter()
            .chain(groups)
            .flatten()
            .cloned()
            .collect();
        for blocked in self.blocks.get(user).into_iter().flatten() {
            audience.remove(blocked);
        }
        audience.remove(user);
        audience
    }

    /// Sets whom a user has blocked.
    pub(crate) fn block(&mut self, user: &str, blocked: &[&str]) {
        self.blocks.extend(lists(&[(user, blocked)]));
    }

    /// What the directory says about a person, with one column for each kind of list.
    pub(crate) fn columns(&self, user: &str) -> [String; 3] {
        let listed = |lists: &Lists| lists.get(user).map(|names| names.join(", "));
        let mut groups = self.groups.iter();
        let group = groups.find(|(_, members)| members.iter().any(|member| member == user));
        [
            listed(&self.contacts).map_or_else(String::new, |names| format!("contacts {names}")),
            group.map_or_else(String::new, |(group, _)| format!("group {group}")),
            listed(&self.blocks).map_or_else(String::new, |names| format!("has blocked {names}")),
        ]
    }

    /// The file, laid out for people to edit.
    pub(crate) fn json(&self) -> String {
        let parts = [
            ("contacts", &self.contacts),
            ("groups", &self.groups),
            ("blocks", &self.blocks),
        ];
        let parts = parts.map(|(part, lists)| {
            let mut text = format!("  {part:?}: {{");
            for (index, (name, listed)) in lists.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                let listed: Vec<_> = listed.iter().map(|name| format!("{name:?}")).collect();
                let _ = write!(text, "{comma}\n    {name:?}: [{}]", listed.join(", "));
            }
            text + "\n  }"
        });
        format!("{{\n{}\n}}\n", parts.join(",\n"))
    }
}

/// The name of one of the crowd.
pub(crate) fn name(number: usize) -> String {
    format!("u{:02}", number + 1)
}

fn lists(lists: &[(&str, &[&str])]) -> Lists {
    let owned = lists.iter().map(|(name, listed)| {
        let listed = listed.iter().map(|&name| name.to_owned());
        ((*name).to_owned(), listed.collect())
    });
    owned.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contacts_and_group_members_see_a_user_and_the_blocked_do_not() {
        let directory = Directory::new();
        let seen_by = |user: &str, rule| {
            let audience = directory.audience(user, rule);
            audience.into_iter().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(seen_by("ada", Rule::ContactsAndGroups), "ben cleo eve");
        assert_eq!(seen_by("ada", Rule::GroupsAlone), "eve");
        assert_eq!(seen_by("ben", Rule::GroupsAlone), "");
        assert_eq!(
            seen_by("u10", Rule::ContactsAndGroups),
            "u09 u11 u12 u13 u14 u15 u16"
        );
    }

    #[test]
    fn the_file_is_json_that_says_the_same() {
        let json: serde_json::Value = serde_json::from_str(&Directory::new().json()).unwrap();
        assert_eq!(json["contacts"]["ben"], serde_json::json!(["ada", "cleo"]));
        assert_eq!(json["groups"]["chess"], serde_json::json!(["ada", "eve"]));
        assert_eq!(json["groups"].as_object().unwrap().len(), TEAMS + 1);
        assert_eq!(json["blocks"], serde_json::json!({"ada": ["dan"]}));
    }
}
