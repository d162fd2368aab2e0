//! `presence plugins activate`

use anyhow::{Context as _, bail, ensure};
use presence_config::digest::Digest;
use presence_node::store::StoredPlugin;

use crate::confirmation::ChangeOptions;
use crate::pipeline::change::StoreSession;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The plugin's name, and its digest or the first digits of it.
    #[arg(value_name = "NAME@DIGEST", value_parser = parse_plugin_ref)]
    plugin: PluginRef,
    #[command(flatten)]
    how: ChangeOptions,
}

/// A plugin by its name and the beginning of its digest.
#[derive(Clone, Debug)]
pub(crate) struct PluginRef {
    pub(super) name: String,
    digest: String,
}

pub(super) fn parse_plugin_ref(text: &str) -> Result<PluginRef, String> {
    let (name, digest) = text
        .split_once('@')
        .ok_or("write its name and its digest, such as quiet@sha256:1b2c3d4e")?;
    Ok(PluginRef {
        name: name.into(),
        digest: digest.into(),
    })
}

impl PluginRef {
    /// The full digest of the plugin in the store.
    ///
    /// # Errors
    /// If the store has no such plugin, or several.
    pub(super) async fn digest_in(&self, session: &StoreSession) -> anyhow::Result<Digest> {
        let stored = session.operator.store().plugins().await;
        let stored = stored.map_err(|error| session.operator.with_broker_error(error))?;
        find_plugin(&stored, &self.name, &self.digest)
    }
}

/// Puts the plugin in force on all nodes.
pub(super) async fn run(args: &Args) -> anyhow::Result<()> {
    let session = StoreSession::open(&args.how.config).await?;
    let name = &args.plugin.name;
    let digest = args.plugin.digest_in(&session).await?;
    let mut chain = session.newest_or_error()?.chain.clone();
    let mut stages = chain
        .iter_mut()
        .filter(|entry| entry.plugin == *name)
        .peekable();
    ensure!(
        stages.peek().is_some(),
        "the pipeline has no plugin `{name}`: add it, with `presence pipeline show`, a \
         [[pipeline]] section and `presence pipeline apply`"
    );
    for entry in stages {
        entry.digest = digest.clone();
    }
    let why = format!("activate {name}@{}", digest.short());
    session.change(chain, &args.how, &why, None).await
}

/// The only digest of the plugin `name` that begins with `digest`.
fn find_plugin(stored: &[StoredPlugin], name: &str, digest: &str) -> anyhow::Result<Digest> {
    let named = stored.iter().filter(|it| it.about.name == name);
    let mut begin: Vec<_> = named
        .filter(|it| it.digest.starts_with(digest))
        .map(|it| &it.digest)
        .collect();
    match (begin.pop(), &*begin) {
        (Some(digest), []) => Ok(digest.clone()),
        (Some(_), _) => bail!("several plugins `{name}` begin with {digest}: write more digits"),
        (None, _) => {
            let elsewhere = stored.iter().find(|it| it.digest.starts_with(digest));
            let why = elsewhere.map(|it| match &*it.about.name {
                "" => "what is there was altered: upload it again, with `presence plugins push`"
                    .into(),
                other => format!("it is the plugin `{other}`"),
            });
            let why = why.unwrap_or_else(|| {
                "upload it, with `presence plugins push`; `presence plugins list` lists what is \
                 there"
                    .into()
            });
            None.with_context(|| format!("there is no plugin {name}@{digest} in the store: {why}"))
        }
    }
}
