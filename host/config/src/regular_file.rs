//! Reads files that others put there. Only a regular file is opened, opening never waits, and a
//! file that is too long isn't read.

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

/// Why a file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// The system reports an error. Another attempt may succeed.
    #[error("can't read {path}", path = .0.display())]
    Io(PathBuf, #[source] io::Error),
    /// It isn't a regular file, but what the text says.
    #[error("{path} is {1}: only a regular file is read", path = .0.display())]
    NotRegular(PathBuf, &'static str),
    /// It is longer than this many bytes, a limit that this key of the configuration sets.
    #[error("{path} is longer than {1} bytes, which {2} allows", path = .0.display())]
    TooLong(PathBuf, u64, &'static str),
}

impl Unreadable {
    /// Whether there is no such file.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io(_, error) if error.kind() == io::ErrorKind::NotFound)
    }
}

/// How long a file may be.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The limit, in bytes.
    pub bytes_max: u64,
    /// The key that sets it, for errors.
    pub key: &'static str,
}

/// Reads a regular file whole.
///
/// # Errors
/// If it is anything else, is longer than the limit, or can't be read.
pub fn read(path: &Path, limit: Option<Limit>) -> Result<Vec<u8>, Unreadable> {
    let io = |error| Unreadable::Io(path.to_owned(), error);
    let not_regular = |kind| Unreadable::NotRegular(path.to_owned(), kind_name(kind));
    // Opening a device may already have an effect.
    let kind = fs::metadata(path).map_err(io)?.file_type();
    if !kind.is_file() {
        return Err(not_regular(kind));
    }
    let file = open(path).map_err(io)?;
    // The file may have been replaced meanwhile.
    let metadata = file.metadata().map_err(io)?;
    if !metadata.is_file() {
        return Err(not_regular(metadata.file_type()));
    }
    let too_long = |limit: Limit| Unreadable::TooLong(path.to_owned(), limit.bytes_max, limit.key);
    if let Some(limit) = limit.filter(|limit| metadata.len() > limit.bytes_max) {
        return Err(too_long(limit));
    }
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or_default());
    match limit {
        Some(limit) => {
            // It may grow while it is read.
            let mut rest = file.take(limit.bytes_max.saturating_add(1));
            rest.read_to_end(&mut bytes).map_err(io)?;
            if bytes.len() as u64 > limit.bytes_max {
                return Err(too_long(limit));
            }
        }
        None => drop((&file).read_to_end(&mut bytes).map_err(io)?),
    }
    Ok(bytes)
}

/// As [`read`], for text.
///
/// # Errors
/// As [`read`], and if it isn't UTF-8.
pub fn read_text(path: &Path) -> Result<String, Unreadable> {
    let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
    String::from_utf8(read(path, None)?)
        .map_err(|error| Unreadable::Io(path.to_owned(), invalid(error.utf8_error())))
}

/// Opens a file without waiting, even if it is a FIFO.
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(path)
}

pub(crate) fn kind_name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

/// Identifies a state of a file, to notice changes. The default is that of a missing file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stamp(Option<[i64; 7]>);

impl Stamp {
    /// The state of the file at a path, through links. The file isn't opened.
    pub fn of(path: &Path) -> Self {
        // The time of change shows what the other values don't: new permissions, and a modification
        // time that was set.
        Self(fs::metadata(path).ok().map(|file| {
            [
                file.dev().cast_signed(),
                file.ino().cast_signed(),
                file.len().cast_signed(),
                file.mtime(),
                file.mtime_nsec(),
                file.ctime(),
                file.ctime_nsec(),
            ]
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    const LIMIT: Limit = Limit {
        bytes_max: 4,
        key: "[x] y",
    };

    #[test]
    fn what_is_no_regular_file_is_refused_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let refusal = || read(&path, None).unwrap_err().to_string();
        fs::create_dir(&path).unwrap();
        assert!(refusal().contains("is a folder: only a regular file"));
        fs::remove_dir(&path).unwrap();
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(refusal().contains("is a FIFO"), "{}", refusal());
        // A FIFO that takes the file's place after it was looked at isn't waited for.
        assert!(open(&path).is_ok());
        fs::remove_file(&path).unwrap();
        let _socket = UnixListener::bind(&path).unwrap();
        assert!(refusal().contains("is a socket"));
        let null = read(Path::new("/dev/zero"), None).unwrap_err().to_string();
        assert!(null.contains("is a device"), "{null}");
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        assert!(read(&path, None).unwrap_err().is_missing());
        fs::write(&path, "1234").unwrap();
        assert_eq!(read(&path, Some(LIMIT)).unwrap(), b"1234");
        fs::write(&path, "12345").unwrap();
        let error = read(&path, Some(LIMIT)).unwrap_err().to_string();
        assert!(error.ends_with("is longer than 4 bytes, which [x] y allows"));
        // A file that reports a length of 0 may have any content.
        let endless = read(Path::new("/proc/self/status"), Some(LIMIT));
        assert!(matches!(endless, Err(Unreadable::TooLong(..))));
        fs::write(&path, b"\xff").unwrap();
        assert!(read_text(&path).is_err());
    }

    #[test]
    fn a_stamp_tells_a_changed_file_and_one_that_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let none = Stamp::of(&path);
        fs::write(&path, "1").unwrap();
        let first = Stamp::of(&path);
        assert_ne!(none, first);
        assert_eq!(first, Stamp::of(&path));
        fs::write(&path, "12").unwrap();
        assert_ne!(first, Stamp::of(&path));
    }
}
