//! The text of the configuration file. It is read as a whole. A file that is missing and one that
//! is empty are told apart.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;

use toml::de::DeTable;

use super::FILE_NAME;
use super::problem::{Problem, Problems};
use crate::regular_file::{self, kind_name};

/// The longest configuration, in bytes: far longer than any that is written by hand.
const BYTES_MAX: u64 = 16 << 20;

/// The text of a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Text(String);

impl Text {
    /// Reads the file at `path`, or `presence.toml` in the working folder. `None` if `path` is
    /// `None` and there is no such file.
    ///
    /// # Errors
    /// If it can't be read, or is empty: an empty file was cut off, and doesn't ask for the
    /// defaults.
    pub fn read(path: Option<&Path>) -> Result<Option<Self>, Problems> {
        Self::read_in(Path::new(""), path)
    }

    pub(super) fn read_in(working: &Path, path: Option<&Path>) -> Result<Option<Self>, Problems> {
        let usual = working.join(FILE_NAME);
        let file = path.unwrap_or(&usual);
        match read_bounded(file) {
            Ok(text) => Self::filled(file, &text).map(Some),
            Err(error) if path.is_none() && error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Problem::unreadable(file, &error).into()),
        }
    }

    /// As [`read`](Self::read), for a running node. It never waits, as it would for a FIFO.
    ///
    /// # Errors
    /// As [`read`](Self::read), and if it is no regular file.
    pub fn read_again(path: Option<&Path>) -> anyhow::Result<Option<Self>> {
        let file = path.unwrap_or(Path::new(FILE_NAME));
        match regular_file::read_text(file) {
            Ok(text) => Ok(Some(Self::filled(file, &text)?)),
            Err(error) if path.is_none() && error.is_missing() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn filled(file: &Path, text: &str) -> Result<Self, Problems> {
        // Some editors put a byte-order mark at the beginning.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        if text.trim().is_empty() {
            return Err(Problem::empty(file).into());
        }
        Ok(Self(text.to_owned()))
    }

    /// A text that doesn't come from a file.
    pub fn of(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Checks whether a running node may replace its text by this one.
    ///
    /// # Errors
    /// If it sets nothing, or has no `[[pipeline]]`, and the running text does. A text that isn't
    /// TOML is accepted here: its problems are found when it is parsed.
    pub fn may_follow(&self, running: &Self) -> anyhow::Result<()> {
        if DeTable::parse(&self.0).is_err() {
            return Ok(());
        }
        anyhow::ensure!(
            !self.sets_nothing() || running.sets_nothing(),
            "nothing is set in the file any more: write what is to hold"
        );
        anyhow::ensure!(
            self.has_pipeline() || !running.has_pipeline(),
            "there is no [[pipeline]] in the file any more, and the default one doesn't take \
             the place of what was configured: write the sections that are to hold"
        );
        Ok(())
    }

    /// Whether it names the plugins of the pipeline, instead of leaving them to the default.
    pub fn has_pipeline(&self) -> bool {
        let document = DeTable::parse(&self.0);
        document.is_ok_and(|document| document.get_ref().contains_key("pipeline"))
    }

    /// Whether it sets nothing, and has comments at most.
    pub fn sets_nothing(&self) -> bool {
        let document = DeTable::parse(&self.0);
        document.is_ok_and(|document| document.get_ref().is_empty())
    }
}

/// Reads a file, or what the shell provides in place of one. Anything else that isn't a regular
/// file, such as a FIFO, is refused, since opening it might wait.
fn read_bounded(file: &Path) -> io::Result<String> {
    let is_of_shell = file.starts_with("/dev") || file.starts_with("/proc");
    let kind = fs::metadata(file)?.file_type();
    if !kind.is_file() && !kind.is_dir() && !is_of_shell {
        let what = format!("it is {}: only a regular file is read", kind_name(kind));
        return Err(io::Error::new(ErrorKind::InvalidInput, what));
    }
    let mut text = String::new();
    File::open(file)?
        .take(BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > BYTES_MAX {
        let what = format!("it is longer than {BYTES_MAX} bytes");
        return Err(io::Error::new(ErrorKind::FileTooLarge, what));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_an_end_is_not_read_for_ever() {
        let problem = Text::read(Some(Path::new("/dev/zero"))).unwrap_err();
        let problem = problem.to_string();
        assert!(problem.contains("it is longer than"), "{problem}");
    }

    #[test]
    fn a_fifo_is_not_waited_for_and_a_link_to_a_file_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (fifo, link) = (folder.path().join("fifo"), folder.path().join("link"));
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        let problem = Text::read(Some(&fifo)).unwrap_err().to_string();
        assert!(
            problem.contains("it is a FIFO: only a regular file is read"),
            "{problem}"
        );
        fs::write(folder.path().join("file"), "[log]\nlevel = 'warn'\n").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        assert!(Text::read(Some(&link)).unwrap().is_some());
    }

    fn read(bytes: &[u8]) -> Result<Option<Text>, Problems> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("node.toml");
        std::fs::write(&path, bytes).unwrap();
        Text::read(Some(&path))
    }

    #[test]
    fn an_empty_file_is_refused_and_a_byte_order_mark_is_passed_over() {
        for empty in [&b""[..], b"\n \n", b"\xef\xbb\xbf"] {
            let problem = read(empty).unwrap_err().to_string();
            assert!(problem.contains("node.toml: is empty;"), "{problem}");
        }
        let text = read(b"\xef\xbb\xbf[log]\nlevel = 'warn'\n")
            .unwrap()
            .unwrap();
        assert_eq!(text.as_str(), "[log]\nlevel = 'warn'\n");
        assert!(!text.sets_nothing() && !text.has_pipeline());
        assert!(read(b"# a comment\n").unwrap().unwrap().sets_nothing());
        let chain = read(b"[[pipeline]]\nplugin = 'contacts'\n")
            .unwrap()
            .unwrap();
        assert!(chain.has_pipeline());
    }

    #[test]
    fn only_a_file_that_nobody_named_may_be_missing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Text::read_in(folder.path(), None).unwrap(), None);
        let named = folder.path().join("node.toml");
        assert!(Text::read_in(folder.path(), Some(&named)).is_err());
    }
}
