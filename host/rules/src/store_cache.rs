//! What a node keeps on disk of the plugin store: the plugins that it runs, by their digests,
//! and the revision that is in force. While the store can't be reached, a node starts from these.

use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use anyhow::{Context as _, ensure};
use presence_config::digest::Digest;
use presence_config::regular_file::{self, Limit};
use presence_config::revision::{Candidate, Revision};
use presence_config::{Config, PluginSource};
use presence_sandbox::sha256;
use serde::{Deserialize, Serialize};

use crate::private;

/// The source of a plugin that comes from the store.
pub const STORE: &str = "store";

/// The cache of a tenant's plugin store.
#[derive(Debug, Default)]
pub struct StoreCache {
    /// The cache's folder. `None`: nothing is kept over a restart.
    folder: Option<PathBuf>,
    /// The plugins that could not be written to the folder.
    memory: Mutex<HashMap<Digest, Arc<[u8]>>>,
    /// The plugins that stay besides those in force, each for as long as its `HeldPlugins` exists.
    /// The lock is held while a plugin is removed. So a new holder finds a plugin there for good,
    /// or finds it gone.
    held: Mutex<Vec<(Digest, Weak<()>)>>,
}

/// Keeps some plugins on this node until it is dropped, whatever comes into force meanwhile.
#[derive(Debug)]
pub struct HeldPlugins(#[expect(dead_code, reason = "what it is for is that it lives")] Arc<()>);

/// What a node has to know about a canary after a restart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedCanary {
    /// Which canary it is.
    pub candidate: Candidate,
    /// For how many milliseconds it has been watched on this node.
    pub watched_ms: u64,
    /// Why it has ended on this node, if it has. If so, it doesn't begin again here.
    #[serde(default)]
    pub ended: Option<String>,
}

impl StoreCache {
    /// The cache of the tenant that a configuration describes.
    pub fn of(config: &Config) -> Self {
        // A tenant without a name and a prefix is called `presence`, which no other one can be.
        let tenant = config.tenant.file_name();
        let dir = config.state.dir.as_ref();
        Self {
            folder: dir.map(|dir| dir.join(format!("{tenant}.store"))),
            memory: Mutex::default(),
            held: Mutex::default(),
        }
    }

    /// Keeps plugins until the returned value is dropped, also those that aren't there yet. The
    /// call may wait for the disk.
    pub fn hold(&self, digests: impl IntoIterator<Item = Digest>) -> HeldPlugins {
        let token = Arc::new(());
        let digests = digests.into_iter();
        let digests = digests.map(|digest| (digest, Arc::downgrade(&token)));
        let mut held = self.held();
        held.retain(|(_, holder)| holder.strong_count() > 0);
        held.extend(digests);
        HeldPlugins(token)
    }

    /// A plugin's bytes.
    ///
    /// # Errors
    /// If they aren't there, or don't match the digest.
    pub fn plugin(&self, digest: &Digest, limit: Limit) -> anyhow::Result<Arc<[u8]>> {
        if let Some(bytes) = self.memory().get(digest) {
            return Ok(Arc::clone(bytes));
        }
        let path = self.path_of(digest);
        let path = path.with_context(|| format!("{digest} is not on this node"))?;
        let bytes = regular_file::read(&path, Some(limit))?;
        ensure!(
            *sha256(&bytes) == *digest.hex(),
            "{} has been altered: its content is not what its name says",
            path.display()
        );
        Ok(bytes.into())
    }

    /// Keeps a plugin's bytes.
    ///
    /// # Errors
    /// If they don't match the digest.
    pub fn keep(&self, digest: &Digest, bytes: Vec<u8>) -> anyhow::Result<()> {
        ensure!(
            *sha256(&bytes) == *digest.hex(),
            "its content is not what {digest} says"
        );
        if let Some(path) = self.path_of(digest) {
            match self.write(&path, &bytes) {
                Ok(()) => return Ok(()),
                Err(error) => tracing::warn!(
                    "the plugin {} is not kept on disk, and a start needs the store: {error:#}",
                    digest.short()
                ),
            }
        }
        self.memory().insert(digest.clone(), bytes.into());
        Ok(())
    }

    /// The revision that was last in force. `None`: there was none.
    ///
    /// # Errors
    /// If there is one, and it can't be read.
    pub fn revision(&self) -> anyhow::Result<Option<Revision>> {
        let Some(path) = self.revision_path() else {
            return Ok(None);
        };
        let what = || format!("the kept pipeline revision, {}", path.display());
        match fs::read(&path) {
            Ok(bytes) => Revision::parse(&bytes).map(Some).with_context(what),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            // If the folder can't be used, the code that opens the state reports it.
            Err(error) if error.kind() == ErrorKind::NotADirectory => Ok(None),
            Err(error) => Err(error).with_context(what),
        }
    }

    /// Stores the revision that is in force. Removes all plugins but those of this revision and
    /// those that are held.
    pub fn record_in_force(&self, revision: &Revision) {
        let used = revision.digests();
        let held = self.held();
        let stays = |digest: &Digest| used.contains(digest) || is_held(&held, digest);
        self.memory().retain(|digest, _| stays(digest));
        drop(held);
        let Some(path) = self.revision_path() else {
            return;
        };
        if let Err(error) = self.write(&path, &revision.to_json()) {
            return tracing::warn!(
                "the pipeline revision {} is not kept on disk, and a start needs the store: \
                 {error:#}",
                revision.revision
            );
        }
        let files = self.folder.iter().flat_map(fs::read_dir).flatten();
        for file in files.flatten() {
            let name = file.file_name();
            let name = name.to_string_lossy();
            let digest = name.strip_suffix(".wasm").map(Digest::of_hex);
            let Some(Ok(digest)) = digest else { continue };
            let held = self.held();
            if !used.contains(&digest) && !is_held(&held, &digest) {
                // A file that can't be removed only takes room.
                let _ = fs::remove_file(file.path());
            }
        }
    }

