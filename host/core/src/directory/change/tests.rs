use super::*;
use crate::directory::CacheMiss;

fn set(ids: &[u32]) -> Option<RoaringBitmap> {
    Some(ids.iter().copied().collect())
}

fn ask(directory: &Directory, question: Question) -> Vec<u32> {
    directory
        .audience(&question)
        .unwrap()
        .ids()
        .map(|id| id.0)
        .collect()
}

fn sample() -> Directory {
    let mut edit = Directory::new().edit();
    edit.contacts(Id(1), set(&[1, 2, 3]));
    edit.group("team", set(&[1, 4]));
    edit.group("all", set(&[1, 5]));
    edit.blocked(Id(1), set(&[3, 9]));
    edit.finish().0
}

#[test]
fn questions_are_answered_both_ways() {
    let directory = sample();
    assert_eq!(ask(&directory, Question::Contacts(Id(1))), [2, 3]);
    assert_eq!(ask(&directory, Question::WithContact(Id(3))), [1]);
    assert_eq!(ask(&directory, Question::Members("team".into())), [1, 4]);
    assert_eq!(ask(&directory, Question::CoMembers(Id(1))), [4, 5]);
    assert_eq!(ask(&directory, Question::BlockedBy(Id(1))), [3, 9]);
    assert_eq!(ask(&directory, Question::Blockers(Id(9))), [1]);
    assert_eq!(ask(&directory, Question::Everyone), [1, 2, 3, 4, 5]);
    assert_eq!(ask(&directory, Question::Contacts(Id(77))), [0; 0]);
    let groups = directory.groups(Id(1)).unwrap();
    assert_eq!(groups, ["all".into(), "team".into()]);
    assert_eq!(
        directory.ids().iter().collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 9]
    );
}

#[test]
fn a_change_names_just_the_questions_it_answers_anew() {
    let before = sample();
    let mut edit = before.edit();
    edit.contacts(Id(1), set(&[2, 6]));
    edit.group("team", set(&[1, 4]));
    edit.group("all", set(&[1]));
    let (after, changes) = edit.finish();
    let expected = [
        Question::Contacts(Id(1)),
        Question::WithContact(Id(3)),
        Question::WithContact(Id(6)),
        Question::Members("all".into()),
        Question::CoMembers(Id(1)),
        Question::CoMembers(Id(5)),
        Question::Everyone,
        Question::Groups(Id(5)),
    ];
    assert_eq!(changes.iter().collect::<Vec<_>>(), expected);
    assert_eq!(ask(&after, Question::Everyone), [1, 2, 4, 6]);
    assert_eq!(ask(&before, Question::Everyone), [1, 2, 3, 4, 5]);
}

#[test]
fn a_join_names_just_those_who_did_not_share_a_group_with_who_joins() {
    let before = {
        let mut edit = Directory::new().edit();
        edit.group("all", Some((0..1_000).collect()));
        edit.group("some", set(&[10, 11, 2_000]));
        edit.finish().0
    };
    let co_members = |changes: &Changes| changes.co_members().clone();
    let mut edit = before.edit();
    edit.group("all", Some((0..1_000).chain([2_000]).collect()));
    let (after, changes) = edit.finish();
    let mut expected: RoaringBitmap = (0..1_000).chain([2_000]).collect();
    expected.remove_range(10..=11);
    assert_eq!(co_members(&changes), expected);
    let others: Vec<_> = changes.others().cloned().collect();
    let expected = [Question::Members("all".into()), Question::Groups(Id(2_000))];
    assert_eq!(others, expected);
    // Leaving one of several shared groups makes no difference, either.
    let mut edit = after.edit();
    edit.group("some", set(&[10, 11]));
    let (_, changes) = edit.finish();
    assert!(co_members(&changes).is_empty());
}

