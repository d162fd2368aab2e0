//! Checks that each rule of the oracle finds its violations, and nothing else.

use super::*;

const TERMS: Terms = Terms {
    timeout_ms: 4_000,
    lease_ms: 1_500,
    heartbeat_ms: 500,
    allowance_ms: 2_000,
    is_orderly: false,
};
/// A user and a viewer who may see the user, and another viewer who may not.
const USER: usize = 1;
const VIEWER: usize = 0;
const HIDDEN_FROM: usize = 3;

/// A trace that a test makes up.
#[derive(Default)]
struct Forged {
    at: u64,
    entries: Vec<Entry>,
    seqs: [u64; 2],
    epoch: u64,
}

impl Forged {
    /// The user comes, and the viewer is told.
    fn with_user_online() -> Self {
        let mut forged = Self {
            epoch: 7,
            ..Self::default()
        };
        forged.after(
            100,
            Fact::Opens {
                user: USER,
                conn: 1,
            },
        );
        forged.speaks(1);
        forged.receives_next(true, &[VIEWER]);
        forged.shows(true);
        forged
    }

    fn after(&mut self, ms: u64, fact: Fact) {
        self.at += ms;
        self.entries.push(Entry { at: self.at, fact });
    }

    fn speaks(&mut self, conn: u64) {
        self.after(5, Fact::Spoke { user: USER, conn });
    }

    /// Adds heartbeats of a connection for this long.
    fn stays(&mut self, conn: u64, ms: u64) {
        for _ in 0..ms / 500 {
            self.at += 495;
            self.speaks(conn);
        }
    }

    fn closes(&mut self, conn: u64) {
        self.after(5, Fact::Closes { user: USER, conn });
        self.after(5, Fact::Closed { user: USER, conn });
    }

    fn fails_for(&mut self, ms: u64) {
        self.after(5, Fact::FaultBegins("a fault"));
        self.after(ms, Fact::FaultEnds("a fault"));
    }

    fn receives(&mut self, online: bool, seq: u64, viewers: &[usize]) {
        self.after(
            5,
            Fact::Received {
                client: 0,
                source: "s/0".into(),
                epoch: self.epoch,
                seq,
                online,
                user: USER,
                viewers: viewers.to_vec(),
            },
        );
    }

    /// The next message of its subject.
    fn receives_next(&mut self, online: bool, viewers: &[usize]) {
        let [on, off] = &mut self.seqs;
        let seq = if online { on } else { off };
        *seq += 1;
        let seq = *seq;
        self.receives(online, seq, viewers);
    }

    fn shows(&mut self, online: bool) {
        self.after(
            0,
            Fact::ViewChanged {
                viewer: VIEWER,
                user: USER,
                online,
                why: "event",
            },
        );
    }

    fn succeeds(&mut self) {
        self.epoch += 1;
        self.seqs = [0; 2];
    }

    #[track_caller]
    fn finds(&self, words: &[&str]) {
        self.finds_by(TERMS, words);
    }

    #[track_caller]
    fn finds_by(&self, terms: Terms, words: &[&str]) {
        let found = judge(terms, &self.entries).violations;
        let fits = found.len() == words.len()
            && found
                .iter()
                .zip(words)
                .all(|(it, words)| it.contains(words));
        assert!(fits, "expected {words:?}, found {found:#?}");
    }
}

#[test]
fn nothing_is_found_where_all_is_well() {
    assert!(may_see(VIEWER, USER) && !may_see(HIDDEN_FROM, USER));
    let mut forged = Forged::with_user_online();
    forged.stays(1, 20_000);
    forged.closes(1);
    forged.receives_next(false, &[VIEWER]);
    forged.shows(false);
    forged.after(20_000, Fact::Missed { client: 0 });
    forged.finds(&[]);
    assert_eq!(differences(&forged.entries), Vec::<String>::new());
}

#[test]
fn a_user_who_stays_and_is_shown_as_gone_is_found() {
    let mut forged = Forged::with_user_online();
    forged.stays(1, 5_000);
    forged.receives_next(false, &[VIEWER]);
    forged.shows(false);
    forged.finds(&["user 1 stayed connected"]);
}

