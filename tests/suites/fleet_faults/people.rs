//! The users and viewers, and who may see whom.

use serde_json::{Value, json};

/// How many users there are.
pub(super) const USERS: usize = 60;
/// How many viewers.
pub(super) const VIEWERS: usize = 6;

pub(super) fn user_id(user: usize) -> String {
    format!("{USER}{user}")
}

pub(super) fn viewer_id(viewer: usize) -> String {
    format!("{VIEWER}{viewer}")
}

const USER: &str = "user-";
const VIEWER: &str = "viewer-";

/// The number of the user with this id.
pub(super) fn user_of(id: &str) -> Option<usize> {
    id.strip_prefix(USER)?.parse().ok()
}

/// The number of the viewer with this id. `None` for users of a team, who are each other's viewers.
pub(super) fn viewer_of(id: &str) -> Option<usize> {
    id.strip_prefix(VIEWER)?.parse().ok()
}

/// Whether a viewer may see a user, by the directory and the default pipeline.
pub(super) fn may_see(viewer: usize, user: usize) -> bool {
    (is_contact(viewer, user) || is_of_team(viewer, user)) && !is_blocked(viewer, user)
}

fn is_contact(viewer: usize, user: usize) -> bool {
    !(user + viewer).is_multiple_of(3)
}

fn is_of_team(viewer: usize, user: usize) -> bool {
    viewer + 1 == VIEWERS && user.is_multiple_of(5)
}

fn is_blocked(viewer: usize, user: usize) -> bool {
    (user + 2 * viewer).is_multiple_of(7)
}

/// The directory with these contacts, teams and blocks.
pub(super) fn directory() -> Value {
    let of = |user: usize, is: fn(usize, usize) -> bool| -> Vec<String> {
        let viewers = (0..VIEWERS).filter(|viewer| is(*viewer, user));
        viewers.map(viewer_id).collect()
    };
    let by_user = |is: fn(usize, usize) -> bool| -> Value {
        (0..USERS)
            .map(|user| (user_id(user), Value::from(of(user, is))))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    let team = (0..USERS).filter(|user| is_of_team(VIEWERS - 1, *user));
    let team: Vec<_> = team.map(user_id).chain([viewer_id(VIEWERS - 1)]).collect();
    json!({
        "contacts": by_user(is_contact),
        "groups": {"team": team},
        "blocks": by_user(is_blocked),
    })
}

/// Numbers drawn from a seed.
#[derive(Debug)]
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low` to `high`, both included.
    pub(super) fn within(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low + 1)
    }
}