#[test]
fn answers_differ_just_where_a_change_names_them() {
    // All possible memberships of four users in two groups, before and after.
    let groups = |bits: u32| {
        [bits & 15, bits >> 4].map(|bits| {
            (0..4)
                .filter(|user| bits & (1 << user) != 0)
                .collect::<RoaringBitmap>()
        })
    };
    let put = |directory: &Directory, bits| {
        let mut edit = directory.edit();
        for (name, members) in ["a", "b"].into_iter().zip(groups(bits)) {
            edit.group(name, Some(members));
        }
        edit.finish()
    };
    for from in 0..256 {
        let (before, _) = put(&Directory::new(), from);
        for to in 0..256 {
            let (after, changes) = put(&before, to);
            for user in 0..4 {
                let question = Question::CoMembers(Id(user));
                let differ = ask(&before, question.clone()) != ask(&after, question);
                assert!(
                    !differ || changes.co_members().contains(user),
                    "{from} {to}"
                );
            }
        }
    }
}

#[test]
fn a_block_names_the_blocker_and_the_blocked_and_makes_nobody_known() {
    let before = sample();
    let mut edit = before.edit();
    edit.blocked(Id(1), set(&[9, 4]));
    edit.blocked(Id(8), set(&[9]));
    let (after, changes) = edit.finish();
    let expected = [
        Question::BlockedBy(Id(1)),
        Question::BlockedBy(Id(8)),
        Question::Blockers(Id(3)),
        Question::Blockers(Id(4)),
        Question::Blockers(Id(9)),
        Question::Everyone,
    ];
    assert_eq!(changes.iter().collect::<Vec<_>>(), expected);
    assert_eq!(ask(&after, Question::Blockers(Id(9))), [1, 8]);
    assert_eq!(ask(&after, Question::Blockers(Id(3))), [0; 0]);
    assert_eq!(ask(&after, Question::Everyone), [1, 2, 3, 4, 5, 8]);
    assert_eq!(ask(&before, Question::Blockers(Id(9))), [1]);
    // Even if the directory holds nothing else about them, it still knows their blockers.
    let mut edit = after.edit();
    edit.group("team", None);
    let (after, _) = edit.finish();
    assert_eq!(ask(&after, Question::Blockers(Id(4))), [1]);
    assert_eq!(ask(&after, Question::Everyone), [1, 2, 3, 5, 8]);
    let mut edit = after.edit();
    edit.blocked(Id(1), None);
    edit.blocked(Id(8), None);
    let (after, _) = edit.finish();
    assert_eq!(ask(&after, Question::Blockers(Id(9))), [0; 0]);
    assert!(!after.users.contains_key(&Id(9)) && !after.users.contains_key(&Id(4)));
}

fn settings(settings: &[(&str, &str)]) -> Option<UserSettings> {
    let settings = settings.iter();
    Some(
        settings
            .map(|(key, value)| ((*key).into(), (*value).into()))
            .collect(),
    )
}

fn with(key: &str, value: &str) -> Question {
    Question::WithSetting(Arc::new(Setting::new(key, value).unwrap()))
}