    /// What is stored about a canary. `None`: nothing is stored, or it is about another canary.
    pub fn canary(&self, candidate: &Candidate) -> Option<SavedCanary> {
        let bytes = fs::read(self.canary_path()?).ok()?;
        let kept: Option<SavedCanary> = serde_json::from_slice(&bytes).ok();
        kept.filter(|it| it.candidate.is_same(candidate))
    }

    /// Why a canary has ended on this node, if it has.
    pub fn canary_end(&self, candidate: &Candidate) -> Option<String> {
        self.canary(candidate)?.ended
    }

    /// Stores what is known about a canary, in place of what was stored before.
    pub fn save_canary(&self, canary: &SavedCanary) {
        let Some(path) = self.canary_path() else {
            return;
        };
        // Plain data, which always has a JSON form.
        let bytes = serde_json::to_vec(canary).unwrap_or_default();
        if let Err(error) = self.write(&path, &bytes) {
            tracing::warn!("what a restart has to know of the canary is not kept: {error:#}");
        }
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        if let Some(folder) = &self.folder {
            private::folder(folder)?;
        }
        private::write(path, bytes).with_context(|| format!("can't write {}", path.display()))
    }

    fn path_of(&self, digest: &Digest) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(file_name(digest)))
    }

    fn revision_path(&self) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join("revision.json"))
    }

    fn canary_path(&self) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join("canary.json"))
    }

    fn held(&self) -> MutexGuard<'_, Vec<(Digest, Weak<()>)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn memory(&self) -> MutexGuard<'_, HashMap<Digest, Arc<[u8]>>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_held(held: &[(Digest, Weak<()>)], digest: &Digest) -> bool {
    let mut holders = held.iter().filter(|(it, _)| it == digest);
    holders.any(|(_, holder)| holder.strong_count() > 0)
}

fn file_name(digest: &Digest) -> String {
    format!("{}.wasm", digest.hex())
}

/// The configuration with the pipeline that a start without the store would have. If the pipeline
/// comes from the store, that is the revision that was last in force.
///
/// # Errors
/// If this node has kept no revision, or it can't be read.
pub fn without_store(mut config: Config) -> anyhow::Result<Config> {
    if config.plugins.source == PluginSource::Store {
        let kept = StoreCache::of(&config).revision()?;
        let kept = kept.context(
            "the pipeline comes from the plugin store ([plugins] source), and this node has kept \
             no revision of it",
        )?;
        config.pipeline = kept.stages();
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Limit = Limit {
        bytes_max: 1 << 20,
        key: "[plugins] file_bytes_max",
    };

    fn digest(bytes: &[u8]) -> Digest {
        Digest::of_hex(&sha256(bytes)).unwrap()
    }

    fn revision(plugin: &[u8]) -> Revision {
        let text = format!(
            r#"{{"revision": 3, "chain": [{{"plugin": "a", "digest": "{}"}}], "who": "", "when": 1}}"#,
            digest(plugin)
        );
        Revision::parse(text.as_bytes()).unwrap()
    }

    fn in_folder(folder: &Path) -> StoreCache {
        let mut config = Config::default();
        config.state.dir = Some(folder.to_owned());
        StoreCache::of(&config)
    }

    #[test]
    fn what_is_in_force_is_kept_and_no_other_plugin() {
        let folder = tempfile::tempdir().unwrap();
        let kept = in_folder(folder.path());
        assert_eq!(kept.revision().unwrap(), None);
        for plugin in [b"one", b"two"] {
            kept.keep(&digest(plugin), plugin.to_vec()).unwrap();
        }
        kept.record_in_force(&revision(b"two"));
        let kept = in_folder(folder.path());
        assert_eq!(kept.revision().unwrap(), Some(revision(b"two")));
        assert_eq!(&*kept.plugin(&digest(b"two"), LIMIT).unwrap(), b"two");
        assert!(kept.plugin(&digest(b"one"), LIMIT).is_err());
    }

    #[test]
    fn what_is_held_stays_whatever_comes_into_force_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        for kept in [in_folder(folder.path()), StoreCache::default()] {
            let kept = Arc::new(kept);
            let one = digest(b"one");
            let held = kept.hold([one.clone()]);
            let twice = kept.hold([one.clone()]);
            kept.keep(&one, b"one".to_vec()).unwrap();
            drop(held);
            kept.record_in_force(&revision(b"two"));
            assert!(kept.plugin(&one, LIMIT).is_ok());
            drop(twice);
            kept.record_in_force(&revision(b"two"));
            assert!(kept.plugin(&one, LIMIT).is_err());
        }
    }

    #[test]
    fn a_plugin_that_was_altered_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let kept = in_folder(folder.path());
        let one = digest(b"one");
        assert!(kept.keep(&one, b"two".to_vec()).is_err());
        kept.keep(&one, b"one".to_vec()).unwrap();
        fs::write(kept.path_of(&one).unwrap(), b"two").unwrap();
        let error = kept.plugin(&one, LIMIT).unwrap_err().to_string();
        assert!(error.contains("has been altered"), "{error}");
    }

    #[test]
    fn without_a_folder_plugins_are_held_for_as_long_as_they_run() {
        let kept = StoreCache::default();
        kept.keep(&digest(b"one"), b"one".to_vec()).unwrap();
        assert!(kept.plugin(&digest(b"one"), LIMIT).is_ok());
        kept.record_in_force(&revision(b"two"));
        assert!(kept.plugin(&digest(b"one"), LIMIT).is_err());
        assert_eq!(kept.revision().unwrap(), None);
    }
}
