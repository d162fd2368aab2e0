//! Conflicts between `[[tenant]]` sections: two with one name, or with the same subjects.
//!
//! Running tenants take precedence over the order of the sections. A running tenant keeps its
//! subjects if its section still says so. It also keeps them if its section is refused, since it
//! then goes on with its last good section. So a section that claims the subjects of a running
//! tenant is refused. Among tenants that don't run, the first section gets the subjects.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::Config;
use super::problem::{Place, Problem, Problems};
use super::tenants::TenantSection;

/// Refuses sections that conflict with others. The first `of_file` sections are from the file, and
/// the rest from the store. `serving` has the configurations of the running tenants.
pub(super) fn refuse(tenants: &mut [TenantSection], of_file: usize, serving: &[Arc<Config>]) {
    refuse_second_names(tenants, of_file);
    let serving: HashMap<_, _> = serving.iter().map(|it| (name_of(it), &**it)).collect();
    // A tenant whose section is refused goes on with its last good section, which may conflict with
    // further sections. So this is repeated until nothing is refused.
    while let Some(refused) = conflicts(tenants, &serving) {
        for (at, mut problems) in refused {
            let Some(section) = tenants.get_mut(at) else {
                continue;
            };
            if let Err(before) = &section.config {
                problems.extend(before.iter().cloned());
            }
            if let Some(problems) = Problems::found(problems) {
                section.config = Err(problems);
            }
        }
    }
}

fn refuse_second_names(tenants: &mut [TenantSection], of_file: usize) {
    let mut names: HashMap<String, Place> = HashMap::new();
    for (at, section) in tenants.iter_mut().enumerate() {
        let Some(first) = names.get(&section.name) else {
            names.insert(section.name.clone(), section.place.clone());
            continue;
        };
        let second = Problem {
            place: section.place.clone(),
            what: format!("the tenant `{}` is there already, at {first}", section.name),
            fix: "give this one another `name`".into(),
        };
        // The store has each name once, so the first section with the name is in the file.
        section.is_shadowed = at >= of_file;
        let before = section.config.as_ref().err().cloned();
        let before = before.iter().flat_map(Problems::iter).cloned();
        let problems = std::iter::once(second).chain(before).collect();
        if let Some(problems) = Problems::found(problems) {
            section.config = Err(problems);
        }
    }
}

/// A tenant that has subjects, or claims them.
struct Claim<'a> {
    /// The name of the tenant.
    name: &'a str,
    /// The number and the place of its section. `None` if the tenant goes on without its section.
    section: Option<(usize, &'a Place)>,
    config: &'a Config,
    /// The configuration with which it runs now. `None` if it doesn't run.
    running: Option<&'a Config>,
}

impl Claim<'_> {
    /// Whether the tenant already runs with these subjects.
    fn has_subjects(&self) -> bool {
        self.section.is_none()
            || self.is_as_running(|it| it.tenant.prefix == self.config.tenant.prefix)
    }

    /// Whether the tenant already sends replies below this prefix.
    fn has_replies(&self, below: &String) -> bool {
        self.section.is_none() || self.is_as_running(|it| it.nats.reply_prefixes.contains(below))
    }

    fn is_as_running(&self, is_same: impl Fn(&Config) -> bool) -> bool {
        let running = self.running.filter(|it| same_account(it, self.config));
        running.is_some_and(is_same)
    }

    /// Names the tenant, and where its section is.
    fn owner(&self) -> String {
        match self.section {
            Some((_, place)) => format!("`{}`, at {place}", self.name),
            None => format!("`{}`, which goes on with its last good section", self.name),
        }
    }
}

