//! What happens: the steps of a script.

use std::collections::BTreeSet;

use proptest::prelude::*;

use crate::USERS;

/// What a connection says of its user.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    pub(crate) activity: Option<&'static str>,
    /// A text, and in how many milliseconds it expires; or none, which clears it.
    pub(crate) status: Option<Option<(u8, Option<u64>)>>,
    /// How long ago it was sent.
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

/// One thing that happens.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Connect(usize, u8, Said),
    Disconnect(usize, u8),
    Heartbeat(usize, u8, Said),
    /// An application's word, with a device of this number.
    Online(usize, u8),
    Offline(usize),
    /// A user has just these contacts.
    Contacts(usize, BTreeSet<usize>),
    /// A user blocks just these.
    Blocks(usize, BTreeSet<usize>),
    /// Another generation of the rules, which hides these users from everyone.
    Hide(BTreeSet<usize>),
    /// The rules fail for these users from now on.
    Fail(BTreeSet<usize>),
    /// Other rules decide on a share of the users, of so many ten-thousandths: they hide these
    /// users from everyone, and show when those were last seen to nobody.
    Canary(u16, BTreeSet<usize>, BTreeSet<usize>),
    /// The share of the users becomes another.
    Share(u16),
    /// They decide on everyone, and the others on nobody any more.
    Promote,
    /// They decide on nobody any more.
    Abort,
    /// The redactor shows nothing of the users to viewers of this number.
    Unredacted(Option<usize>),
    /// The redactor shows one viewer just these keys.
    Plain(Option<usize>, Vec<&'static str>),
    /// These users show nobody when they were last seen.
    Secretive(BTreeSet<usize>),
    /// These users are hidden from everyone while they are idle.
    Shy(BTreeSet<usize>),
    /// Whether statuses are told: from now on, or from the next restart on.
    Statuses(bool, bool),
    /// The directory is asked, and answers all that it has been asked.
    Answer,
    /// An answer about a user is lost.
    Lose(usize),
    Wait(u64),
    /// Corrections take this many messages a second from now on, or as many as come.
    Pace(u64),
    /// The host has stored what has changed so far.
    Save,
    /// The host is down for so long, in which a user's contacts become these.
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
