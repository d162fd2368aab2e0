//! Tests of the cache alone. The tests pass the time in.

use presence_core::names::Id;

use super::*;

const TTL_MS: u64 = 10_000;

fn cache() -> Cache {
    Cache::new(Limits {
        ttl_ms: TTL_MS,
        concurrency: 2,
    })
}

fn contacts(user: u32) -> Question {
    Question::Contacts(Id(user))
}

impl Cache {
    fn want_users(&mut self, users: &[u32]) -> bool {
        self.want(users.iter().map(|user| contacts(*user)))
    }

    /// All questions that may be asked at this time.
    fn asked(&mut self, now: u64) -> Vec<u32> {
        let asked = std::iter::from_fn(|| self.next(now));
        asked.map(|question| question.user().unwrap().0).collect()
    }

    /// A reply comes, is read, and its answer is put into the directory.
    fn answer(&mut self, user: u32, now: u64) {
        self.on_reply(&contacts(user), now, Bytes::new());
        assert_eq!(self.taken(), [(user, true)]);
        self.on_reply_read(&contacts(user), now, None);
    }

    /// What has arrived: the user, and whether it is a reply.
    fn taken(&mut self) -> Vec<(u32, bool)> {
        let taken = self.take_arrived().into_iter();
        taken
            .map(|(question, reply)| (question.user().unwrap().0, reply.is_some()))
            .collect()
    }

    /// Reports for all questions whose time is up whether they are used. Returns their number.
    fn check(&mut self, now: u64, is_used: bool) -> usize {
        let due = self.take_due(now);
        due.iter()
            .for_each(|question| self.on_use_checked(question, is_used));
        due.len()
    }

    fn is_away(&self) -> bool {
        self.figures().2
    }
}

