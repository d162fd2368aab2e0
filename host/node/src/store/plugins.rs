//! Plugins in the store: objects whose names are the digests of their bytes. The digest is checked
//! whenever a plugin is read.

use std::collections::HashMap;

use anyhow::{Context as _, anyhow, bail, ensure};
use async_nats::jetstream::object_store::{self, ObjectInfo, ObjectMetadata, ObjectStore};
use async_nats::jetstream::stream::StorageType;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use presence_config::digest::Digest;
use presence_config::escape::cut;
use presence_config::name;
use presence_config::regular_file::Limit;
use presence_sandbox::{Manifest, sha256};

use super::Store;
use super::bucket::read_all;

/// How many bytes of object descriptions are read to list the plugins, at most.
const LISTED_BYTES_MAX: u64 = 64 << 20;

/// Facts about a plugin in the store: from its manifest, and who uploaded it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginInfo {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its role.
    pub role: String,
    /// Who uploaded it, as they say themselves.
    pub who: String,
}

/// A plugin in the store.
#[derive(Clone, Debug)]
pub struct StoredPlugin {
    /// The digest of its bytes.
    pub digest: Digest,
    /// Its length in bytes.
    pub bytes: u64,
    /// When it was uploaded, in milliseconds since the Unix epoch.
    pub when: u64,
    /// The facts about it.
    pub about: PluginInfo,
}

impl PluginInfo {
    /// The facts from a plugin's manifest, and the digest of its bytes.
    ///
    /// # Errors
    /// If the bytes are not a plugin.
    pub fn of(bytes: &[u8], file: &str, who: &str) -> anyhow::Result<(Digest, Self)> {
        let manifest = Manifest::read(file, bytes)?;
        name(&manifest.name).map_err(|fix| {
            anyhow!(
                "no pipeline can name it: its manifest calls it {:?}; {fix}",
                cut(&manifest.name)
            )
        })?;
        let about = Self {
            name: manifest.name.clone(),
            version: manifest.version.to_string(),
            role: manifest.role.as_str().into(),
            who: who.into(),
        };
        Ok((Digest::of_hex(&sha256(bytes))?, about))
    }
}

impl Store {
    /// Creates the bucket of plugins, if it is missing.
    pub(super) async fn make_plugins(&self, replicas: usize) -> anyhow::Result<ObjectStore> {
        if let Some(store) = self.objects().await? {
            return Ok(store);
        }
        let made = self.context.create_object_store(object_store::Config {
            bucket: self.plugins.clone(),
            description: Some("presence: plugins, by the digests of their bytes".into()),
            storage: StorageType::File,
            num_replicas: replicas,
            ..object_store::Config::default()
        });
        made.await
            .with_context(|| format!("can't make the bucket `{}`", self.plugins))
    }

    /// Uploads a plugin, unless it is there. Returns whether it was uploaded.
    ///
    /// # Errors
    /// If it can't be uploaded, or the bucket is missing or has an unsuitable configuration.
    pub async fn push(
        &self,
        digest: &Digest,
        bytes: &[u8],
        about: &PluginInfo,
    ) -> anyhow::Result<bool> {
        let store = self.objects().await?;
        let store = store.with_context(|| format!("the bucket `{}` is gone", self.plugins))?;
        let limit = Limit {
            bytes_max: bytes.len() as u64,
            key: "",
        };
        // A plugin is uploaded again if its bytes or its description were altered.
        let info = store.info(digest.to_string()).await.ok();
        let name = info.as_ref().and_then(|info| info.metadata.get("name"));
        if name == Some(&about.name) && self.plugin(digest, limit).await.is_ok() {
            return Ok(false);
        }
        // The upload purges the old chunks by this id, which is a wildcard if somebody altered it
        // so.
        if let Some(info) = info {
            let is_id = info.nuid.bytes().all(|byte| byte.is_ascii_alphanumeric());
            ensure!(
                is_id,
                "{digest} in the bucket `{}` was altered, so that replacing it would remove other \
                 plugins: remove its entry from the stream `{}` first",
                self.plugins,
                self.objects_stream()
            );
        }
        let PluginInfo {
            name,
            version,
            role,
            who,
        } = about;
        let metadata = [
            ("name", name),
            ("version", version),
            ("role", role),
            ("who", who),
        ];
        let metadata = metadata.map(|(key, value)| (key.to_owned(), value.clone()));
        let object = ObjectMetadata {
            name: digest.to_string(),
            description: Some(format!("{name} {version}")),
            metadata: HashMap::from(metadata),
            ..ObjectMetadata::default()
        };
        let mut rest = bytes;
        let put = store.put(object, &mut rest).await;
        put.with_context(|| format!("can't upload {digest} to the bucket `{}`", self.plugins))?;
        Ok(true)
    }