#[test]
fn a_user_whose_other_connection_stays_counts_as_staying() {
    let mut forged = Forged::with_user_online();
    forged.after(
        5,
        Fact::Opens {
            user: USER,
            conn: 2,
        },
    );
    forged.stays(2, 5_000);
    forged.closes(1);
    forged.shows(false);
    forged.finds(&["user 1 stayed connected"]);
}

#[test]
fn a_user_who_spoke_too_seldom_is_not_surely_connected() {
    let mut forged = Forged::with_user_online();
    forged.stays(1, 5_000);
    forged.at += 4_500;
    forged.speaks(1);
    forged.shows(false);
    forged.finds(&[]);
}

#[test]
fn what_was_decided_before_a_fault_may_be_said_after_it() {
    // The user left and came back during the fault.
    let mut forged = Forged::with_user_online();
    forged.stays(1, 5_000);
    forged.after(5, Fact::FaultBegins("a fault"));
    forged.closes(1);
    forged.after(
        500,
        Fact::Opens {
            user: USER,
            conn: 2,
        },
    );
    forged.stays(2, 3_000);
    forged.after(5, Fact::FaultEnds("a fault"));
    let mut late = Forged {
        entries: forged.entries.clone(),
        ..forged
    };
    late.receives_next(false, &[VIEWER]);
    late.shows(false);
    late.finds(&[]);
    // After the recovery, nothing excuses it.
    late.stays(2, 8_000);
    late.shows(true);
    late.shows(false);
    late.finds(&["user 1 stayed connected"]);
}

#[test]
fn a_user_who_stayed_all_through_a_fault_is_not_to_be_shown_as_gone_after_it() {
    let mut forged = Forged::with_user_online();
    forged.stays(1, 5_000);
    forged.after(5, Fact::FaultBegins("a fault"));
    forged.stays(1, 3_000);
    forged.after(5, Fact::FaultEnds("a fault"));
    forged.stays(1, 1_000);
    forged.shows(false);
    forged.finds(&["user 1 stayed connected"]);
}

#[test]
fn a_ghost_is_found_once_its_time_is_over() {
    let mut forged = Forged::with_user_online();
    forged.closes(1);
    let mut soon = Forged {
        entries: forged.entries.clone(),
        ..forged
    };
    soon.after(7_400, Fact::Missed { client: 0 });
    soon.finds(&[]);
    soon.after(101, Fact::Missed { client: 0 });
    soon.finds(&["user 1 left at"]);
    // A ghost is reported once, however long it lasts.
    soon.after(1_000, Fact::Missed { client: 0 });
    soon.finds(&["user 1 left at"]);
}

#[test]
fn a_ghosts_time_is_counted_from_the_last_fault() {
    let mut forged = Forged::with_user_online();
    forged.closes(1);
    forged.at += 5_000;
    forged.fails_for(6_000);
    forged.after(3_000, Fact::Stall("a node"));
    forged.after(7_400, Fact::Missed { client: 0 });
    forged.finds(&[]);
    forged.after(101, Fact::Missed { client: 0 });
    forged.finds(&["user 1 left at"]);
}

#[test]
fn a_fault_excuses_no_ghost_that_was_there_before_it() {
    let mut forged = Forged::with_user_online();
    forged.closes(1);
    forged.at += 8_000;
    forged.fails_for(100);
    forged.shows(false);
    forged.finds(&["user 1 left at"]);
}

#[test]
fn whoever_is_hidden_is_to_be_told_and_shown_to_nobody() {
    let mut forged = Forged::with_user_online();
    forged.receives(true, 2, &[HIDDEN_FROM]);
    forged.after(
        5,
        Fact::ViewChanged {
            viewer: HIDDEN_FROM,
            user: USER,
            online: true,
            why: "answer",
        },
    );
    forged.finds(&[
        "user 1 is hidden from viewer 3",
        "viewer 3 sees user 1, who is hidden",
    ]);
}

#[test]
fn what_is_told_twice_in_an_epoch_is_found() {
    let mut forged = Forged::with_user_online();
    forged.receives_next(true, &[VIEWER, VIEWER + 1]);
    forged.finds(&["viewer 0 was told twice that user 1 is online, in epoch 7"]);
}

