//! One plugin outside of any pipeline: for its self-tests, and for authors who measure it.

use std::sync::Arc;

use presence_core::audience::Audience;
use presence_core::metadata::MetadataChange;
use presence_core::rules::{Context, Failure, Rendition, Rules as _};
use serde_json::Value;

use crate::call::Observations;
use crate::instance::CallCost;
use crate::manifest::Role;
use crate::{Limits, LoadError, Pipeline, Plugin, Stage};

/// An instance of a plugin, called as a pipeline calls it.
pub struct TestInstance {
    pipeline: Pipeline,
    role: Role,
    reconsider_at: Option<u64>,
}

/// What a plugin answers, by its role.
#[derive(Debug)]
pub enum Answer {
    /// A filter's: who may see the event.
    Audience(Audience),
    /// A redactor's: what each part of the audience gets.
    Renditions(Vec<Rendition>),
    /// An enricher's: what it changes in the metadata.
    Changes(Vec<MetadataChange>),
}

impl TestInstance {
    /// Makes and configures an instance. It is granted `widen` if its manifest asks for it, since
    /// whoever tries a plugin allows it this.
    ///
    /// # Errors
    /// If the plugin can't be started, or refuses its configuration.
    pub fn new(plugin: &Arc<Plugin>, config: &Value, limits: Limits) -> Result<Self, LoadError> {
        let stage = Stage::new(Arc::clone(plugin), config.clone(), true, None);
        let mut pipeline = Pipeline::new(&[Arc::new(stage)], limits);
        pipeline.make()?;
        Ok(Self {
            pipeline,
            role: plugin.manifest.role,
            reconsider_at: None,
        })
    }

    /// The same, with the longer deadline of loading for its calls.
    pub(crate) fn with_load_limits(self) -> Self {
        Self {
            pipeline: self.pipeline.with_load_limits(),
            ..self
        }
    }

    /// Calls the plugin. `audience` is the audience so far for a filter, and the final one for a
    /// redactor.
    ///
    /// # Errors
    /// If the call fails. The next call then gets a new instance.
    pub fn call(&mut self, context: Context<'_>, audience: Audience) -> Result<Answer, Failure> {
        let mut observed = Observations::default();
        let answer = match self.role {
            Role::Filter => {
                let audience = self.pipeline.filter(context, audience, &mut observed);
                audience.map(Answer::Audience)
            }
            Role::Redactor => {
                let renditions = self.pipeline.split(context, &audience, &mut observed);
                renditions.map(Answer::Renditions)
            }
            Role::Enricher => {
                let enriched = self.pipeline.enrich(context);
                match enriched.failures.into_iter().next() {
                    Some(failure) => Err(failure),
                    None => Ok(Answer::Changes(enriched.changes)),
                }
            }
        };
        self.reconsider_at = observed.reads.reconsider_at;
        answer
    }

    /// When the filter or redactor that was called asked to be asked again, in milliseconds
    /// since the Unix epoch.
    pub fn reconsider_at(&self) -> Option<u64> {
        self.reconsider_at
    }

    /// The cost of the last call. `None` if the next call gets a new instance: the last one failed,
    /// or used up its memory.
    pub fn last_cost(&self) -> Option<CallCost> {
        let Pipeline {
            enrichers,
            filters,
            redactor,
            ..
        } = &self.pipeline;
        match self.role {
            Role::Filter => filters.first()?.last_cost(),
            Role::Redactor => redactor.as_ref()?.last_cost(),
            Role::Enricher => enrichers.first()?.last_cost(),
        }
    }
}
