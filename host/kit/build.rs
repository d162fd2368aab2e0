//! Lists what `presence plugin new` writes, for the program to hold: the
//! templates, and the sources of the Rust SDK.

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let plugins = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../plugins");
    let plugins = plugins.canonicalize()?;
    let mut code = String::new();
    for (list, folder) in [("TEMPLATES", "templates"), ("SDK", "sdk")] {
        let folder = plugins.join(folder);
        // New files in it are noticed, too.
        println!("cargo::rerun-if-changed={}", folder.display());
        let mut files = Vec::new();
        walk(&folder, &mut files)?;
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

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            walk(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}
