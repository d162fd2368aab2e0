//! The pipeline: enrichers, filters and a redactor, in order.

use std::sync::Arc;

use presence_core::audience::Audience;
use presence_core::event::{Change, Event};
use presence_core::rules::{Context, Decision, Enriched, Failure, Reads, Rendition, Rules};
use serde_json::Value;
use wasmtime::format_err;

use crate::api::{ChangeResult, EventArg, Kind, RenditionResult};
use crate::call::Call;
use crate::instance::Instance;
use crate::manifest::{Effect, Role};
use crate::{Engine, LoadError, Plugin, self_test};

/// A plugin in its place in the chain.
#[derive(Clone)]
pub struct Stage {
    /// The plugin.
    pub plugin: Arc<Plugin>,
    /// Its configuration.
    pub config: Value,
    /// Whether it may add viewers.
    pub widen_granted: bool,
}

/// What every call is held to. A plugin may ask for less, never for more.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Fuel a call: about one unit an instruction.
    pub fuel: u64,
    /// Memory an instance, in bytes.
    pub memory_bytes_max: usize,
    /// Time a call, in milliseconds. None where time isn't to matter.
    pub deadline_ms: Option<u64>,
}

/// A chain that has been checked, and can be instantiated once a worker.
pub struct Blueprint {
    stages: Vec<Stage>,
    limits: Limits,
}

type Enricher = Instance<(EventArg,), (Vec<ChangeResult>,)>;

impl Blueprint {
    /// Checks grants and order, and has every plugin take its configuration
    /// and pass its self-tests.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn prepare(_: &Engine, stages: Vec<Stage>, limits: Limits) -> Result<Self, LoadError> {
        let mut redacted = false;
        for stage in &stages {
            let manifest = &stage.plugin.manifest;
            let plugin = stage.plugin.name.to_string();
            if let Some(capability) = manifest.capabilities.first() {
                let what = format!("it asks for `{capability}`, which this host doesn't give");
                return Err(LoadError::Link { plugin, what });
            }
            if manifest.effect == Effect::Widen && !stage.widen_granted {
                return Err(LoadError::NotGranted { plugin });
            }
            match manifest.role {
                Role::Filter if redacted => {
                    return Err(LoadError::Chain {
                        plugin,
                        what: "is a filter, and stands after the redactor: put it before",
                    });
                }
                Role::Redactor if redacted => {
                    return Err(LoadError::Chain {
                        plugin,
                        what: "is a second redactor: there can be one",
                    });
                }
                Role::Redactor => redacted = true,
                Role::Filter | Role::Enricher => {}
            }
            self_test::run(stage, limits)?;
        }
        let blueprint = Self { stages, limits };
        blueprint.instantiate()?;
        Ok(blueprint)
    }

    /// Instances of all stages, for one worker.
    ///
    /// # Errors
    /// If one of them doesn't take its configuration.
    pub fn instantiate(&self) -> Result<Pipeline, LoadError> {
        Pipeline::new(&self.stages, self.limits)
    }
}

/// A worker's instances.
pub struct Pipeline {
    enrichers: Vec<Enricher>,
    filters: Vec<(Effect, Filter)>,
    redactor: Option<Redactor>,
    no_keys: Arc<[Box<str>]>,
    last_keys: Arc<[Box<str>]>,
}

type Filter = Instance<(EventArg, u32), (u32,)>;
type Redactor = Instance<(EventArg, u32), (Vec<RenditionResult>,)>;

impl Pipeline {
    pub(crate) fn new(stages: &[Stage], limits: Limits) -> Result<Self, LoadError> {
        let mut pipeline = Self {
            enrichers: Vec::new(),
            filters: Vec::new(),
            redactor: None,
            no_keys: Arc::new([]),
            last_keys: Arc::new([]),
        };
        for Stage { plugin, config, .. } in stages {
            match plugin.manifest.role {
                Role::Enricher => {
                    pipeline
                        .enrichers
                        .push(Instance::new(plugin, "enrich", config, limits)?);
                }
                Role::Filter => {
                    let filter = Instance::new(plugin, "filter", config, limits)?;
                    pipeline.filters.push((plugin.manifest.effect, filter));
                }
                Role::Redactor => {
                    pipeline.redactor = Some(Instance::new(plugin, "redact", config, limits)?);
                }
            }
        }
        Ok(pipeline)
    }

    /// Passes an audience through the filters.
    pub(crate) fn filter(
        &mut self,
        context: Context<'_>,
        mut audience: Audience,
        reads: &mut Seen,
    ) -> Result<Audience, Failure> {
        for (effect, filter) in &mut self.filters {
            let before = audience;
            let after = filter.call(
                context,
                |call| Ok((argument(context.event), call.put(before.clone())?)),
                |call, (token,)| {
                    reads.add(call);
                    Ok(call.audience(token)?.clone())
                },
            )?;
            audience = match effect {
                Effect::Widen => after,
                Effect::Narrow if after.is_subset(&before) => after,
                Effect::Narrow => after.intersection(&before),
            };
        }
        Ok(audience)
    }

