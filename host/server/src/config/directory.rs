//! `[directory]`: where contacts, groups and blocks come from.

use std::path::PathBuf;

use super::checks::token;
use super::problem::Wrong;
use super::section::Section;

/// `[directory]`: where contacts, groups and blocks come from. The keys of a
/// source that isn't chosen are checked, and then of no effect.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Directory {
    /// `source = "file"`: a JSON file, which is watched.
    File {
        /// The file.
        path: PathBuf,
    },
    /// `source = "kv"`: a NATS KV bucket, which is watched.
    Kv {
        /// The bucket's name.
        bucket: String,
    },
}

/// What `source` says.
enum Source {
    File,
    Kv,
}

impl Directory {
    /// Whether one can take the place of the other while the node runs: a file
    /// of a file.
    pub(super) fn is_alike(&self, other: &Self) -> bool {
        self == other || matches!((self, other), (Self::File { .. }, Self::File { .. }))
    }

    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let source = section.get("source", |text: String| match text.as_str() {
            "file" => Ok(Source::File),
            "kv" => Ok(Source::Kv),
            "request" => Err(Wrong::new(
                "is `request`, which comes with a later version",
                "write `file` or `kv`",
            )),
            _ => Err(Wrong::new(format!("is `{text}`"), "write `file` or `kv`")),
        });
        let path = section.path("path");
        let bucket = section.section("kv", |kv| kv.get("bucket", token));
        match source.unwrap_or(Source::File) {
            Source::File => Self::File {
                path: path.unwrap_or_else(|| section.resolve("directory.json")),
            },
            Source::Kv => Self::Kv {
                bucket: bucket.unwrap_or_else(|| "presence-directory".into()),
            },
        }
    }
}