#[test]
fn a_question_is_asked_once_and_no_more_than_the_limit_at_a_time() {
    let mut cache = cache();
    assert!(cache.want_users(&[1, 2, 3, 1]));
    assert!(!cache.want_users(&[2, 3]));
    assert_eq!(cache.asked(0), [1, 2]);
    assert_eq!(cache.asked(1), [0u32; 0]);
    assert!(!cache.want_users(&[1]));
    cache.answer(1, 5);
    assert_eq!(cache.asked(5), [3]);
    assert!(!cache.want_users(&[1]), "it is at hand");
    assert_eq!(cache.figures(), (1, 2, false));
    assert_eq!(cache.ids().iter().collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn an_answer_in_use_is_asked_again_when_its_time_is_up_and_stands_until_then() {
    let mut cache = cache();
    cache.want_users(&[1]);
    cache.asked(0);
    cache.answer(1, 5);
    assert_eq!(cache.next_deadline(), Some(5 + TTL_MS));
    assert_eq!(cache.check(4 + TTL_MS, true), 0);
    assert_eq!(cache.check(5 + TTL_MS, true), 1);
    assert_eq!(cache.asked(5 + TTL_MS), [1]);
    assert_eq!(cache.taken(), []);
    cache.answer(1, 9 + TTL_MS);
    assert_eq!(cache.next_deadline(), Some(9 + 2 * TTL_MS));
}

#[test]
fn an_answer_that_nobody_uses_is_dropped_and_asked_anew_when_it_is_wanted() {
    let mut cache = cache();
    cache.want_users(&[1]);
    cache.asked(0);
    cache.answer(1, 0);
    cache.check(TTL_MS, false);
    assert_eq!(cache.figures(), (0, 0, false));
    assert!(cache.ids().contains(1), "it is still to be taken away");
    assert!(cache.want_users(&[1]));
    assert_eq!(cache.taken(), [(1, false)]);
    assert_eq!(cache.asked(TTL_MS), [1]);
}

#[test]
fn while_the_service_is_away_one_question_at_a_time_finds_out_whether_it_is_back() {
    let mut cache = cache();
    cache.want_users(&[1, 2, 3]);
    assert_eq!(cache.asked(0), [1, 2]);
    cache.on_no_reply(&contacts(1), 100, "nobody there");
    cache.on_no_reply(&contacts(2), 100, "nobody there");
    assert!(cache.is_away());
    assert_eq!(cache.asked(100), [0u32; 0]);
    assert_eq!(cache.next_deadline(), Some(350), "both failed at once");
    assert_eq!(cache.asked(349), [0u32; 0]);
    assert_eq!(cache.asked(350), [3]);
    cache.on_no_reply(&contacts(3), 350, "nobody there");
    assert_eq!(cache.check(350, true), 2);
    assert_eq!(cache.asked(849), [0u32; 0], "it waits for twice as long");
    assert_eq!(cache.asked(850), [1]);
    cache.on_reply(&contacts(1), 860, Bytes::new());
    assert!(!cache.is_away());
    assert_eq!(cache.asked(860), [2, 3], "all that waited are asked");
}

#[test]
fn waits_grow_to_a_limit_and_begin_anew_after_an_answer() {
    let mut cache = cache();
    cache.want_users(&[1]);
    let (mut now, mut waits) = (0, Vec::new());
    for _ in 0..8 {
        assert_eq!(cache.asked(now), [1]);
        cache.on_no_reply(&contacts(1), now, "nobody there");
        let at = cache.next_deadline().unwrap();
        waits.push(at - now);
        now = at;
        cache.check(now, true);
    }
    let expected = [250, 500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000];
    assert_eq!(waits, expected);
    cache.asked(now);
    cache.answer(1, now);
    cache.invalidate(None);
    cache.asked(now + 1);
    cache.on_no_reply(&contacts(1), now + 1, "nobody there");
    assert_eq!(cache.next_deadline(), Some(now + 251));
}

#[test]
fn a_question_that_goes_unanswered_among_others_waits_alone() {
    let mut cache = cache();
    cache.want_users(&[1, 2]);
    cache.asked(0);
    cache.answer(2, 50);
    cache.on_no_reply(&contacts(1), 100, "no answer within 100 ms");
    assert!(!cache.is_away());
    cache.want_users(&[3]);
    assert_eq!(cache.asked(100), [3]);
}

#[test]
fn an_old_answer_that_cannot_be_had_again_is_taken_away() {
    let mut cache = cache();
    cache.want_users(&[1, 2, 3]);
    assert_eq!(cache.asked(0), [1, 2]);
    cache.answer(1, 0);
    cache.answer(2, 0);
    assert_eq!(cache.asked(1), [3]);
    cache.answer(3, 1);
    cache.check(TTL_MS + 1, true);
    assert_eq!(cache.asked(TTL_MS + 1), [1, 2]);
    cache.on_no_reply(&contacts(1), TTL_MS + 2, "nobody there");
    // A question under way may still be answered. One that waits for its turn won't be.
    assert_eq!(cache.taken(), [(3, false), (1, false)]);
    cache.on_no_reply(&contacts(2), TTL_MS + 2, "nobody there");
    assert_eq!(cache.taken(), [(2, false)]);
    assert_eq!(cache.figures(), (0, 3, true));
}

#[test]
fn while_the_service_is_away_what_is_fresh_stands_and_what_was_invalidated_does_not() {
    let mut cache = cache();
    cache.want_users(&[1, 2]);
    cache.asked(0);
    cache.answer(1, 0);
    cache.answer(2, 0);
    cache.want_users(&[3]);
    cache.asked(1);
    cache.on_no_reply(&contacts(3), 1, "nobody there");
    assert_eq!(cache.taken(), []);
    cache.invalidate(Some(&contacts(2)));
    assert_eq!(cache.taken(), [(2, false)]);
    assert_eq!(cache.figures(), (1, 2, true));
}

#[test]
fn what_is_invalidated_is_asked_again_at_once() {
    let mut cache = cache();
    cache.want_users(&[1, 2]);
    cache.asked(0);
    cache.answer(1, 0);
    cache.answer(2, 0);
    cache.invalidate(Some(&contacts(7)));
    cache.invalidate(Some(&contacts(1)));
    cache.invalidate(Some(&contacts(1)));
    assert_eq!(cache.asked(1), [1]);
    cache.answer(1, 1);
    cache.invalidate(None);
    assert_eq!(cache.asked(2), [1, 2]);
    assert_eq!(cache.taken(), [], "they stand until they are answered");
}

#[test]
fn what_was_said_before_an_invalidation_is_not_taken() {
    let mut cache = cache();
    cache.want_users(&[1]);
    cache.asked(0);
    cache.invalidate(Some(&contacts(1)));
    cache.on_reply(&contacts(1), 1, Bytes::new());
    assert_eq!(cache.taken(), []);
    assert_eq!(cache.asked(1), [1]);
    cache.on_reply(&contacts(1), 2, Bytes::new());
    cache.invalidate(None);
    assert_eq!(cache.taken(), []);
    assert_eq!(cache.asked(2), [1]);
    cache.answer(1, 3);
    assert_eq!(cache.figures(), (1, 0, false));
}

#[test]
fn a_reply_that_is_no_answer_puts_off_that_question_alone() {
    let mut cache = cache();
    cache.want_users(&[1, 2]);
    cache.asked(0);
    cache.answer(1, 0);
    cache.on_reply(&contacts(2), 0, Bytes::new());
    cache.taken();
    cache.on_reply_read(&contacts(2), 0, Some("not a list".into()));
    assert_eq!((cache.refused, cache.is_away()), (1, false));
    assert_eq!(cache.next_deadline(), Some(250));
    // No shard needs the answer any more.
    cache.check(250, false);
    assert_eq!((cache.refused, cache.figures()), (0, (1, 0, false)));
}

#[test]
fn a_service_of_which_nothing_can_be_read_is_as_good_as_away() {
    let mut cache = cache();
    cache.want_users(&[1, 2]);
    cache.asked(0);
    for user in [1, 2] {
        cache.on_reply(&contacts(user), 0, Bytes::new());
        cache.taken();
        cache.on_reply_read(&contacts(user), 0, Some("not a list".into()));
    }
    assert_eq!(cache.outage(999), None, "it may be for a moment");
    assert_eq!(cache.outage(1_000), Some((1_000, "not a list".into())));
    assert_eq!(cache.check(1_000, true), 2);
    assert_eq!(cache.asked(1_000), [1, 2]);
    cache.answer(1, 1_000);
    assert_eq!(cache.outage(3_000), None, "one answer can be read");
}

#[test]
fn when_the_broker_is_back_everything_is_asked_again() {
    let mut cache = cache();
    cache.want_users(&[1, 2]);
    cache.asked(0);
    cache.answer(1, 10);
    cache.on_no_reply(&contacts(2), 100, "no answer");
    cache.want_users(&[3]);
    cache.asked(100);
    cache.on_no_reply(&contacts(3), 200, "no answer");
    assert!(cache.is_away());
    cache.on_reconnect();
    assert_eq!(cache.taken(), []);
    assert_eq!(cache.asked(201), [2, 3]);
    cache.answer(2, 202);
    assert_eq!(cache.asked(202), [1]);
}

#[test]
fn a_service_that_is_away_is_said_to_be_with_the_last_reason_until_it_answers() {
    let mut cache = cache();
    cache.want_users(&[1]);
    cache.asked(0);
    cache.on_no_reply(&contacts(1), 100, "nobody responds");
    assert_eq!(cache.outage(1_099), None, "it may only be late");
    let away = |ms, why: &str| Some((ms, why.to_owned()));
    assert_eq!(cache.outage(1_100), away(1_000, "nobody responds"));
    assert_eq!(cache.check(350, true), 1);
    assert_eq!(cache.asked(350), [1]);
    cache.on_no_reply(&contacts(1), 5_350, "no answer within 5000 ms");
    assert_eq!(cache.outage(5_350), away(5_250, "no answer within 5000 ms"));
    let retry_at = cache.next_deadline().unwrap();
    cache.check(retry_at, true);
    cache.asked(retry_at);
    cache.answer(1, retry_at + 1);
    assert_eq!(cache.outage(retry_at + 1), None);
}

#[test]
fn it_is_noticed_that_the_service_is_back_though_nobody_needs_an_answer_any_more() {
    let mut cache = cache();
    cache.want_users(&[1, 2]);
    cache.asked(0);
    cache.on_no_reply(&contacts(1), 100, "gone");
    cache.on_no_reply(&contacts(2), 100, "gone");
    // No shard needs the answers any more.
    let mut asked = Vec::new();
    while asked.len() < 4 {
        let now = cache.next_deadline().unwrap();
        cache.check(now, false);
        for user in cache.asked(now) {
            cache.on_no_reply(&contacts(user), now + 1, "gone");
            asked.push(user);
        }
        assert!(now < 60_000);
    }
    assert_eq!(cache.figures().1, 1, "all others are forgotten");
    let probe = asked[3];
    let mut now = cache.next_deadline().unwrap();
    while cache.asked(now).is_empty() {
        cache.check(now, false);
        now = cache.next_deadline().unwrap_or(now);
    }
    cache.answer(probe, now + 1);
    assert_eq!(cache.outage(now + 1), None);
    assert_eq!(cache.check(now + 1 + TTL_MS, false), 1);
    assert_eq!(
        cache.figures(),
        (0, 0, false),
        "and then it is forgotten, too"
    );
}

#[test]
fn no_more_questions_wait_than_there_is_room_for() {
    let mut cache = cache();
    let count = u32::try_from(READY_MAX).unwrap();
    assert!(cache.want((0..count).map(contacts)));
    assert!(!cache.want_users(&[count]));
    assert_eq!(cache.figures().1, READY_MAX);
    // Once two have been asked, there is room for two.
    assert_eq!(cache.asked(0), [0, 1]);
    assert!(cache.want_users(&[count, count + 1]));
    assert!(!cache.want_users(&[count + 2]));
}