    /// The bytes of a plugin.
    ///
    /// # Errors
    /// If it isn't there, is longer than `limit`, or has been altered.
    pub async fn plugin(&self, digest: &Digest, limit: Limit) -> anyhow::Result<Vec<u8>> {
        let missing = || {
            format!(
                "{digest} is not in the bucket `{}`: upload it, with `presence plugins push`",
                self.plugins
            )
        };
        let store = self.objects().await?.with_context(missing)?;
        let info = match store.info(digest.to_string()).await {
            Ok(info) if !info.deleted => info,
            Ok(_) => bail!(missing()),
            Err(error) if error.kind() == object_store::InfoErrorKind::NotFound => bail!(missing()),
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "can't read {digest} from the store; if it was deleted or altered, upload it \
                         again, with `presence plugins push`"
                    )
                });
            }
        };
        let Limit { bytes_max, key } = limit;
        ensure!(
            info.size as u64 <= bytes_max,
            "{digest} is {} bytes long, and {key} permits {bytes_max}",
            info.size
        );
        let altered = || {
            format!(
                "{digest} in the bucket `{}` is not what its name says: upload it again, with \
                 `presence plugins push`",
                self.plugins
            )
        };
        let stream = self.stream(&self.objects_stream()).await?;
        let stream = stream.with_context(missing)?;
        let chunks = format!("$O.{}.C.{}", self.plugins, info.nuid);
        let chunks = read_all(&stream, chunks, 0, bytes_max).await;
        let mut bytes = Vec::new();
        for chunk in chunks.with_context(|| format!("can't read {digest} from the store"))? {
            bytes.extend_from_slice(&chunk.payload);
        }
        ensure!(*sha256(&bytes) == *digest.hex(), altered());
        Ok(bytes)
    }

    /// The plugins in the store, by name, the newest of each first.
    ///
    /// # Errors
    /// If they can't be read.
    pub async fn plugins(&self) -> anyhow::Result<Vec<StoredPlugin>> {
        if self.objects().await?.is_none() {
            return Ok(Vec::new());
        }
        let Some(stream) = self.stream(&self.objects_stream()).await? else {
            return Ok(Vec::new());
        };
        let subject = format!("$O.{}.M.>", self.plugins);
        let objects = read_all(&stream, subject, 0, LISTED_BYTES_MAX).await?;
        let mut stored: Vec<_> = objects
            .iter()
            .filter_map(|object| StoredPlugin::read(&object.subject, &object.payload))
            .collect();
        stored.sort_by(|a, b| (&a.about.name, b.when).cmp(&(&b.about.name, a.when)));
        Ok(stored)
    }

    /// The bucket of plugins. `None` if it doesn't exist.
    async fn objects(&self) -> anyhow::Result<Option<ObjectStore>> {
        let name = self.objects_stream();
        let Some(stream) = self.stream(&name).await? else {
            return Ok(None);
        };
        let config = &stream.cached_info().config;
        let ours = ["C", "M"].map(|kind| format!("$O.{}.{kind}.>", self.plugins));
        if config.subjects != ours {
            bail!(self.stream_config_error(&name, "holds other subjects"));
        }
        if !config.max_age.is_zero() {
            bail!(self.stream_config_error(&name, "forgets what it holds after some time"));
        }
        Ok(Some(self.context.get_object_store(&self.plugins).await?))
    }

    fn objects_stream(&self) -> String {
        format!("OBJ_{}", self.plugins)
    }
}

impl StoredPlugin {
    /// Reads the description of an object. `None` if it is no plugin, or is stored under a name
    /// that isn't its own.
    fn read(subject: &str, payload: &[u8]) -> Option<Self> {
        let info: ObjectInfo = serde_json::from_slice(payload).ok()?;
        let kept_as = subject.rsplit('.').next()?;
        if kept_as != URL_SAFE.encode(&info.name) {
            return None;
        }
        let digest = Digest::parse(&info.name).ok().filter(|_| !info.deleted)?;
        let said = |key: &str| info.metadata.get(key).cloned().unwrap_or_default();
        let when = info
            .modified
            .map(|at| at.unix_timestamp_nanos() / 1_000_000);
        Some(Self {
            digest,
            bytes: info.size as u64,
            when: when
                .and_then(|ms| u64::try_from(ms).ok())
                .unwrap_or_default(),
            about: PluginInfo {
                name: said("name"),
                version: said("version"),
                role: said("role"),
                who: said("who"),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_counts_under_its_own_name_alone() {
        let name = format!("sha256:{}", "a".repeat(64));
        let info = serde_json::json!({
            "name": name, "bucket": "presence-plugins", "nuid": "x", "size": 1, "chunks": 1,
            "metadata": {"name": "contacts"},
        });
        let info = serde_json::to_vec(&info).unwrap();
        let kept_as = |name: &str| format!("$O.presence-plugins.M.{}", URL_SAFE.encode(name));
        let stored = StoredPlugin::read(&kept_as(&name), &info).unwrap();
        assert_eq!(stored.about.name, "contacts");
        for other in ["sha256:other", ""] {
            assert!(StoredPlugin::read(&kept_as(other), &info).is_none());
        }
    }
}
