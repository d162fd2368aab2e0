//! Folders and files that only the node's own user can access.
//!
//! A folder is trusted only if its whole path is: a user who can write in a folder of the path, or
//! change a link in it, could make the path lead elsewhere. Only root and the node's own user may
//! be able to. A sticky folder in the path, such as `/tmp`, is accepted: users can't rename or
//! remove there what belongs to another user.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustix::fs::OFlags;
use tempfile::NamedTempFile;

/// The bits that let the group, or everyone, write in a folder.
const OTHERS_WRITE: u32 = 0o022;

/// The bits that let the group, or everyone, do anything with a file.
const OTHERS: u32 = 0o077;

/// The sticky bit: a user who can write in the folder can't rename or remove what belongs to
/// another user.
const STICKY: u32 = 0o1000;

/// How many symbolic links are followed in one path.
const LINKS_MAX: u32 = 40;

/// The prefix of a file's name while the file is being written. A file with this prefix that is at
/// least `LEFT_BEHIND` old is taken for one that a killed process has left.
const UNFINISHED: &str = ".unfinished-";
const LEFT_BEHIND: Duration = Duration::from_secs(3_600);

const KEY_BYTES: usize = 32;

/// A secret key that only the user has.
pub type Key = [u8; KEY_BYTES];

/// Makes a folder that others can't read, unless there is one.
pub fn folder(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("can't make the folder {}", path.display()))
}

/// As [`folder`]. Fails if anybody but root and the node's user can change the folder's content,
/// or make its path lead elsewhere.
pub fn trusted_folder(path: &Path) -> anyhow::Result<()> {
    folder(path)?;
    trust(path)
}

/// Opens a file for reading and writing, and makes it if it isn't there. If others could read it
/// before, they can't any more.
pub fn file(path: &Path) -> io::Result<File> {
    let file = options().create(true).truncate(false).open(path)?;
    keep_private(&file, path);
    Ok(file)
}

/// Writes a file that others can't read, and replaces the one that may be there. The file is
/// written as a whole, or not at all.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put(path, bytes, File::sync_all)
}

/// As [`write()`], for content that is of no use after a crash of the machine: it doesn't wait for
/// the disk.
pub fn write_unsynced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    put(path, bytes, |_| Ok(()))
}

fn put(path: &Path, bytes: &[u8], sync: fn(&File) -> io::Result<()>) -> io::Result<()> {
    let file = write_temp_file(path, bytes)?;
    sync(file.as_file())?;
    file.persist(path)?;
    Ok(())
}

/// Writes a file's content into a temporary file in the same folder. Others can't read it. Its name
/// is unique, since another process may be writing the same file.
fn write_temp_file(path: &Path, bytes: &[u8]) -> io::Result<NamedTempFile> {
    let folder = path.parent().ok_or(ErrorKind::InvalidFilename)?;
    let mut named = tempfile::Builder::new();
    let mut file = named.prefix(UNFINISHED).tempfile_in(folder)?;
    file.write_all(bytes)?;
    if should_clean_up(folder) {
        remove_left_behind(folder);
    }
    Ok(file)
}

/// Whether a folder should be searched for files that killed processes have left: at most once in
/// `LEFT_BEHIND`, since a node writes the files of thousands of tenants into one folder.
fn should_clean_up(folder: &Path) -> bool {
    static LOOKED: Mutex<BTreeMap<PathBuf, Instant>> = Mutex::new(BTreeMap::new());
    let mut looked = LOOKED.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    let is_recent = |at: &Instant| now.saturating_duration_since(*at) < LEFT_BEHIND;
    if looked.get(folder).is_some_and(is_recent) {
        return false;
    }
    looked.retain(|_, at| is_recent(at));
    looked.insert(folder.to_owned(), now);
    true
}

/// Removes unfinished files of processes that were killed while they wrote.
fn remove_left_behind(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            continue;
        }
        let written = entry.metadata().and_then(|about| about.modified());
        let age = written.ok().and_then(|at| at.elapsed().ok());
        if age.is_some_and(|age| age >= LEFT_BEHIND) {
            // Another process may have removed it already.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// The key in a folder. It is made at the first call. It is made anew if the file holds no key, or
/// others could read it.
pub fn key(dir: &Path) -> anyhow::Result<Key> {
    trusted_folder(dir)?;
    let path = dir.join("cache.key");
    match read_key(&path) {
        Ok(Some(key)) => return Ok(key),
        Ok(None) => {}
        Err(why) => {
            tracing::warn!("{} is made anew: {why:#}", path.display());
            fs::remove_file(&path).with_context(|| format!("can't remove {}", path.display()))?;
        }
    }
    let mut key = [0; KEY_BYTES];
    let random = SystemRandom::new().fill(&mut key);
    random.map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    let cant = || format!("can't write {}", path.display());
    let file = write_temp_file(&path, &key).with_context(cant)?;
    file.as_file().sync_all().with_context(cant)?;
    match file.persist_noclobber(&path) {
        Ok(_) => Ok(key),
        // Another process has made the key first.
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => {
            read_key(&path)?.with_context(|| format!("{} comes and goes", path.display()))
        }
        Err(error) => Err(error.error).with_context(cant),
    }
}

/// A key, if there is one.
fn read_key(path: &Path) -> anyhow::Result<Option<Key>> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut options = File::options();
    options.read(true).custom_flags(flags.bits().cast_signed());
    let file = match options.open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let about = file.metadata()?;
    ensure!(about.is_file(), "it is no file");
    ensure!(is_own(about.uid()), "it belongs to another user");
    ensure!(about.mode() & OTHERS == 0, "others could read it");
    let mut bytes = Vec::new();
    file.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    let key = bytes.try_into();
    let key = key.map_err(|_| anyhow::anyhow!("it is not {KEY_BYTES} bytes long"))?;
    Ok(Some(key))
}