#[test]
fn anyone_who_has_a_setting_is_found_and_a_change_names_the_old_and_the_new_value() {
    let mut edit = Directory::new().edit();
    edit.settings(
        Id(1),
        settings(&[("seen", " \"nobody\""), ("quiet", "true")]),
    );
    edit.settings(Id(2), settings(&[("seen", "\"nobody\""), ("lists", "{}")]));
    let (before, _) = edit.finish();
    assert_eq!(ask(&before, with("seen", "\"nobody\" ")), [1, 2]);
    assert_eq!(ask(&before, with("quiet", "true")), [1]);
    assert_eq!(ask(&before, with("quiet", "false")), [0; 0]);
    assert_eq!(before.ids().iter().collect::<Vec<_>>(), [1, 2]);

    // Another format of the same value is no change.
    let mut edit = before.edit();
    edit.settings(
        Id(2),
        settings(&[("lists", " { } "), ("seen", "\"nobod\\u0079\"")]),
    );
    let (_, changes) = edit.finish();
    assert!(changes.is_empty(), "{changes:?}");

    let mut edit = before.edit();
    edit.settings(
        Id(1),
        settings(&[("seen", "\"everyone\""), ("quiet", "true")]),
    );
    let (after, changes) = edit.finish();
    let expected = [
        Question::Settings(Id(1)),
        with("seen", "\"everyone\""),
        with("seen", "\"nobody\""),
    ];
    assert_eq!(changes.iter().collect::<Vec<_>>(), expected);
    assert_eq!(ask(&after, with("seen", "\"nobody\"")), [2]);
    assert_eq!(ask(&after, with("seen", "\"everyone\"")), [1]);
    assert_eq!(ask(&after, with("quiet", "true")), [1]);
    assert_eq!(ask(&before, with("seen", "\"nobody\"")), [1, 2]);
}

#[test]
fn an_empty_entry_makes_a_user_known_until_it_goes_whatever_was_said_before() {
    for (contacts, blocked, own) in [
        (set(&[]), None, None),
        (None, set(&[]), None),
        (None, None, settings(&[])),
    ] {
        let mut edit = sample().edit();
        edit.contacts(Id(9), contacts);
        edit.blocked(Id(9), blocked);
        edit.settings(Id(9), own);
        let (with, changes) = edit.finish();
        assert_eq!(ask(&with, Question::Everyone), [1, 2, 3, 4, 5, 9]);
        assert_eq!(changes.iter().collect::<Vec<_>>(), [Question::Everyone]);
        let mut edit = with.edit();
        edit.contacts(Id(9), None);
        edit.blocked(Id(9), None);
        edit.settings(Id(9), None);
        let (without, changes) = edit.finish();
        assert_eq!(ask(&without, Question::Everyone), [1, 2, 3, 4, 5]);
        assert_eq!(changes.iter().collect::<Vec<_>>(), [Question::Everyone]);
        assert_eq!(without.users.len(), sample().users.len());
    }
}

#[test]
fn taking_everything_away_leaves_nothing() {
    let mut edit = sample().edit();
    edit.settings(Id(4), settings(&[("quiet", "true")]));
    let (users, groups) = edit.subjects();
    for user in users {
        edit.contacts(user, None);
        edit.blocked(user, None);
        edit.settings(user, None);
    }
    for group in groups {
        edit.group(&group, None);
    }
    let (directory, _) = edit.finish();
    assert!(directory.is_empty());
    assert!(directory.ids().is_empty());
    assert!(directory.with_setting.is_empty());
}

fn users(ids: &[u32]) -> Option<Answer> {
    set(ids).map(Answer::users)
}

#[test]
fn an_entry_that_cannot_be_read_holds_what_was_known_or_is_not_at_hand() {
    let mut edit = sample().edit();
    edit.unreadable(Question::BlockedBy(Id(1)));
    edit.unreadable(Question::Members("team".into()));
    let (same, changes) = edit.finish();
    assert!(changes.is_empty());
    assert_eq!(ask(&same, Question::BlockedBy(Id(1))), [3, 9]);

    let entries = [
        Question::Contacts(Id(7)),
        Question::Members("new".into()),
        Question::BlockedBy(Id(7)),
        Question::Settings(Id(7)),
    ];
    let mut edit = same.edit();
    for entry in &entries {
        edit.unreadable(entry.clone());
        edit.unreadable(entry.clone());
    }
    let (closed, changes) = edit.finish();
    assert!(changes.iter().eq(entries.clone()));
    for entry in &entries {
        assert!(!closed.has(entry));
    }
    for question in [&entries[0], &entries[1], &entries[2]] {
        assert_eq!(closed.audience(question).unwrap_err(), CacheMiss);
    }
    assert_eq!(closed.setting(Id(7), "theme"), Err(CacheMiss));
    assert!(closed.ids().contains(7));
    assert_eq!(ask(&closed, Question::CoMembers(Id(1))), [4, 5]);
    assert!(closed.edit().unreadable_entries().iter().eq(&entries));

    let mut edit = closed.edit();
    edit.contacts(Id(7), set(&[1]));
    edit.group("new", None);
    edit.blocked(Id(7), None);
    edit.settings(Id(7), settings(&[("theme", "1")]));
    let (open, changes) = edit.finish();
    for entry in &entries {
        assert!(open.has(entry) && changes.iter().any(|change| change == *entry));
    }
    assert_eq!(ask(&open, Question::Contacts(Id(7))), [1]);
    assert_eq!(open.setting(Id(7), "theme"), Ok(Some("1")));
    assert!(open.edit().unreadable_entries().is_empty());
}

