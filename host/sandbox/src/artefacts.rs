//! Compiled components, kept in a folder from one start to the next.
//!
//! A compiled component is native code: a flipped bit crashes the process, and an
//! altered one does whatever its author likes. So a file begins with a keyed digest of
//! its content and of its name, which stands for the component's bytes and for the
//! engine. The key is the node's user's own. What doesn't verify is never looked at
//! further: the component is compiled again, and the file replaced.

use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use ring::{digest, hmac};
use rustix::fs::OFlags;
use tempfile::NamedTempFile;
use wasmtime::Engine;
use wasmtime::component::Component;

use crate::native;

/// How a file that is kept is named, and one that is being written.
const ENDING: &str = "compiled";
const UNFINISHED: &str = ".compiling-";

/// How long the digest is that a file begins with.
const DIGEST_BYTES: usize = 32;

/// How much is kept in all: beyond it, what hasn't been used for the longest time goes.
const KEPT_BYTES_MAX: u64 = 1 << 30;

/// A folder of compiled components.
pub(crate) struct Artefacts {
    folder: PathBuf,
    key: hmac::Key,
    /// How often a component was taken from the folder.
    pub(crate) hits: AtomicU64,
    /// How often a file was there that isn't what was written.
    pub(crate) refused: AtomicU64,
}

impl Artefacts {
    pub(crate) fn new(folder: &Path, key: &[u8]) -> Self {
        Self {
            folder: folder.into(),
            key: hmac::Key::new(hmac::HMAC_SHA256, key),
            hits: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    /// The component of these bytes, as it was compiled before, or else compiled now.
    pub(crate) fn component(&self, engine: &Engine, bytes: &[u8]) -> wasmtime::Result<Component> {
        let name = self.name(engine, bytes);
        let path = self.folder.join(&name);
        if let Some(component) = self.take(engine, &name, &path) {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(component);
        }
        let component = Component::new(engine, bytes)?;
        let artefact = component.serialize().map_err(io::Error::other);
        if let Err(error) = artefact.and_then(|artefact| self.put(&name, &path, &artefact)) {
            tracing::warn!(
                "a compiled plugin can't be kept in {}: {error}",
                self.folder.display()
            );
        }
        Ok(component)
    }

    fn take(&self, engine: &Engine, name: &str, path: &Path) -> Option<Component> {
        let file = match read(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => {
                self.refuse(path, &error.to_string());
                return None;
            }
        };
        let Some(artefact) = self.verified(name, &file) else {
            self.refuse(path, "its digest isn't that of what this node wrote");
            return None;
        };
        match native::component(engine, artefact) {
            Ok(component) => {
                // Says when it was last used. Where that can't be said, it goes earlier.
                let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
                Some(component)
            }
            // Of a machine that has other instructions, say.
            Err(error) => {
                tracing::debug!(path = %path.display(), "compiled for another host: {error:#}");
                None
            }
        }
    }

    fn put(&self, name: &str, path: &Path, artefact: &[u8]) -> io::Result<()> {
        // Nobody else can read or write it.
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(&self.folder)?;
        let digest = hmac::sign(&self.key, &statement(name, artefact));
        file.write_all(digest.as_ref())?;
        file.write_all(artefact)?;
        NamedTempFile::persist(file, path)?;
        self.make_room(path)
    }

    /// What the file's content is, behind a digest that holds.
    fn verified<'a>(&self, name: &str, file: &'a [u8]) -> Option<&'a [u8]> {
        let (digest, artefact) = file.split_at_checked(DIGEST_BYTES)?;
        hmac::verify(&self.key, &statement(name, artefact), digest).ok()?;
        Some(artefact)
    }

    /// A name that nobody without the key can tell, and that is another one for other
    /// bytes, another engine and another key.
    fn name(&self, engine: &Engine, bytes: &[u8]) -> String {
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let mut context = hmac::Context::with_key(&self.key);
        context.update(b"name");
        context.update(digest::digest(&digest::SHA256, bytes).as_ref());
        context.update(&hasher.finish().to_le_bytes());
        let digits = context.sign();
        let digits = digits.as_ref().iter().take(16);
        let digits = digits.map(|byte| format!("{byte:02x}"));
        format!("{}.{ENDING}", digits.collect::<String>())
    }

    fn refuse(&self, path: &Path, why: &str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(
            "the compiled plugin {} is not used, compiled anew and replaced: {why}",
            path.display()
        );
    }

    /// Removes what was used the longest time ago while there is too much, and what was
    /// never finished.
    fn make_room(&self, new: &Path) -> io::Result<()> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.folder)?.flatten() {
            let path = entry.path();
            let name = entry.file_name();
            let is_kept = path.extension().is_some_and(|ending| ending == ENDING);
            let is_unfinished = name.to_string_lossy().starts_with(UNFINISHED);
            if let Ok(about) = entry.metadata()
                && about.is_file()
                && (is_kept || is_unfinished)
                && path != new
            {
                let at = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
                kept.push((at, about.len(), path));
            }
        }
        kept.sort();
        let size = |kept: &[(_, u64, _)]| kept.iter().map(|(_, bytes, _)| bytes).sum::<u64>();
        let mut left = size(&kept) + fs::metadata(new)?.len();
        for (_, bytes, path) in kept {
            if left <= KEPT_BYTES_MAX {
                break;
            }
            // Another process may have been faster.
            let _ = fs::remove_file(path);
            left -= bytes;
        }
        Ok(())
    }
}

/// What is signed: that this is the artefact of this name.
fn statement(name: &str, artefact: &[u8]) -> Vec<u8> {
    let artefact = digest::digest(&digest::SHA256, artefact);
    [b"artefact", name.as_bytes(), &[0], artefact.as_ref()].concat()
}

/// Reads a file, and nothing else that may lie in its place.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let about = file.metadata()?;
    if !about.is_file() || about.len() > KEPT_BYTES_MAX {
        return Err(io::Error::other("it is no file that this node wrote"));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(about.len()).unwrap_or_default());
    file.take(KEPT_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}
