//! Generates lists of the files that `presence plugin new` writes, for the program to embed: the
//! templates, and the sources of the Rust SDK.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use walkdir::{DirEntry, WalkDir};

fn main() -> Result<(), Box<dyn Error>> {
    let plugins = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../plugins");
    let plugins = plugins.canonicalize()?;
    let mut code = String::new();
    for (list, folder) in [("TEMPLATES", "templates"), ("SDK", "sdk")] {
        let folder = plugins.join(folder);
        // Also reruns for new files in the folder.
        println!("cargo::rerun-if-changed={}", folder.display());
        let mut files = WalkDir::new(&folder)
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?;
        files.retain(|file| !file.file_type().is_dir());
        let mut files: Vec<_> = files.into_iter().map(DirEntry::into_path).collect();
        files.sort();
        writeln!(code, "pub(super) const {list}: &[(&str, &str)] = &[")?;
        for file in files {
            let name = file.strip_prefix(&folder)?.display().to_string();
            writeln!(
                code,
                "({name:?}, include_str!({:?})),",
                file.display().to_string()
            )?;
        }
        writeln!(code, "];")?;
    }
    fs::write(
        PathBuf::from(env::var("OUT_DIR")?).join("embedded.rs"),
        code,
    )?;
    Ok(())
}
