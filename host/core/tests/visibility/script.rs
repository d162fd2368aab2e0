//! The steps of a script.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::USERS;

/// The activity and status in a message.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    pub(crate) activity: Option<&'static str>,
    /// A text, and after how many milliseconds it expires. `Some(None)` clears the status.
    pub(crate) status: Option<Option<(u8, Option<u64>)>>,
    /// How long ago the message was sent.
    pub(crate) behind_ms: u64,
}

pub(crate) fn said() -> impl Strategy<Value = Said> {
    let activity = prop_oneof![
        Just(None),
        prop::sample::select(&["active", "idle", "typing", "dancing"][..]).prop_map(Some),
    ];
    let text = (0..2_u8, proptest::option::of(0..3_000_u64));
    let status = prop_oneof![
        3 => Just(None),
        1 => proptest::option::of(text).prop_map(Some),
    ];
    let behind_ms = prop_oneof![3 => Just(0), 1 => 0..1_000_u64];
    (activity, status, behind_ms).prop_map(|(activity, status, behind_ms)| Said {
        activity,
        status,
        behind_ms,
    })
}

/// A step.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Connect(usize, u8, Said),
    Disconnect(usize, u8),
    Heartbeat(usize, u8, Said),
    /// An application's statement, with a device of this number.
    Online(usize, u8),
    Offline(usize),
    /// A user has exactly these contacts.
    Contacts(usize, BTreeSet<usize>),
    /// A user blocks exactly these users.
    Blocks(usize, BTreeSet<usize>),
    /// Another generation of the rules, which hides these users from everyone.
    Hide(BTreeSet<usize>),
    /// The rules fail for these users from now on.
    Fail(BTreeSet<usize>),
    /// Other rules decide on a share of the users, in ten-thousandths. They hide the first users
    /// from everyone, and tell nobody when the second ones were last seen.
    Canary(u16, BTreeSet<usize>, BTreeSet<usize>),
    /// The share changes.
    Share(u16),
    /// The candidate's rules decide on everyone.
    Promote,
    /// The candidate's rules no longer decide on anybody.
    Abort,
    /// The redactor leaves out the viewer of this number.
    Unredacted(Option<usize>),
    /// The redactor shows one viewer only these keys.
    Plain(Option<usize>, Vec<&'static str>),
    /// Nobody is told when these users were last seen.
    Secretive(BTreeSet<usize>),
    /// These users are hidden from everyone while they are idle.
    Shy(BTreeSet<usize>),
    /// Whether statuses are enabled: now, and from the next restart on.
    Statuses(bool, bool),
    /// The on-demand directory answers all open questions.
    Answer,
    /// The directory loses an answer about a user.
    Lose(usize),
    Wait(u64),
    /// Corrections take at most this many messages per second from now on; without a limit for 0.
    Pace(u64),
    /// The host stores the changed records.
    Save,
    /// The host is down for this time, in which a user's contacts change.
    Restart(u64, usize, BTreeSet<usize>),
}

/// The users' places are 398, 5,294, 5,605 and 5,940.
fn share() -> impl Strategy<Value = u16> {
    prop::sample::select(&[0, 398, 399, 5_300, 5_700, 10_000][..])
}

pub(crate) fn step() -> impl Strategy<Value = Step> {
    let user = 0..USERS.len();
    let some = || proptest::collection::btree_set(0..USERS.len(), 0..=3);
    prop_oneof![
        4 => (user.clone(), 0..2_u8, said())
            .prop_map(|(user, conn, said)| Step::Connect(user, conn, said)),
        3 => (user.clone(), 0..2_u8).prop_map(|(user, conn)| Step::Disconnect(user, conn)),
        4 => (user.clone(), 0..2_u8, said())
            .prop_map(|(user, conn, said)| Step::Heartbeat(user, conn, said)),
        1 => (user.clone(), 0..2_u8).prop_map(|(user, device)| Step::Online(user, device)),
        1 => user.clone().prop_map(Step::Offline),
        3 => (user.clone(), some()).prop_map(|(user, list)| Step::Contacts(user, list)),
        2 => (user.clone(), some()).prop_map(|(user, list)| Step::Blocks(user, list)),
        1 => some().prop_map(Step::Hide),
        1 => some().prop_map(Step::Fail),
        1 => (share(), some(), some())
            .prop_map(|(share, hidden, secretive)| Step::Canary(share, hidden, secretive)),
        1 => share().prop_map(Step::Share),
        1 => prop_oneof![Just(Step::Promote), Just(Step::Abort)],
        1 => proptest::option::of(user.clone()).prop_map(Step::Unredacted),
        1 => {
            let keys = prop::sample::subsequence(vec!["device", "activity"], 0..=2);
            (proptest::option::of(user.clone()), keys)
                .prop_map(|(viewer, keys)| Step::Plain(viewer, keys))
        },
        1 => some().prop_map(Step::Secretive),
        1 => some().prop_map(Step::Shy),
        1 => proptest::prelude::any::<(bool, bool)>()
            .prop_map(|(told, live)| Step::Statuses(told, live)),
        4 => Just(Step::Answer),
        1 => user.clone().prop_map(Step::Lose),
        3 => prop_oneof![1..800_u64, 1..40_000_u64].prop_map(Step::Wait),
        1 => prop_oneof![Just(0), Just(1), Just(30)].prop_map(Step::Pace),
        1 => Just(Step::Save),
        1 => (0..40_000_u64, 0..USERS.len(), some())
            .prop_map(|(ms, user, list)| Step::Restart(ms, user, list)),
    ]
}