fn options() -> OpenOptions {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600);
    options
}

/// Takes the permissions on a file away from other users. On a file system without permissions, the
/// file stays as it is, and the log says so.
fn keep_private(file: &File, path: &Path) {
    let kept = file.metadata().and_then(|about| {
        if about.mode() & OTHERS == 0 {
            return Ok(());
        }
        file.set_permissions(Permissions::from_mode(0o600))
    });
    if let Err(error) = kept {
        let path = path.display();
        tracing::warn!("others may read {path}, and that can't be changed: {error}");
    }
}

/// Checks each folder and link of a path, in the order in which the system resolves it.
fn trust(path: &Path) -> anyhow::Result<()> {
    let whole = std::path::absolute(path)?;
    let mut ahead = steps(&whole);
    let mut here = PathBuf::from("/");
    let mut links = 0;
    trust_folder(&here, &fs::symlink_metadata(&here)?, ahead.is_empty())?;
    while let Some(step) = ahead.pop() {
        match Path::new(&step).components().next() {
            Some(Component::RootDir) => here = PathBuf::from("/"),
            Some(Component::ParentDir) => drop(here.pop()),
            Some(Component::Normal(_)) => {
                let next = here.join(&step);
                let about = fs::symlink_metadata(&next)
                    .with_context(|| format!("can't look at {}", next.display()))?;
                if about.is_symlink() {
                    links += 1;
                    ensure!(links <= LINKS_MAX, "{} leads nowhere", path.display());
                    trust_owner(&next, about.uid())?;
                    ahead.extend(steps(&fs::read_link(&next)?));
                    continue;
                }
                trust_folder(&next, &about, ahead.is_empty())?;
                here = next;
            }
            _ => {}
        }
    }
    Ok(())
}

/// The steps of a path, the last one first.
fn steps(path: &Path) -> Vec<std::ffi::OsString> {
    let steps = path.components().rev();
    steps.map(|step| step.as_os_str().to_owned()).collect()
}

fn trust_folder(path: &Path, about: &fs::Metadata, is_last: bool) -> anyhow::Result<()> {
    trust_owner(path, about.uid())?;
    ensure!(about.is_dir(), "{} is no folder", path.display());
    let is_sticky = about.mode() & STICKY != 0 && !is_last;
    ensure!(
        is_sticky || about.mode() & OTHERS_WRITE == 0,
        "others can write in {0}: `chmod go-w {0}`",
        path.display()
    );
    Ok(())
}

fn trust_owner(path: &Path, uid: u32) -> anyhow::Result<()> {
    if !is_own(uid) && uid != 0 {
        bail!("{} belongs to another user (uid {uid})", path.display());
    }
    Ok(())
}

