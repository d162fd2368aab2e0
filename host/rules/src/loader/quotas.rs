//! A tenant's quotas of plugins: how many, how many bytes of files, and how much memory.

use std::collections::BTreeMap;

use anyhow::{Error, anyhow};
use presence_config::Config;
use presence_sandbox::{Blueprint, Stage};

/// Checks that a pipeline has no more plugins than its quota.
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

/// Checks that the files of its plugins together, each counted once, keep to their quota in bytes.
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

/// Checks that the plugins' memory keeps to its quota. It counts what one set of instances takes
/// before its first call, for each thread that may have one: one per shard, and at most one per
/// worker.
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