    /// Splits an audience into renditions.
    pub(crate) fn split(
        &mut self,
        context: Context<'_>,
        audience: &Audience,
        reads: &mut Seen,
    ) -> Result<Vec<Rendition>, Failure> {
        let Some(redactor) = &mut self.redactor else {
            let keys = Arc::clone(&self.no_keys);
            return Ok(vec![Rendition {
                audience: audience.clone(),
                keys,
                last_seen: true,
            }]);
        };
        let last_keys = &mut self.last_keys;
        redactor.call(
            context,
            |call| Ok((argument(context.event), call.put(audience.clone())?)),
            |call, (renditions,)| {
                reads.add(call);
                renditions
                    .into_iter()
                    .map(|rendition| {
                        let part = call.audience(rendition.audience)?;
                        let part = if part.same(audience) {
                            part.clone()
                        } else {
                            part.intersection(audience)
                        };
                        Ok(Rendition {
                            audience: part,
                            keys: share(last_keys, &rendition.keys),
                            last_seen: rendition.last_seen,
                        })
                    })
                    .collect()
            },
        )
    }
}

impl Rules for Pipeline {
    fn enrich(&mut self, context: Context<'_>) -> Enriched {
        let mut enriched = Enriched::default();
        let mut event = Arc::clone(context.event);
        for enricher in &mut self.enrichers {
            let context = Context {
                event: &event,
                ..context
            };
            let changes = enricher.call(
                context,
                |_| Ok((argument(context.event),)),
                |_, (changes,)| {
                    let json = |change: ChangeResult| {
                        let value = change.value.map(crate::api::Value::into_json).transpose();
                        let value = value.map_err(|error| {
                            format_err!("set `{}` to what is not JSON: {error}", change.key)
                        })?;
                        Ok((change.key, value))
                    };
                    changes
                        .into_iter()
                        .map(json)
                        .collect::<wasmtime::Result<Vec<_>>>()
                },
            );
            match changes {
                Ok(changes) if changes.is_empty() => {}
                Ok(changes) => {
                    let mut metadata = event.metadata.edit();
                    for (key, value) in &changes {
                        match value {
                            Some(value) => metadata.set(key, value, true),
                            None => metadata.remove(key),
                        }
                    }
                    event = Arc::new(Event {
                        metadata: metadata.build(),
                        ..Event::clone(&event)
                    });
                    enriched.changes.extend(changes);
                }
                Err(failure) => enriched.failures.push(failure),
            }
        }
        enriched
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        let mut seen = Seen::default();
        let renditions = self
            .filter(context, Audience::nobody(), &mut seen)
            .and_then(|audience| self.split(context, &audience, &mut seen));
        match renditions {
            // What isn't at hand may well be why a component failed.
            _ if !seen.not_at_hand.is_empty() => Decision::NotAtHand(seen.not_at_hand),
            Ok(renditions) => Decision::Decided(renditions, seen.reads),
            Err(failure) => Decision::Failed(failure),
        }
    }

    fn redact(&mut self, context: Context<'_>, told: &Audience) -> Result<Vec<Rendition>, Failure> {
        self.split(context, told, &mut Seen::default())
    }
}

/// What the calls of one decision have read, and asked in vain.
#[derive(Default)]
pub(crate) struct Seen {
    reads: Reads,
    not_at_hand: std::collections::BTreeSet<presence_core::directory::Question>,
}

impl Seen {
    fn add(&mut self, call: &mut Call) {
        let reads = std::mem::take(&mut call.reads);
        self.reads.questions.extend(reads.questions);
        self.reads.keys.extend(reads.keys);
        self.reads.all_metadata |= reads.all_metadata;
        self.reads.timestamp |= reads.timestamp;
        self.reads.time |= reads.time;
        let again = [self.reads.reconsider_at, reads.reconsider_at];
        self.reads.reconsider_at = again.into_iter().flatten().min();
        self.not_at_hand.append(&mut call.not_at_hand);
    }
}

fn argument(event: &Event) -> EventArg {
    let kind = match event.change {
        Change::Online => Kind::Online,
        Change::Offline { .. } => Kind::Offline,
    };
    EventArg {
        kind,
        user: event.name.as_str().to_owned(),
    }
}

/// A list of keys, shared with the last one where they are the same.
fn share(last: &mut Arc<[Box<str>]>, keys: &[String]) -> Arc<[Box<str>]> {
    if !last
        .iter()
        .map(|key| &**key)
        .eq(keys.iter().map(String::as_str))
    {
        *last = keys.iter().map(|key| key.as_str().into()).collect();
    }
    Arc::clone(last)
}
