//! A pipeline that several shards share: each shard has stateful enrichers of its own.

use presence_core::rules::Rules as _;
use presence_sandbox::OnFailure::LastGood;
use presence_sandbox::Pipeline;
use serde_json::json;

use crate::stage::{LIMITS, blueprint, configured, rule, stage};
use crate::world::World;

/// Lets `ada` come online. Returns the value that the enricher sets.
fn online(rules: &mut Pipeline) -> String {
    let enriched = rules.enrich(World::new(&json!({})).context());
    assert!(enriched.failures.is_empty(), "{:?}", enriched.failures);
    let (_, value) = enriched.changes.into_iter().next().unwrap();
    value.unwrap()
}

#[test]
fn each_shard_has_a_stateful_enricher_of_its_own_and_takes_its_state_along() {
    let sessions = || [configured("sessions", json!({}))];
    let before = blueprint(LIMITS, sessions(), None);
    let mut shared = before.pipeline();
    let (mut one, mut other) = (before.stateful_enrichers(), before.stateful_enrichers());
    assert_eq!(online(&mut shared.lend(&mut one)), "1");
    assert_eq!(online(&mut shared.lend(&mut one)), "2");
    assert_eq!(online(&mut shared.lend(&mut other)), "1");
    shared.release_unused();
    shared.release_unused();
    let after = blueprint(LIMITS, sessions(), Some(&before));
    let mut next = after.stateful_enrichers();
    next.take_over(&mut one);
    assert_eq!(online(&mut after.pipeline().lend(&mut next)), "3");
    // The other shard still uses the generation before.
    assert_eq!(online(&mut shared.lend(&mut other)), "2");
    assert_eq!(online(&mut shared.lend(&mut other)), "3");
}

#[test]
fn an_enricher_that_hands_over_no_state_is_shared_and_kept() {
    let blueprint = blueprint(LIMITS, [stage("counter")], None);
    let mut shared = blueprint.pipeline();
    let (mut one, mut other) = (
        blueprint.stateful_enrichers(),
        blueprint.stateful_enrichers(),
    );
    assert_eq!(online(&mut shared.lend(&mut one)), "1");
    shared.release_unused();
    shared.release_unused();
    assert_eq!(online(&mut shared.lend(&mut other)), "2");
}

#[test]
fn each_shard_notices_that_the_last_good_generation_has_taken_over() {
    let before = blueprint(LIMITS, [rule("contacts", json!({}), None)], None);
    let after = blueprint(
        LIMITS,
        [rule("trap", json!({}), Some(LastGood))],
        Some(&before),
    );
    let mut shared = after.pipeline();
    let (mut one, mut other) = (after.stateful_enrichers(), after.stateful_enrichers());
    for user in ["bob", "cid", "dan"] {
        let mut world = World::new(&json!({}));
        world.online(user, "{}");
        world.failure(&mut shared.lend(&mut one));
    }
    for own in [&mut one, &mut other] {
        assert!(shared.lend(own).is_replaced());
        assert!(shared.lend(own).take_replaced());
        assert!(!shared.lend(own).is_replaced());
        assert!(!shared.lend(own).take_replaced());
    }
}