#[test]
fn a_directory_on_demand_says_what_is_not_at_hand() {
    let question = Question::Contacts(Id(1));
    let mut edit = Directory::on_demand().edit();
    assert!(edit.directory.audience(&question).is_err());
    edit.answer(question.clone(), users(&[1, 2]));
    let (directory, changes) = edit.finish();
    assert_eq!(ask(&directory, question.clone()), [2]);
    assert!(changes.iter().eq([question.clone()]));
    assert!(directory.setting(Id(1), "theme").is_err());
    assert!(directory.groups(Id(1)).is_err());
    for other in [
        Question::WithContact(Id(2)),
        Question::Everyone,
        with("theme", "1"),
    ] {
        assert!(directory.audience(&other).is_err(), "{other:?}");
    }
}

#[test]
fn an_answer_stands_until_another_takes_its_place_or_it_is_taken_away() {
    let about = |user| [Question::Settings(user), Question::Groups(user)];
    let [settings_of, groups_of] = about(Id(1));
    let mut edit = Directory::on_demand().edit();
    let theme = settings(&[("theme", " 1 ")]).map(Answer::settings);
    edit.answer(settings_of.clone(), theme);
    let groups = Answer::groups(vec!["b".into(), "a".into(), "b".into()]);
    edit.answer(groups_of.clone(), Some(groups));
    edit.answer(with("theme", "1"), users(&[1]));
    let (before, _) = edit.finish();
    assert_eq!(before.setting(Id(1), "theme"), Ok(Some("1")));
    assert_eq!(before.groups(Id(1)).unwrap(), ["a".into(), "b".into()]);
    assert_eq!(ask(&before, with("theme", "1")), [1]);

    let mut edit = before.edit();
    let same = settings(&[("theme", "1")]).map(Answer::settings);
    edit.answer(settings_of, same);
    edit.answer(with("theme", "1"), users(&[2]));
    edit.answer(groups_of.clone(), None);
    let (after, changes) = edit.finish();
    assert!(changes.iter().eq([groups_of.clone(), with("theme", "1")]));
    assert_eq!(after.setting(Id(1), "theme"), Ok(Some("1")));
    assert_eq!(after.groups(Id(1)), Err(CacheMiss));
    assert_eq!(ask(&after, with("theme", "1")), [2]);
}

#[test]
fn answers_hold_the_ids_in_them_and_those_they_are_about() {
    let mut edit = Directory::on_demand().edit();
    edit.answer(Question::Contacts(Id(1)), users(&[2, 3]));
    edit.answer(Question::Groups(Id(4)), Some(Answer::groups(Vec::new())));
    edit.answer(Question::Everyone, users(&[5]));
    let (directory, _) = edit.finish();
    assert_eq!(directory.ids().iter().collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    let mut edit = directory.edit();
    edit.answer(Question::Contacts(Id(1)), None);
    let (directory, _) = edit.finish();
    assert_eq!(directory.ids().iter().collect::<Vec<_>>(), [4, 5]);
}
