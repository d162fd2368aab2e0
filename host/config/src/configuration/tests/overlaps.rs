//! Sections that conflict, on a node that serves tenants already.

use super::*;

/// The sections of a file, on a node that serves these tenants.
fn sections(text: &str, serving: &[Arc<Config>]) -> Vec<TenantSection> {
    let text = Text::of(text);
    let node = NodeTenants {
        stored: &[],
        serving,
    };
    let path = Some(Path::new("node.toml"));
    let config = Config::parse_with(path, Some(&text), std::iter::empty(), node).unwrap();
    config.tenants.unwrap().to_vec()
}

/// The tenants that are served with the valid sections of a file.
fn serving(text: &str) -> Vec<Arc<Config>> {
    let sections = sections(text, &[]).into_iter();
    sections.filter_map(|it| it.config.ok()).collect()
}

/// The problems of each section after an edit.
fn edited(before: &str, after: &str) -> Vec<String> {
    let sections = sections(after, &serving(before)).into_iter();
    sections
        .map(|it| {
            it.config
                .err()
                .map_or_else(String::new, |it| it.to_string())
        })
        .collect()
}

/// A section.
fn tenant(name: &str, prefix: &str) -> String {
    format!("[[tenant]]\nname = '{name}'\nprefix = '{prefix}'\n")
}

fn both() -> String {
    tenant("a", "pa") + &tenant("b", "pb")
}

#[test]
fn a_running_tenant_keeps_its_subjects_whichever_section_stands_first() {
    let taken = "the tenant `a` would have the subjects of `b`, at node.toml:";
    let wrong = edited(&both(), &(tenant("a", "pb") + &tenant("b", "pb")));
    assert!(wrong[0].contains(taken) && wrong[1].is_empty(), "{wrong:?}");
    let wrong = edited(&both(), &(tenant("b", "pb") + &tenant("a", "pb")));
    assert!(wrong[0].is_empty() && wrong[1].contains(taken), "{wrong:?}");
    // It keeps them from a new section as well.
    let new = tenant("new", "pb") + &both();
    let wrong = edited(&both(), &new);
    assert!(
        wrong[0].contains("would have the subjects of `b`"),
        "{wrong:?}"
    );
    assert!(wrong[1].is_empty() && wrong[2].is_empty(), "{wrong:?}");
    // If no tenant runs, the order decides.
    let wrong = edited("tenant = []\n", &new);
    assert!(wrong[0].is_empty() && wrong[1].is_empty(), "{wrong:?}");
    assert!(
        wrong[2].contains("would have the subjects of `new`"),
        "{wrong:?}"
    );
}

#[test]
fn prefixes_change_places_and_go_on_from_one_that_ends() {
    let swapped = tenant("a", "pb") + &tenant("b", "pa");
    assert_eq!(edited(&both(), &swapped), ["", ""]);
    let moved = tenant("new", "pa") + &tenant("a", "pb") + &tenant("b", "pc");
    assert_eq!(edited(&both(), &moved), ["", "", ""]);
    assert_eq!(edited(&both(), &tenant("a", "pb")), [""], "b ends");
    let paused = tenant("a", "pb") + &tenant("b", "pb") + "paused = true\n";
    let wrong = edited(&both(), &paused);
    assert!(wrong[0].is_empty(), "b gives its subjects up: {wrong:?}");
}

#[test]
fn what_goes_on_with_its_last_good_section_keeps_its_subjects() {
    // The section of b is broken, so b keeps its subjects from a, and a keeps its own from a new
    // one.
    let broken = tenant("new", "pa") + &tenant("a", "pb") + &tenant("b", "pc") + "more = 1\n";
    let wrong = edited(&both(), &broken);
    let last = "which goes on with its last good section";
    for (at, of) in [(0, "`a`"), (1, "`b`")] {
        let part = format!("would have the subjects of {of}, {last}");
        assert!(wrong[at].contains(&part), "{wrong:?}");
    }
    assert!(wrong[2].contains("unknown key `more`"), "{wrong:?}");
    // The same holds for a tenant whose section can't be told from others in the file.
    for mistaken in [
        tenant("a", "pb") + &tenant("b b", "pc"),
        tenant("a", "pb") + &tenant("b", "pc") + &tenant("b", "pd"),
    ] {
        let wrong = edited(&both(), &mistaken);
        assert!(wrong[0].contains(last), "{wrong:?}");
    }
}

#[test]
fn replies_of_a_running_tenant_reach_no_new_one() {
    let replies = "[tenant.nats]\nreply_prefixes = ['_INBOX.', 'pb.']\n";
    let alone = tenant("a", "pa") + replies;
    let wrong = edited(&alone, &(alone.clone() + &tenant("b", "pb")));
    assert!(wrong[0].is_empty(), "{wrong:?}");
    let part = "would have subjects where the tenant `a`, at node.toml:1:1 sends replies";
    assert!(wrong[1].contains(part), "{wrong:?}");
    let wrong = edited(&both(), &(alone + &tenant("b", "pb")));
    assert!(
        wrong[0].contains("where the subjects of the tenant `b` are"),
        "{wrong:?}"
    );
    assert!(wrong[1].is_empty(), "{wrong:?}");
}