/// The sections that conflict with others, by their number, each with its problems. `None` if there
/// is no conflict.
fn conflicts(
    tenants: &[TenantSection],
    serving: &HashMap<&str, &Config>,
) -> Option<Vec<(usize, Vec<Problem>)>> {
    let claims = claims(tenants, serving);
    let mut by_prefix: HashMap<Option<&str>, Vec<&Claim<'_>>> = HashMap::new();
    for claim in &claims {
        let prefix = claim.config.tenant.prefix.as_deref();
        by_prefix.entry(prefix).or_default().push(claim);
    }
    let mut refused: HashMap<usize, Vec<Problem>> = HashMap::new();
    let mut refuse = |claim: &Claim<'_>, what: String, fix: &str| {
        if let Some((section, place)) = claim.section {
            refused.entry(section).or_default().push(Problem {
                place: place.clone(),
                what,
                fix: fix.into(),
            });
        }
    };
    for same in by_prefix.values().filter(|same| same.len() > 1) {
        let (having, others): (Vec<&Claim<'_>>, Vec<_>) =
            same.iter().copied().partition(|it| it.has_subjects());
        let mut taken: Vec<&Claim<'_>> = Vec::new();
        for claim in having.into_iter().chain(others) {
            let owner = taken
                .iter()
                .find(|it| same_account(claim.config, it.config));
            let Some(owner) = owner else {
                taken.push(claim);
                continue;
            };
            let what = format!(
                "the tenant `{}` would have the subjects of {}",
                claim.name,
                owner.owner()
            );
            refuse(claim, what, "give this one another `prefix`");
        }
    }
    for claim in &claims {
        for below in &claim.config.nats.reply_prefixes {
            let first = below.split('.').next();
            let reached = by_prefix.get(&first).into_iter().flatten();
            let reached = reached.filter(|it| it.name != claim.name);
            for other in reached.filter(|it| same_account(claim.config, it.config)) {
                if claim.has_replies(below) && !other.has_subjects() {
                    let what = format!(
                        "the tenant `{}` would have subjects where the tenant {} sends replies: its \
                         `reply_prefixes` holds `{below}`",
                        other.name,
                        claim.owner()
                    );
                    refuse(other, what, "give this one another `prefix`");
                    continue;
                }
                let what = format!(
                    "`reply_prefixes` of the tenant `{}` holds `{below}`, where the subjects of the \
                     tenant `{}` are",
                    claim.name, other.name
                );
                refuse(
                    claim,
                    what,
                    "take it out, or give that tenant another `prefix`",
                );
            }
        }
    }
    let mut refused: Vec<_> = refused.into_iter().collect();
    refused.sort_unstable_by_key(|(section, _)| *section);
    (!refused.is_empty()).then_some(refused)
}

/// The claims that follow from these sections: those of tenants that go on without their section
/// first, and then those of the valid sections in their order.
fn claims<'a>(
    tenants: &'a [TenantSection],
    serving: &HashMap<&'a str, &'a Config>,
) -> Vec<Claim<'a>> {
    let mut sections: HashMap<&str, Vec<&TenantSection>> = HashMap::new();
    for section in tenants.iter().filter(|it| !it.is_shadowed) {
        sections.entry(&section.name).or_default().push(section);
    }
    let is_any_unnamed = tenants.iter().any(|it| !it.is_named);
    let goes_on = |name: &str| match sections.get(name).map_or(&[][..], Vec::as_slice) {
        // A section without a usable name may be this tenant's: a typing error must not end the
        // tenant.
        [] => is_any_unnamed,
        [section] => section.config.is_err() && !section.paused,
        // Several sections have this name, and it is unknown which one is meant.
        _ => true,
    };
    let going_on: HashSet<&str> = serving.keys().copied().filter(|it| goes_on(it)).collect();
    let going_on_by = serving.iter().filter(|(name, _)| going_on.contains(*name));
    let mut claims: Vec<_> = going_on_by
        .map(|(name, config)| Claim {
            name,
            section: None,
            config,
            running: None,
        })
        .collect();
    let sections = tenants.iter().enumerate();
    let sections = sections.filter(|(_, section)| !going_on.contains(&*section.name));
    claims.extend(sections.filter_map(|(at, section)| {
        Some(Claim {
            name: &section.name,
            section: Some((at, &section.place)),
            config: section.config.as_ref().ok()?,
            // A tenant that is to pause gives up its subjects.
            running: serving
                .get(&*section.name)
                .copied()
                .filter(|_| !section.paused),
        })
    }));
    claims
}

fn name_of(config: &Config) -> &str {
    config.tenant.name.as_deref().unwrap_or_default()
}

/// Whether two tenants are known to use the same account of the same broker. Tenants without an
/// account of their own use that of the process.
fn same_account(one: &Config, other: &Config) -> bool {
    let is_own = one.tenant.own_account || other.tenant.own_account;
    !is_own || one.nats.url == other.nats.url && one.nats.auth == other.nats.auth
}
