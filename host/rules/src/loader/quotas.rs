//! A tenant's quotas of plugins: how many, how many bytes of files, and how much memory.

use std::collections::BTreeMap;

use anyhow::{Error, anyhow};
use presence_config::Config;
use presence_sandbox::{Blueprint, Stage};

/// That a pipeline has no more plugins than it may.
pub(super) fn count(config: &Config) -> Result<(), Error> {
    let (has, max) = (config.pipeline.len(), config.limits.plugins_max);
    if has <= max {
        return Ok(());
    }
    Err(anyhow!(
        "quota-exceeded: the pipeline has {has} plugins, and it may have {max} ([limits] \
         plugins_max)"
    ))
}

/// That the files of its plugins have no more bytes than they may.
pub(super) fn bytes<'a>(
    config: &Config,
    stages: impl Iterator<Item = &'a Stage>,
) -> Result<(), Error> {
    let max = config.limits.plugin_bytes_max;
    let plugins = stages.map(|stage| (&*stage.plugin.sha256, stage.plugin.file_bytes as u64));
    let has: u64 = plugins.collect::<BTreeMap<_, _>>().into_values().sum();
    if max == 0 || has <= max {
        return Ok(());
    }
    Err(anyhow!(
        "quota-exceeded: the files of the pipeline's plugins have {has} bytes, and they may have \
         {max} ([limits] plugin_bytes_max)"
    ))
}

/// That instances on all threads that may come to have some have no more memory than they may.
pub(super) fn memory(config: &Config, blueprint: &Blueprint) -> Result<(), Error> {
    let max = config.limits.plugin_memory_bytes_max;
    let threads = config.shard_count().min(config.engine.thread_count());
    let each = blueprint.memory_bytes();
    let needed = each.saturating_mul(threads);
    if max == 0 || needed <= max {
        return Ok(());
    }
    Err(anyhow!(
        "quota-exceeded: the pipeline's plugins take {each} bytes of memory on each of {threads} \
         threads before they are called, and they may have {max} ([limits] plugin_memory_bytes_max)"
    ))
}
