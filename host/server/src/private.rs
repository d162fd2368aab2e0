//! Folders for the node's own user alone.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context as _, ensure};

/// The bits of a folder that lets its group, or everyone, write.
const OTHERS_WRITE: u32 = 0o022;

/// Makes a folder that others can't read, if it isn't there.
pub(crate) fn folder(path: &Path) -> anyhow::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("can't make the folder {}", path.display()))
}

/// As [`folder`]. If it is there, others must not be able to write.
pub(crate) fn trusted_folder(path: &Path) -> anyhow::Result<()> {
    folder(path)?;
    let mode = fs::metadata(path)?.permissions().mode();
    ensure!(
        mode & OTHERS_WRITE == 0,
        "others can write in {0}: `chmod go-w {0}`",
        path.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_others_can_write_in_is_not_trusted() {
        let around = tempfile::tempdir().unwrap();
        let path = around.path().join("a").join("b");
        trusted_folder(&path).unwrap();
        let mode = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o700
        );
        trusted_folder(&path).unwrap();
        mode(0o755);
        trusted_folder(&path).unwrap();
        for open in [0o775, 0o707] {
            mode(open);
            let refusal = trusted_folder(&path).unwrap_err().to_string();
            assert!(refusal.starts_with("others can write in "), "{refusal}");
            folder(&path).unwrap();
        }
    }

    #[test]
    fn a_file_is_no_folder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refusal = folder(file.path()).unwrap_err().to_string();
        assert!(refusal.starts_with("can't make the folder "), "{refusal}");
    }
}