#[test]
fn what_another_subjects_loss_excuses_is_not_found() {
    // An offline between the two onlines was lost: the next one shows it.
    let mut forged = Forged::with_user_online();
    forged.receives_next(true, &[VIEWER]);
    let mut lost = Forged {
        entries: forged.entries.clone(),
        seqs: forged.seqs,
        ..forged
    };
    lost.receives(false, 2, &[VIEWER]);
    lost.finds(&[]);
    // And so does a beacon.
    let counted = |seqs| Fact::Beacon {
        client: 0,
        source: "s/0".into(),
        epoch: 7,
        seqs,
    };
    let mut forged = Forged::with_user_online();
    forged.receives_next(true, &[VIEWER]);
    forged.after(5, counted([2, 1]));
    forged.finds(&[]);
    // If the numbers show that nothing was lost, the violation is found at once.
    let mut forged = Forged::with_user_online();
    forged.receives_next(true, &[VIEWER]);
    forged.after(5, counted([2, 0]));
    let at = forged.at;
    forged.after(1_000, Fact::Missed { client: 0 });
    forged.finds(&["viewer 0 was told twice that user 1 is online"]);
    let found = judge(TERMS, &forged.entries).violations;
    assert!(found[0].starts_with(&format!("{at} ms")), "{found:?}");
}

#[test]
fn what_is_published_again_is_not_told_twice() {
    let mut forged = Forged::with_user_online();
    forged.receives(true, 1, &[VIEWER]);
    forged.finds(&[]);
}

#[test]
fn after_a_takeover_something_may_be_told_again_and_after_a_hand_over_nothing() {
    let mut forged = Forged::with_user_online();
    forged.succeeds();
    forged.receives_next(true, &[VIEWER]);
    forged.finds(&[]);
    let orderly = Terms {
        is_orderly: true,
        ..TERMS
    };
    forged.finds_by(orderly, &["viewer 0 was told twice"]);
    // After a stall, the shard may have changed hands without a hand-over.
    let mut stalled = Forged::with_user_online();
    stalled.after(5, Fact::Stall("a node"));
    stalled.succeeds();
    stalled.receives_next(true, &[VIEWER]);
    stalled.finds_by(orderly, &[]);
    // Messages of an owner whose epoch is over don't count.
    forged.epoch -= 1;
    forged.receives(true, 9, &[VIEWER]);
    forged.finds(&[]);
}

#[test]
fn who_was_not_told_online_is_not_to_be_told_offline() {
    let mut forged = Forged::with_user_online();
    forged.receives_next(false, &[VIEWER, VIEWER + 1]);
    forged.finds(&["viewer 1 was told that user 1 left, and never that they came"]);
    assert!(may_see(VIEWER + 1, USER));
}

#[test]
fn who_may_have_missed_it_may_be_told_offline() {
    let mut forged = Forged::with_user_online();
    forged.after(5, Fact::Missed { client: 0 });
    forged.receives_next(false, &[VIEWER, VIEWER + 1]);
    forged.finds(&[]);
    // A gap shows that, too.
    let mut forged = Forged::with_user_online();
    forged.seqs = [1, 1];
    forged.receives_next(false, &[VIEWER, VIEWER + 1]);
    forged.finds(&[]);
}

#[test]
fn in_the_end_viewers_know_neither_more_nor_less() {
    let mut forged = Forged::with_user_online();
    let less = differences(&forged.entries);
    let others = (1..VIEWERS).filter(|viewer| may_see(*viewer, USER));
    assert_eq!(less.len(), others.count(), "{less:?}");
    assert!(less[0].contains("shows user 1 as offline"), "{less:?}");
    forged.closes(1);
    let more = differences(&forged.entries);
    assert_eq!(more, ["viewer 0 shows user 1 as online"]);
}

#[test]
fn it_says_of_how_many_users_it_judged_all_the_time() {
    let mut forged = Forged::with_user_online();
    forged.stays(1, 5_000);
    assert_eq!(judge(TERMS, &forged.entries).steady, 1);
    forged.at += 4_000;
    forged.speaks(1);
    assert_eq!(judge(TERMS, &forged.entries).steady, 0);
}
