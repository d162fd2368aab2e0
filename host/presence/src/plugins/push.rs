//! `presence plugins push`

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use presence_config::digest::Digest;
use presence_config::escape::{line, print, print_json};
use presence_config::regular_file::{self, Limit};
use presence_node::store::PluginInfo;
use serde_json::json;

use super::oci::{self, Address, SCHEME};
use crate::arguments::Output;
use crate::pipeline::change::StoreSession;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The plugins' files, or where they are in an OCI registry: oci://HOST/REPOSITORY:TAG or
    /// oci://HOST/REPOSITORY@sha256:….
    #[arg(required = true, value_name = "FILE|oci://…")]
    plugins: Vec<PathBuf>,
    /// Asks registries without TLS. Those on this machine are always asked so.
    #[arg(long)]
    plain_http: bool,
    /// On how many servers of a cluster the buckets are kept, if they are made now.
    #[arg(long, value_name = "N", default_value_t = 1)]
    replicas: usize,
    #[command(flatten)]
    output: Output,
}

/// A plugin that is to be uploaded.
struct Plugin {
    digest: Digest,
    about: PluginInfo,
    bytes: Vec<u8>,
    /// Its address in a registry, with the digest of its manifest. `None` if it was a file.
    from: Option<String>,
}

impl Plugin {
    fn read(path: &Path, limit: Limit, args: &Args, who: &str) -> anyhow::Result<Self> {
        let (bytes, name, from) = match path.to_str().filter(|it| it.starts_with(SCHEME)) {
            Some(address) => {
                let address = Address::parse(address)?;
                let pulled = oci::pull(&address, limit, args.plain_http)?;
                (pulled.bytes, address.name().to_owned(), Some(pulled.pinned))
            }
            None => {
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                (
                    regular_file::read(path, Some(limit))?,
                    name.into_owned(),
                    None,
                )
            }
        };
        let about = PluginInfo::of(&bytes, &name, who);
        let (digest, about) = about.with_context(|| format!("{} can't be used", path.display()))?;
        Ok(Self {
            digest,
            about,
            bytes,
            from,
        })
    }
}

/// Uploads the plugins, after all of them have been read and checked.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = StoreSession::open(&args.output.config).await?;
    let limit = Limit {
        bytes_max: session.config.plugins.file_bytes_max,
        key: "[plugins] file_bytes_max",
    };
    let who = session.who();
    let plugins = args.plugins.iter();
    let plugins = plugins.map(|path| Plugin::read(path, limit, args, &who));
    let plugins = plugins.collect::<anyhow::Result<Vec<_>>>()?;
    let (operator, mut pushed) = (&session.operator, Vec::new());
    let store = operator.store();
    operator
        .attempt("STREAM.CREATE", store.make(args.replicas))
        .await?;
    for plugin in &plugins {
        let Plugin {
            digest,
            about,
            bytes,
            from,
        } = plugin;
        let pushed_now = store.push(digest, bytes, about);
        let is_new = operator.attempt("$O.", pushed_now).await?;
        let PluginInfo { name, version, .. } = about;
        if !args.output.json {
            let did = if is_new { "uploaded" } else { "was there" };
            let from = from.as_ref().map(|from| format!("  from {}", line(from)));
            print(format_args!(
                "{}@{digest}  {}  {did}{}\n",
                line(name),
                line(version),
                from.unwrap_or_default()
            ))?;
        }
        pushed.push(json!({
            "plugin": name,
            "version": version,
            "digest": digest,
            "uploaded": is_new,
            "from": from,
        }));
    }
    if args.output.json {
        print_json(json!({"pushed": pushed}))?;
    }
    Ok(())
}
