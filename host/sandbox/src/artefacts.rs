//! A cache of compiled components: a folder that is kept from one start to the next.
//!
//! A compiled component is native code: a flipped bit crashes the process, and an altered file can
//! do anything. So each file begins with a keyed digest of its name and content. The name stands
//! for the bytes of the component and for the engine. The key is a secret of the node's user. A
//! file that doesn't verify is not used: the component is compiled again, and the file is replaced.

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

/// The extension of a finished file, and how the name of an unfinished one begins.
const ENDING: &str = "compiled";
const UNFINISHED: &str = ".compiling-";

/// The length of the digest at the beginning of a file.
const DIGEST_BYTES: usize = 32;

/// How many bytes the folder may hold. Beyond this, the least recently used files are removed.
const KEPT_BYTES_MAX: u64 = 1 << 30;

/// A folder of compiled components.
pub(crate) struct Artefacts {
    folder: PathBuf,
    key: hmac::Key,
    /// How often a component was taken from the folder.
    pub(crate) hits: AtomicU64,
    /// How often a file couldn't be read, or its digest was wrong.
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

    /// The compiled component of these bytes: from the folder if it is there, or else compiled now.
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
                // The modification time is the time of the last use. If it can't be set, the file
                // is removed earlier.
                let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
                Some(component)
            }
            // For example, compiled for a processor with other instructions.
            Err(error) => {
                tracing::debug!(path = %path.display(), "compiled for another host: {error:#}");
                None
            }
        }
    }

    fn put(&self, name: &str, path: &Path, artefact: &[u8]) -> io::Result<()> {
        // A temporary file: other users can neither read nor write it.
        let mut file = tempfile::Builder::new()
            .prefix(UNFINISHED)
            .tempfile_in(&self.folder)?;
        let digest = hmac::sign(&self.key, &statement(name, artefact));
        file.write_all(digest.as_ref())?;
        file.write_all(artefact)?;
        NamedTempFile::persist(file, path)?;
        self.make_room(path)
    }

    /// The compiled code in a file. `None` if the file's digest is wrong.
    fn verified<'a>(&self, name: &str, file: &'a [u8]) -> Option<&'a [u8]> {
        let (digest, artefact) = file.split_at_checked(DIGEST_BYTES)?;
        hmac::verify(&self.key, &statement(name, artefact), digest).ok()?;
        Some(artefact)
    }

    /// The file's name: a keyed digest of the component's bytes and the engine. Nobody without the
    /// key can guess it.
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

    /// Removes the least recently used files, finished or not, while the folder holds more than
    /// `KEPT_BYTES_MAX`. The file at `new` stays.
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
            // Another process may have removed it already.
            let _ = fs::remove_file(path);
            left -= bytes;
        }
        Ok(())
    }
}

/// The bytes that are signed: they bind an artefact to its name.
fn statement(name: &str, artefact: &[u8]) -> Vec<u8> {
    let artefact = digest::digest(&digest::SHA256, artefact);
    [b"artefact", name.as_bytes(), &[0], artefact.as_ref()].concat()
}

/// Reads a regular file. Refuses symbolic links, pipes, devices, and files that are too large.
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
