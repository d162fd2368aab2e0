//! Sets files aside that can't be used, so that they can be examined. The number is limited: on a
//! failing disk, each start may add one.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::clock;

/// How many are kept for each file and reason: the newest.
const KEPT: usize = 3;

/// Sets a file aside under a new name with the reason in it. If there are too many such files, the
/// oldest are removed. Returns the new path.
///
/// # Errors
/// If it can't be moved.
pub(crate) fn set_aside(path: &Path, why: &str) -> anyhow::Result<PathBuf> {
    let mut before = earlier(path, why);
    // Numbers are unique, and increase.
    let last = before.last().map_or(0, |(number, _)| *number);
    let number = clock::now_ms().max(last.saturating_add(1));
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{why}-{number}"));
    let aside = PathBuf::from(name);
    let renamed = fs::rename(path, &aside);
    renamed.with_context(|| format!("can't set {} aside", path.display()))?;
    let too_many = (before.len() + 1).saturating_sub(KEPT);
    for (_, old) in before.drain(..too_many) {
        match fs::remove_file(&old) {
            Ok(()) => tracing::info!("removed {}: newer ones are kept", old.display()),
            Err(error) => tracing::warn!("can't remove {}: {error}", old.display()),
        }
    }
    Ok(aside)
}

/// The files that were set aside before, with their numbers, oldest first.
fn earlier(path: &Path, why: &str) -> Vec<(u64, PathBuf)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Vec::new();
    };
    let mut begin = OsString::from(name);
    begin.push(format!(".{why}-"));
    let number = |file: &Path| {
        let name = file.file_name()?.as_encoded_bytes();
        let number = name.strip_prefix(begin.as_encoded_bytes())?;
        std::str::from_utf8(number).ok()?.parse().ok()
    };
    // In a folder that can't be read, nothing can be removed, either.
    let files = fs::read_dir(folder).into_iter().flatten().flatten();
    let files = files.map(|file| file.path());
    let mut earlier: Vec<_> = files
        .filter_map(|file| Some((number(&file)?, file)))
        .collect();
    earlier.sort();
    earlier
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_the_files_that_were_set_aside_the_newest_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("presence.redb");
        let others = [
            "presence.directory.redb.damaged-1",
            "presence.redb.damaged-x",
        ];
        for other in others {
            fs::write(folder.path().join(other), "").unwrap();
        }
        let mut aside = Vec::new();
        for number in 0..2 * KEPT {
            fs::write(&path, number.to_string()).unwrap();
            aside.push(set_aside(&path, "damaged").unwrap());
        }
        for (number, aside) in aside.iter().enumerate() {
            assert_eq!(aside.exists(), number >= KEPT, "{number}");
        }
        for other in others {
            assert!(folder.path().join(other).exists(), "{other} is not its own");
        }
    }
}
