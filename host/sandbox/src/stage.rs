//! A stage: a plugin in its place in the chain.

use std::sync::Arc;

use serde_json::Value;
use wasmtime::component::InstancePre;

use crate::call::Call;
use crate::capability::{Capabilities, Capability};
use crate::health::PluginHealth;
use crate::manifest::{OnFailure, Role};
use crate::{LoadError, MemoryBudget, Plugin};

/// A plugin in its place in the chain.
#[derive(Clone)]
pub struct Stage {
    /// The plugin.
    pub plugin: Arc<Plugin>,
    /// Its configuration.
    pub config: Value,
    /// What the stage's entry grants the plugin, and what any plugin may be granted at most.
    granted: Capabilities,
    ceiling: Capabilities,
    /// The plugin, linked to what it is granted. `None` if it is granted all host functions.
    linked: Option<InstancePre<Call>>,
    /// What happens when the plugin has failed repeatedly.
    pub on_failure: OnFailure,
    /// Where the plugin comes from, in the words of its loader. This doesn't change what the
    /// stage does.
    pub origin: Arc<str>,
    /// The memory budget that its instances share with others.
    pub(crate) memory: MemoryBudget,
    /// The health of the plugin in this stage.
    pub health: Arc<PluginHealth>,
    /// The stage that takes over when this one has failed repeatedly, if there is one.
    pub(crate) last_good: Option<Arc<Stage>>,
    /// Why it may not run any more. It is then in quarantine until it may run again. `None` if it
    /// may run.
    withdrawn: Option<Arc<str>>,
}

impl Stage {
    /// A stage that is granted all host functions, and `widen` if `widen_granted`. If `on_failure`
    /// is `None`, the manifest decides, or else the role.
    pub fn new(
        plugin: Arc<Plugin>,
        config: Value,
        widen_granted: bool,
        on_failure: Option<OnFailure>,
    ) -> Self {
        let manifest = &plugin.manifest;
        let on_failure = on_failure
            .or(manifest.on_failure)
            .unwrap_or_else(|| manifest.role.on_failure());
        let granted = match widen_granted {
            true => Capabilities::HOST_FUNCTIONS.with(Capability::Widen),
            false => Capabilities::HOST_FUNCTIONS,
        };
        Self {
            plugin,
            config,
            granted,
            ceiling: Capabilities::ALL,
            linked: None,
            on_failure,
            origin: "unknown".into(),
            memory: MemoryBudget::default(),
            health: Arc::default(),
            last_good: None,
            withdrawn: None,
        }
    }

    /// The same stage with other grants. The plugin gets those that any plugin may have.
    #[must_use]
    pub fn with_grants(self, granted: Capabilities, ceiling: Capabilities) -> Self {
        // If linking fails, the plugin imports something that it isn't granted. `check` reports
        // that.
        let linked = match granted
            .intersection(ceiling)
            .intersection(Capabilities::HOST_FUNCTIONS)
        {
            Capabilities::HOST_FUNCTIONS => None,
            some => self.plugin.linked_to(some).ok(),
        };
        Self {
            granted,
            ceiling,
            linked,
            ..self
        }
    }

    /// The same stage, whose instances share this memory budget.
    #[must_use]
    pub fn with_memory_budget(self, memory: &MemoryBudget) -> Self {
        Self {
            memory: memory.clone(),
            ..self
        }
    }

    /// The plugin, linked to what it is granted.
    pub(crate) fn linked(&self) -> &InstancePre<Call> {
        self.linked.as_ref().unwrap_or(&self.plugin.linked)
    }

    /// The capabilities that the plugin gets if it asks for them.
    fn effective_grants(&self) -> Capabilities {
        self.granted.intersection(self.ceiling)
    }

    /// The same stage, with the origin of its plugin.
    #[must_use]
    pub fn with_origin(self, origin: Arc<str>) -> Self {
        Self { origin, ..self }
    }

