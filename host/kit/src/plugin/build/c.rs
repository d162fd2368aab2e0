//! Builds C: Zig, which is also a C compiler with everything for Wasm, makes a core module.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use presence_component::c_bindings;

use super::{Source, tool};

/// An `assert` that logs its failure.
const ASSERT: [(&str, &str); 2] = [
    ("assert.h", include_str!("guest/assert.h")),
    ("assert.c", include_str!("guest/assert.c")),
];

/// The folder of the bindings, which each build writes anew.
const BINDINGS: &str = "bindings";

pub(super) fn compile(source: &Source<'_>) -> anyhow::Result<Vec<u8>> {
    let mut zig = zig(source.folder)?;
    let bindings = write_bindings(source.folder, &source.wit_file(), source.world())?;
    let module = Path::new("build/module.wasm");
    zig.args(["cc", "--target=wasm32-wasi", "-mexec-model=reactor"])
        // Without -UNDEBUG, Zig turns assertions off when it optimises.
        .args(["-std=c17", "-Wall", "-Wextra", "-Oz", "-UNDEBUG"])
        .arg("-Wl,--strip-all")
        // Zig's default is sixteen times as much, and counts as the plugin's memory.
        .arg("-Wl,-z,stack-size=1048576")
        .arg(format!("-I{BINDINGS}"))
        .args(sources(source.folder)?)
        .args(bindings)
        .arg("-o")
        .arg(module)
        .current_dir(source.folder);
    tool::run(&mut zig)?;
    super::super::read(&source.folder.join(module))
}

/// Writes the bindings of a world, for a version of the API, into a plugin's folder. Returns the
/// files to be compiled.
pub(in crate::plugin) fn write_bindings(
    folder: &Path,
    wit_file: &str,
    world: &str,
) -> anyhow::Result<Vec<PathBuf>> {
    let wit = fs::read_to_string(folder.join(wit_file))
        .with_context(|| format!("can't read {}", folder.join(wit_file).display()))?;
    let mut compiled = Vec::new();
    let names = world.replace('-', "_");
    let assert = ASSERT.map(|(name, text)| (name.into(), text.replace("WORLD", &names).into()));
    for (name, content) in c_bindings(&wit, world)?.into_iter().chain(assert) {
        let path = Path::new(BINDINGS).join(name);
        let place = folder.join(&path);
        let cant = || format!("can't write {}", place.display());
        fs::create_dir_all(folder.join(BINDINGS)).with_context(cant)?;
        fs::write(&place, content).with_context(cant)?;
        if path.extension().is_some_and(|ending| ending != "h") {
            compiled.push(path);
        }
    }
    Ok(compiled)
}

/// The plugin's own source files, but for its tests.
fn sources(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let cant = || format!("can't read {}", folder.display());
    let mut sources = Vec::new();
    for entry in fs::read_dir(folder).with_context(cant)? {
        let name = PathBuf::from(entry.with_context(cant)?.file_name());
        let is_test = name.to_string_lossy().starts_with("test");
        if name.extension().is_some_and(|ending| ending == "c") && !is_test {
            sources.push(name);
        }
    }
    // A fixed order makes the output reproducible.
    sources.sort();
    Ok(sources)
}

/// Zig itself, or the wrapper that its PyPI package installs.
fn zig(folder: &Path) -> anyhow::Result<Command> {
    let program = ["python-zig", "zig"]
        .iter()
        .find_map(|program| tool::find(folder, program));
    let program = program.with_context(|| {
        format!(
            "Zig is needed, as a C compiler: run `python3 -m venv .venv && .venv/bin/pip install \
             ziglang==0.17.1` in {}",
            folder.display()
        )
    })?;
    Ok(Command::new(program))
}
