//! `presence plugins push`

use std::path::PathBuf;

use anyhow::Context as _;
use presence_config::escape::{line, print, print_json};
use presence_config::regular::{self, Limit};
use presence_kit::ConfigArg;
use presence_node::store::About;
use serde_json::json;

use crate::pipeline::change::Session;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The plugins' files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// On how many servers of a cluster the buckets are kept, if they are made now.
    #[arg(long, value_name = "N", default_value_t = 1)]
    replicas: usize,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArg,
}

/// Uploads them, once it is known that all of them are plugins.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = Session::open(&args.config).await?;
    let limit = Limit {
        bytes_max: session.config.plugins.file_bytes_max,
        key: "[plugins] file_bytes_max",
    };
    let who = session.who();
    let mut plugins = Vec::new();
    for path in &args.files {
        let bytes = regular::read(path, Some(limit))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let about = About::of(&bytes, &name, &who);
        let (digest, about) = about.with_context(|| format!("{} can't be used", path.display()))?;
        plugins.push((digest, about, bytes));
    }
    let (operator, mut pushed) = (&session.operator, Vec::new());
    let store = operator.store();
    operator
        .attempt("STREAM.CREATE", store.make(args.replicas))
        .await?;
    for (digest, about, bytes) in &plugins {
        let pushed_now = store.push(digest, bytes, about);
        let is_new = operator.attempt("$O.", pushed_now).await?;
        let About { name, version, .. } = about;
        if !args.json {
            let did = if is_new { "uploaded" } else { "was there" };
            print(format_args!(
                "{}@{digest}  {}  {did}\n",
                line(name),
                line(version)
            ))?;
        }
        pushed.push(json!({
            "plugin": name,
            "version": version,
            "digest": digest,
            "uploaded": is_new,
        }));
    }
    if args.json {
        print_json(json!({"pushed": pushed}))?;
    }
    Ok(())
}