    /// The plugin's name, version, origin and the beginning of its digest.
    pub fn line(&self) -> String {
        let Plugin {
            name,
            manifest,
            sha256,
            ..
        } = &*self.plugin;
        let digest = sha256.get(..12).unwrap_or_default();
        let (version, origin) = (&manifest.version, &self.origin);
        format!("{name} {version} ({origin}, sha256:{digest})")
    }

    pub(crate) fn is_of(&self, plugin: &Arc<Plugin>) -> bool {
        Arc::ptr_eq(&self.plugin, plugin)
    }

    /// Whether two stages do the same.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.is_of(&other.plugin)
            && self.config == other.config
            && self.effective_grants() == other.effective_grants()
            && self.on_failure == other.on_failure
    }

    /// A line that is equal for stages that do the same.
    pub(crate) fn fingerprint(&self) -> String {
        let Self {
            plugin,
            config,
            on_failure,
            withdrawn,
            ..
        } = self;
        let (sha256, may) = (&plugin.sha256, self.effective_grants());
        let is_withdrawn = withdrawn.is_some();
        format!("{sha256} {config} {may:?} {on_failure:?} {is_withdrawn}")
    }

    /// Why it may not run any more. `None` if it may run.
    pub fn withdrawn(&self) -> Option<&str> {
        self.withdrawn.as_deref()
    }

    /// Whether it is in quarantine: it failed on too many users, or may not run any more.
    pub fn in_quarantine(&self) -> bool {
        self.withdrawn.is_some() || self.health.in_quarantine()
    }

    /// The stage that takes over when this one has failed repeatedly, if it may run.
    pub(crate) fn fallback(&self) -> Option<&Arc<Self>> {
        let last_good = self.last_good.as_ref();
        last_good.filter(|it| it.withdrawn.is_none())
    }

    /// Whether its last good generation may not run any more.
    pub(crate) fn lost_fallback(&self) -> bool {
        self.last_good.is_some() && self.fallback().is_none()
    }

    /// Checks again whether this stage and its last good generation may run. Returns the same stage
    /// if nothing has changed.
    pub(crate) fn with_withdrawals(
        self: &Arc<Self>,
        why_not: &dyn Fn(&Self) -> Option<String>,
    ) -> Arc<Self> {
        // A grant that is taken away is taken from the last good generation, too.
        let granted = |last: &Self| join_errors(&last.not_granted(self.granted, self.ceiling));
        let last_good = self.last_good.as_ref();
        let last_good =
            last_good.map(|last| last.with_withdrawal(why_not(last).or_else(|| granted(last))));
        let updated = self.with_withdrawal(why_not(self));
        let is_same = match (&last_good, &updated.last_good) {
            (Some(last), Some(before)) => Arc::ptr_eq(last, before),
            _ => true,
        };
        match is_same {
            true => updated,
            false => Arc::new(Self {
                last_good,
                ..Self::clone(&updated)
            }),
        }
    }

    fn with_withdrawal(self: &Arc<Self>, why: Option<String>) -> Arc<Self> {
        match self.withdrawn.as_deref() == why.as_deref() {
            true => Arc::clone(self),
            false => Arc::new(Self {
                withdrawn: why.map(Arc::from),
                ..Self::clone(self)
            }),
        }
    }

    /// Whether both stages are withdrawn for the same reason, or neither is, and both or neither
    /// have lost their last good generation.
    pub(crate) fn is_withdrawn_as(&self, other: &Self) -> bool {
        let both = |it: &Self| (it.withdrawn.clone(), it.lost_fallback());
        both(self) == both(other)
    }

    /// Describes the capabilities that the plugin asks for and wouldn't get with these grants.
    /// `granted` is what its entry grants, and `ceiling` what any plugin may have. `None` if it
    /// would get all.
    pub fn why_not_granted(
        &self,
        granted: Option<Capabilities>,
        ceiling: Capabilities,
    ) -> Option<String> {
        join_errors(&self.not_granted(granted.unwrap_or(self.granted), ceiling))
    }

    fn not_granted(&self, granted: Capabilities, ceiling: Capabilities) -> Vec<LoadError> {
        let plugin = || self.plugin.name.to_string();
        let asks = self.plugin.asks;
        let refused = asks.difference(granted);
        let refused = refused.iter().map(|it| LoadError::NotGranted {
            plugin: plugin(),
            grant: it.as_str(),
        });
        let beyond = asks.intersection(granted).difference(ceiling);
        let beyond = beyond.iter().map(|it| LoadError::NotAllowed {
            plugin: plugin(),
            grant: it.as_str(),
        });
        refused.chain(beyond).collect()
    }

    /// Collects what is wrong with its grants and its place. `redacted` is whether a redactor
    /// stands before it.
    pub(crate) fn check(&self, redacted: &mut bool, problems: &mut Vec<LoadError>) {
        let manifest = &self.plugin.manifest;
        let plugin = || self.plugin.name.to_string();
        let unknown = |name: &&String| Capability::from_manifest(name).is_none();
        let unknown = manifest.capabilities.iter().filter(unknown);
        problems.extend(unknown.map(|name| LoadError::Link {
            plugin: plugin(),
            what: format!("it asks for `{name}`, which this host doesn't give"),
        }));
        problems.extend(self.not_granted(self.granted, self.ceiling));
        let misplaced = match manifest.role {
            Role::Filter if *redacted => {
                Some("is a filter, and stands after the redactor: put it before")
            }
            Role::Redactor if std::mem::replace(redacted, true) => {
                Some("is a second redactor: there can be one")
            }
            _ => None,
        };
        problems.extend(misplaced.map(|what| LoadError::Chain {
            plugin: plugin(),
            what,
        }));
    }

    /// Takes the running stage that this one replaces out of `running`, so that it is replaced
    /// once: a plugin may be in a chain more than once.
    pub(crate) fn take_replaced<'a>(
        &self,
        running: &mut Vec<&'a Arc<Self>>,
    ) -> Option<&'a Arc<Self>> {
        let same = running.iter().position(|stage| self.is_same(stage));
        let alike = || running.iter().position(|stage| self.can_replace(stage));
        let place = same.or_else(alike)?;
        Some(running.remove(place))
    }

    /// Whether one stage can replace the other: the plugin's name and role are the same.
    pub(crate) fn can_replace(&self, other: &Self) -> bool {
        self.plugin.name == other.plugin.name
            && self.plugin.manifest.role == other.plugin.manifest.role
    }

    /// Replaces a running stage. If it does the same within the same limits, it shares the health.
    /// Its fallback is the running stage if that one works and differs, or else the fallback of the
    /// running stage.
    pub(crate) fn inherit_from(&mut self, running: Option<&Arc<Self>>, within_same_limits: bool) {
        let Some(running) = running else {
            return;
        };
        let is_same = self.is_same(running);
        self.health = match is_same && within_same_limits {
            true => Arc::clone(&running.health),
            false => Arc::new(PluginHealth::with_counters_of(&running.health)),
        };
        if self.on_failure != OnFailure::LastGood {
            return;
        }
        self.last_good = match !is_same && !running.in_quarantine() {
            true => Some(Arc::new(running.without_fallback())),
            false => running.last_good.clone(),
        };
    }

    /// Gives the stage a circuit breaker of its own. The counters of calls are still shared.
    pub(crate) fn use_own_breaker(&mut self) {
        self.health = Arc::new(PluginHealth::with_counters_of(&self.health));
    }

    /// The same stage without a fallback, and with a circuit breaker of its own.
    fn without_fallback(&self) -> Self {
        Self {
            last_good: None,
            health: Arc::new(PluginHealth::with_counters_of(&self.health)),
            ..self.clone()
        }
    }
}

/// All errors in one line. `None` if there are none.
fn join_errors(errors: &[LoadError]) -> Option<String> {
    let errors: Vec<_> = errors.iter().map(ToString::to_string).collect();
    (!errors.is_empty()).then(|| errors.join("; "))
}
