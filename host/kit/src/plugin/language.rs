//! The languages that have templates, and that `build` can build.

use std::path::Path;

use anyhow::bail;
use clap::ValueEnum;

/// A language.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Language {
    /// Rust, with the SDK.
    #[default]
    Rust,
    /// TypeScript, or JavaScript.
    #[value(alias = "javascript")]
    Typescript,
    /// Python.
    Python,
    /// C.
    C,
}

/// The files by which a folder's language is recognized.
const SIGNS: [(&str, Language); 5] = [
    ("Cargo.toml", Language::Rust),
    ("plugin.ts", Language::Typescript),
    ("plugin.js", Language::Typescript),
    ("plugin.py", Language::Python),
    ("plugin.c", Language::C),
];

impl Language {
    /// The language of a folder's plugin, and the file by which it was recognized.
    ///
    /// # Errors
    /// When the folder has none of these files.
    pub(super) fn of(folder: &Path) -> anyhow::Result<(Self, &'static str)> {
        let sign = SIGNS.iter().find(|(file, _)| folder.join(file).is_file());
        match sign {
            Some((file, language)) => Ok((*language, file)),
            None => bail!(
                "{} has none of {}: `presence plugin new` makes a folder that has",
                folder.display(),
                SIGNS.map(|(file, _)| file).join(", ")
            ),
        }
    }

    /// The folder of its templates.
    pub(super) fn templates(self) -> &'static str {
        match self {
            Self::Rust => "rust",
            Self::Typescript => "typescript",
            Self::Python => "python",
            Self::C => "c",
        }
    }

    /// The language's name for people.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rust => "Rust",
            Self::Typescript => "TypeScript",
            Self::Python => "Python",
            Self::C => "C",
        }
    }

    /// The command that installs what is needed, once per plugin folder.
    pub(super) fn install(self) -> &'static str {
        match self {
            Self::Rust => "rustup target add wasm32-unknown-unknown",
            Self::Typescript => "npm install",
            Self::Python | Self::C => {
                "python3 -m venv .venv && .venv/bin/pip install -r requirements.txt"
            }
        }
    }

    /// The command that tests the rule without a host.
    pub(super) fn test(self) -> &'static str {
        match self {
            Self::Rust => "cargo test",
            Self::Typescript => "npm test",
            Self::Python => "python3 -m unittest",
            Self::C => "make test",
        }
    }
}