/// Whether this is the user that the node runs as.
fn is_own(uid: u32) -> bool {
    rustix::process::geteuid().as_raw() == uid
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{chown, symlink};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o777
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn refusal<T>(outcome: anyhow::Result<T>) -> String {
        match outcome {
            Ok(_) => panic!("it is trusted"),
            Err(refusal) => format!("{refusal:#}"),
        }
    }

    #[test]
    fn a_file_is_whole_at_all_times_however_many_write_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let bytes = vec![7; 1 << 16];
        write_unsynced(&path, &bytes).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        write_unsynced(&path, &bytes).unwrap();
                        assert_eq!(fs::read(&path).unwrap(), bytes);
                    }
                });
            }
        });
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_others_can_write_in_is_not_trusted() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("a").join("b");
        trusted_folder(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        trusted_folder(&path).unwrap();
        set_mode(&path, 0o755);
        trusted_folder(&path).unwrap();
        for open in [0o775, 0o707, 0o1777] {
            set_mode(&path, open);
            let refusal = refusal(trusted_folder(&path));
            assert!(refusal.starts_with("others can write in "), "{refusal}");
            folder(&path).unwrap();
        }
    }

    #[test]
    fn nor_is_one_below_such_a_folder_unless_that_is_sticky() {
        let around = tempfile::tempdir().unwrap();
        let (above, path) = (around.path().join("a"), around.path().join("a/b/c"));
        trusted_folder(&path).unwrap();
        set_mode(&above, 0o777);
        let words = format!("others can write in {}:", above.display());
        let refusal = refusal(trusted_folder(&path));
        assert!(refusal.starts_with(&words), "{refusal}");
        set_mode(&above, 0o1777);
        trusted_folder(&path).unwrap();
    }

    #[test]
    fn nor_is_one_to_which_a_link_leads_that_others_can_change() {
        let around = tempfile::tempdir().unwrap();
        let (open, own) = (around.path().join("open"), around.path().join("own"));
        trusted_folder(&own.join("cache")).unwrap();
        folder(&open).unwrap();
        symlink("../own", open.join("link")).unwrap();
        trusted_folder(&open.join("link/cache")).unwrap();
        symlink(own.join("cache"), around.path().join("there")).unwrap();
        trusted_folder(&around.path().join("there")).unwrap();
        set_mode(&open, 0o777);
        let refused = refusal(trusted_folder(&open.join("link/cache")));
        assert!(refused.contains("others can write in "), "{refused}");
        symlink("round", around.path().join("round")).unwrap();
        let refused = refusal(trust(&around.path().join("round")));
        assert!(refused.contains("leads nowhere"), "{refused}");
    }

    #[test]
    fn nor_is_one_that_belongs_to_another_user_or_lies_in_theirs() {
        let around = tempfile::tempdir().unwrap();
        let theirs = around.path().join("theirs");
        trusted_folder(&theirs.join("cache")).unwrap();
        // Only root can give a folder away.
        if chown(&theirs, Some(12_345), None).is_err() {
            return;
        }
        for path in [theirs.clone(), theirs.join("cache")] {
            let refusal = refusal(trusted_folder(&path));
            assert!(refusal.ends_with("another user (uid 12345)"), "{refusal}");
        }
    }

    #[test]
    fn a_file_is_no_folder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refusal = folder(file.path()).unwrap_err().to_string();
        assert!(refusal.starts_with("can't make the folder "), "{refusal}");
    }

    #[test]
    fn a_file_is_its_user_s_alone_whatever_it_was_before() {
        let around = tempfile::tempdir().unwrap();
        set_mode(around.path(), 0o777);
        let path = around.path().join("state");
        file(&path).unwrap().write_all(b"kept").unwrap();
        assert_eq!(mode(&path), 0o600);
        set_mode(&path, 0o666);
        file(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(fs::read(&path).unwrap(), b"kept");
        set_mode(&path, 0o644);
        write(&path, b"new").unwrap();
        assert_eq!(
            (mode(&path), &*fs::read(&path).unwrap()),
            (0o600, &b"new"[..])
        );
    }

    #[test]
    fn what_a_killed_process_has_left_of_a_file_goes_with_the_next_one_that_is_written() {
        let around = tempfile::tempdir().unwrap();
        let left = |name: &str, hours: u64| {
            let path = around.path().join(name);
            let file = File::create(&path).unwrap();
            let now = file.metadata().unwrap().modified().unwrap();
            let at = now - Duration::from_secs(hours * 3_600);
            file.set_modified(at).unwrap();
            path
        };
        let (old, recent) = (left(".unfinished-a", 2), left(".unfinished-b", 0));
        let other = left("notes.new", 2);
        write(&around.path().join("epoch"), b"7").unwrap();
        assert!(!old.exists());
        assert!(recent.exists() && other.exists());
        // The folder isn't searched again for each file that is written.
        let old = left(".unfinished-a", 2);
        write(&around.path().join("epoch"), b"8").unwrap();
        assert!(old.exists());
    }

    #[test]
    fn what_is_written_goes_into_no_file_to_which_a_link_leads() {
        let around = tempfile::tempdir().unwrap();
        let (path, victim) = (
            around.path().join("acme.epoch"),
            around.path().join("victim"),
        );
        fs::write(&victim, "theirs").unwrap();
        for write in [write, write_unsynced] {
            let _ = fs::remove_file(&path);
            symlink(&victim, &path).unwrap();
            write(&path, b"1").unwrap();
            assert_eq!(fs::read(&victim).unwrap(), b"theirs");
            assert_eq!(
                (mode(&path), &*fs::read(&path).unwrap()),
                (0o600, &b"1"[..])
            );
        }
    }

    #[test]
    fn a_key_is_made_once_and_made_anew_when_it_is_none() {
        let around = tempfile::tempdir().unwrap();
        let dir = around.path().join("presence");
        let path = dir.join("cache.key");
        let first = key(&dir).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(key(&dir).unwrap(), first);
        let mut last = first;
        let spoils: [&dyn Fn(); 4] = [
            &|| set_mode(&path, 0o644),
            &|| fs::write(&path, "short").unwrap(),
            &|| fs::write(&path, [7; 33]).unwrap(),
            &|| {
                fs::rename(&path, dir.join("moved")).unwrap();
                symlink("moved", &path).unwrap();
            },
        ];
        for spoil in spoils {
            spoil();
            let new = key(&dir).unwrap();
            assert_ne!(new, last);
            assert_eq!(mode(&path), 0o600);
            last = new;
        }
        set_mode(&dir, 0o777);
        assert!(key(&dir).is_err());
    }
}
