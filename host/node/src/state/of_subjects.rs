//! States of other subjects. When a tenant gets other subjects, its state is set aside under a name
//! of its own, and taken back when the tenant has the old subjects again. So viewers who were told
//! about users on these subjects are told in the end that the users left.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Context as _;
use ring::digest::{SHA256, digest};

/// How many are kept of a tenant: those that were written last.
const KEPT: usize = 16;

/// Stands between the name of the state and a digest of its subjects.
const ASIDE: &str = ".of-other-subjects-";

/// Sets aside the state at `path`, which belongs to these subjects. Returns its new path.
///
/// # Errors
/// If it can't be moved.
pub(super) fn set_aside(path: &Path, subjects: &str) -> anyhow::Result<PathBuf> {
    let aside = place(path, subjects);
    let renamed = fs::rename(path, &aside);
    renamed.with_context(|| format!("can't set {} aside", path.display()))?;
    let mut all = all(path);
    all.sort_unstable();
    let too_many = all.len().saturating_sub(KEPT);
    for (_, old) in all
        .into_iter()
        .filter(|(_, it)| *it != aside)
        .take(too_many)
    {
        let old_path = old.display();
        match fs::remove_file(&old) {
            Ok(()) => tracing::warn!(
                "removed {old_path}: {KEPT} states of other subjects are kept, and this one was written \
                 longest ago. Nobody who was told of its users is told that they left"
            ),
            Err(error) => tracing::warn!("can't remove {old_path}: {error}"),
        }
    }
    Ok(aside)
}

/// Takes back the state of these subjects, if one was set aside and there is none at `path`.
/// Returns whether it has done so.
///
/// # Errors
/// If it can't be moved.
pub(super) fn take_back(path: &Path, subjects: &str) -> anyhow::Result<bool> {
    let aside = place(path, subjects);
    if path.exists() || !aside.exists() {
        return Ok(false);
    }
    let renamed = fs::rename(&aside, path);
    renamed.with_context(|| format!("can't take {} back", aside.display()))?;
    Ok(true)
}

/// The path of the state of these subjects while the tenant has others.
fn place(path: &Path, subjects: &str) -> PathBuf {
    // A digest, since the subjects may contain a path, and may be longer than a file name.
    let digest = digest(&SHA256, subjects.as_bytes());
    let digits = digest.as_ref().iter().take(8);
    let digits: String = digits.map(|byte| format!("{byte:02x}")).collect();
    let mut name = path.as_os_str().to_owned();
    name.push(format!("{ASIDE}{digits}"));
    PathBuf::from(name)
}

/// All states that were set aside, and when each was written.
fn all(path: &Path) -> Vec<(SystemTime, PathBuf)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Vec::new();
    };
    let mut begin = name.to_owned();
    begin.push(ASIDE);
    // In a folder that can't be read, nothing can be removed, either.
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let asides = files.filter(|file| {
        let name = file.file_name();
        name.as_encoded_bytes()
            .starts_with(begin.as_encoded_bytes())
    });
    let written = |file: &fs::DirEntry| file.metadata().and_then(|it| it.modified()).ok();
    asides
        .map(|file| {
            let written = written(&file).unwrap_or(SystemTime::UNIX_EPOCH);
            (written, file.path())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_kept_until_its_subjects_are_back_and_the_oldest_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("acme.redb");
        fs::write(folder.path().join("acme.redb.damaged-1"), "").unwrap();
        let asides: Vec<_> = (0..KEPT + 2)
            .map(|number| {
                fs::write(&path, number.to_string()).unwrap();
                let file = fs::File::options().write(true).open(&path).unwrap();
                let written =
                    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(number as u64);
                file.set_modified(written).unwrap();
                set_aside(&path, &format!("{number}.presence.>")).unwrap()
            })
            .collect();
        for (number, aside) in asides.iter().enumerate() {
            assert_eq!(aside.exists(), number >= 2, "{number}");
        }
        assert!(!take_back(&path, "1.presence.>").unwrap(), "it was removed");
        assert!(take_back(&path, "5.presence.>").unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "5");
        assert!(
            !take_back(&path, "6.presence.>").unwrap(),
            "another is in its place"
        );
        assert!(folder.path().join("acme.redb.damaged-1").exists());
    }
}
