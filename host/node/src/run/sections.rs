//! Carries out what the `[[tenant]]` sections say about each tenant.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use presence_config::escape::brief;
use presence_config::{Config, Place, TenantSection};
use tokio::sync::watch;
use tracing::{Instrument as _, info_span};

use super::tenants::{ConfigFollower, DesiredState, RunningTenant, state_after_stop};

impl ConfigFollower {
    /// Puts these sections in force, and ends the tenants that have none any more.
    pub(super) fn want(&mut self, sections: &[TenantSection]) {
        let unnamed = sections.iter().find(|it| !it.is_named);
        let mut places: BTreeMap<&str, Vec<&Place>> = BTreeMap::new();
        for section in sections.iter().filter(|it| !it.is_shadowed) {
            let of_name = places.entry(&section.name).or_default();
            of_name.push(&section.place);
        }
        let begun = self.begun.keys();
        let gone = begun.filter(|name| !places.contains_key(&***name));
        let gone: Vec<_> = gone.cloned().collect();
        for name in gone {
            let is_named = self.begun.get(&name).is_some_and(|it| it.is_named);
            if let Some(section) = unnamed.filter(|_| is_named) {
                // A mistyped name must not end a tenant.
                let why = format!(
                    "no section has this name, and the one at {} has none that can be used: it \
                     goes on as it was until each section has a name",
                    section.place
                );
                if self.shared.statuses.reject_config(&name, &why) {
                    tracing::error!(tenant = name, "{why}");
                }
                continue;
            }
            if let Some(tenant) = self.begun.remove(&name) {
                let of_fleet = match &*tenant.wanted.borrow() {
                    DesiredState::Serve(config, _) => config.fleet.enabled,
                    _ => false,
                };
                let stays = state_after_stop(!of_fleet);
                tracing::info!(tenant = name, "removed: {stays}");
                tenant.wanted.send_replace(DesiredState::End);
                self.ending.insert(name, tenant.life);
            }
        }
        let mut seen = BTreeSet::new();
        let mut twice = BTreeSet::new();
        for section in sections {
            let wanted = self.wanted(section);
            if !seen.insert(&section.name) {
                // An earlier section has the name.
                let place = format!("{} ({})", section.name, section.place);
                if let Err(problems) = &section.config {
                    let why = brief(&problems.to_string());
                    self.shared.statuses.note_section(&place, section);
                    if self.shared.statuses.note_refused(&place, &why) {
                        for line in why.lines() {
                            tracing::error!("a tenant does not start: {line}");
                        }
                    }
                    twice.insert(place);
                }
                continue;
            }
            let of_name = places.get(&*section.name).map_or(&[][..], Vec::as_slice);
            if let (Some(tenant), [_, _, ..]) = (self.begun.get(&section.name), of_name)
                && tenant.is_valid()
            {
                self.keep_as_it_was(&section.name, of_name);
                continue;
            }
            self.shared.statuses.note_section(&section.name, section);
            if let (DesiredState::Pause, Err(problems)) = (&wanted, &section.config) {
                let (tenant, why) = (&section.name, brief(&problems.to_string()));
                if self.shared.statuses.reject_config(tenant, &why) {
                    for line in why.lines() {
                        tracing::error!(tenant, "its section is not taken, and it pauses: {line}");
                    }
                }
            }
            match self.begun.get(&section.name) {
                Some(tenant) if tenant.keeps(&wanted) => {
                    let DesiredState::Refuse(why) = wanted else {
                        continue;
                    };
                    if self.shared.statuses.reject_config(&section.name, &why) {
                        let tenant = &section.name;
                        for line in why.lines() {
                            tracing::error!(
                                tenant,
                                "its section is not taken, and it goes on as it was: {line}"
                            );
                        }
                    }
                }
                Some(tenant) => {
                    tenant.wanted.send_if_modified(|now| {
                        let is_other = !now.is_same(&wanted);
                        if is_other {
                            *now = wanted;
                            self.shared.statuses.set_changing(&section.name, true);
                        }
                        is_other
                    });
                }
                None => {
                    let (orders, wanted) = watch::channel(wanted);
                    let name = section.name.clone();
                    let span = info_span!("tenant", name);
                    let before = self.ending.remove(&name);
                    let life = Arc::clone(&self.shared).run_tenant(name, wanted, before);
                    let life = life.instrument(span);
                    let begun = RunningTenant {
                        is_named: section.is_named,
                        wanted: orders,
                        life: self.shared.tasks.spawn_ending("tenant", life),
                    };
                    self.begun.insert(section.name.clone(), begun);
                }
            }
        }
        let begun = &self.begun;
        let is_wanted = |name: &str| begun.contains_key(name) || twice.contains(name);
        self.shared.statuses.retain(is_wanted);
    }

    /// The configurations of the tenants that should be served.
    pub(super) fn serving(&self) -> Arc<[Arc<Config>]> {
        let begun = self.begun.values();
        let serving = begun.filter_map(|tenant| match &*tenant.wanted.borrow() {
            DesiredState::Serve(config, _) => Some(Arc::clone(config)),
            _ => None,
        });
        serving.collect()
    }

    /// Lets a tenant go on as it was: several sections have its name, and it is unclear which one
    /// counts.
    fn keep_as_it_was(&self, tenant: &str, places: &[&Place]) {
        let places: Vec<_> = places.iter().map(ToString::to_string).collect();
        let why = format!(
            "{} sections have this name, at {}: it goes on as it was until one alone has it",
            places.len(),
            places.join(" and ")
        );
        if self.shared.statuses.reject_config(tenant, &why) {
            tracing::error!(tenant, "{why}");
        }
    }

    fn wanted(&self, section: &TenantSection) -> DesiredState {
        match &section.config {
            // A paused section counts even if something else in it is wrong.
            _ if section.paused => DesiredState::Pause,
            Err(problems) => DesiredState::Refuse(brief(&problems.to_string())),
            Ok(config) => {
                let mut config = Config::clone(config);
                config.keep_process_values(&self.shared.config, section.own_account);
                DesiredState::Serve(Arc::new(config), section.own_account)
            }
        }
    }
}

impl RunningTenant {
    /// Whether the last wanted state was valid.
    fn is_valid(&self) -> bool {
        !matches!(&*self.wanted.borrow(), DesiredState::Refuse(_))
    }

    /// Whether the tenant goes on as it was, because the newly wanted state is invalid.
    fn keeps(&self, wanted: &DesiredState) -> bool {
        let is_served = matches!(&*self.wanted.borrow(), DesiredState::Serve(..));
        is_served && matches!(wanted, DesiredState::Refuse(_))
    }
}

impl DesiredState {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Serve(one, own), Self::Serve(other, other_own)) => {
                own == other_own && one == other
            }
            (Self::Pause, Self::Pause) | (Self::End, Self::End) => true,
            (Self::Refuse(one), Self::Refuse(other)) => one == other,
            _ => false,
        }
    }
}
