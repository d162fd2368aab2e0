//! Builds Python: componentize-py makes a component that contains an interpreter. That takes long,
//! so the component is kept, and used again if nothing has changed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context as _;
use presence_sandbox::sha256;

use super::{Source, tool};

/// The module that is built. It wraps the plugin's functions, which the host calls through it.
const ENTRY: &str = include_str!("guest/presence_entry.py");

/// The folder and the name of this module.
const GUEST: &str = "build/guest";
const MODULE: &str = "presence_entry";

/// Folders in a plugin's folder that hold no part of the plugin.
const FOREIGN: [&str; 4] = ["build", "typings", "__pycache__", "node_modules"];

pub(super) fn compile(source: &Source<'_>) -> anyhow::Result<Vec<u8>> {
    let program = tool::find(source.folder, "componentize-py").with_context(|| {
        format!(
            "componentize-py is needed: run `python3 -m venv .venv && .venv/bin/pip install \
             componentize-py==0.25.1` in {}",
            source.folder.display()
        )
    })?;
    let module = Path::new(source.entry).with_extension("");
    let guest = source.folder.join(GUEST);
    let entry = guest.join(MODULE).with_extension("py");
    fs::create_dir_all(&guest).with_context(|| format!("can't make {}", guest.display()))?;
    fs::write(&entry, ENTRY.replace("ENTRY", &module.to_string_lossy()))
        .with_context(|| format!("can't write {}", entry.display()))?;
    let component = Path::new("build/component.wasm");
    let built = source.folder.join(component);
    let note = source.folder.join("build/component.wasm.inputs");
    let inputs = inputs(source, &program)?;
    if let (Ok(bytes), Ok(noted)) = (fs::read(&built), fs::read_to_string(&note))
        && noted == noted_as(&inputs, &bytes)
    {
        return Ok(bytes);
    }
    let mut command = Command::new(program);
    command
        .args(["--quiet", "--wit-path", &source.wit_file()])
        .args(["--world", source.world()])
        // Calls of WASI by the interpreter trap.
        .args(["componentize", "--stub-wasi"])
        .args(["--python-path", ".", "--python-path", GUEST, MODULE])
        .arg("--output")
        .arg(component)
        .current_dir(source.folder);
    tool::run_long(&mut command, source)?;
    let bytes = super::super::read(&built)?;
    fs::write(&note, noted_as(&inputs, &bytes))
        .with_context(|| format!("can't write {}", note.display()))?;
    Ok(bytes)
}

/// The note about a kept component: the digest of its inputs, and its own.
fn noted_as(inputs: &str, component: &[u8]) -> String {
    format!("{inputs} {}\n", sha256(component))
}

/// The digest of everything that a component is built from: the plugin's files, the API, and the
/// installed packages.
fn inputs(source: &Source<'_>, program: &Path) -> anyhow::Result<String> {
    let mut files = Vec::new();
    own_files(source.folder, &mut files)?;
    files.push(source.folder.join(source.wit_file()));
    files.sort();
    let mut inputs = Vec::new();
    let mut add = |bytes: &[u8]| {
        inputs.extend((bytes.len() as u64).to_le_bytes());
        inputs.extend(bytes);
    };
    for file in files {
        add(file.as_os_str().as_encoded_bytes());
        add(&super::super::read(&file)?);
    }
    add(ENTRY.as_bytes());
    add(source.world().as_bytes());
    for package in installed(program) {
        add(package.as_bytes());
    }
    Ok(sha256(&inputs).to_string())
}

/// The files of a folder that may be part of a plugin: its modules, and data that they read during
/// the build.
fn own_files(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let cant = || format!("can't read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(cant)? {
        let entry = entry.with_context(cant)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if name.starts_with('.') || FOREIGN.contains(&&*name) {
            continue;
        }
        if path.is_dir() {
            // A link to a folder that it lies in would be followed without end.
            let target = fs::canonicalize(&path).with_context(cant)?;
            if !fs::canonicalize(folder)
                .with_context(cant)?
                .starts_with(target)
            {
                own_files(&path, files)?;
            }
        } else if name != super::super::update::MANIFEST && !name.ends_with(".wasm") {
            files.push(path);
        }
    }
    Ok(())
}

/// The packages, with their versions, in all environments that a program may import from.
fn installed(program: &Path) -> Vec<String> {
    let own = program.parent().and_then(Path::parent);
    let versions = own.map(|own| own.join("lib"));
    let versions = versions.and_then(|lib| fs::read_dir(lib).ok());
    let sites = versions.into_iter().flatten().flatten();
    let sites = sites.map(|version| version.path().join("site-packages"));
    let paths = env::var_os("PYTHONPATH").unwrap_or_default();
    let places = own.map(Path::to_owned).into_iter().chain(sites);
    let mut packages: Vec<_> = places
        .chain(env::split_paths(&paths))
        .filter_map(|place| fs::read_dir(place).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".dist-info") || name.ends_with(".py"))
        .collect();
    packages.sort();
    packages
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_a_folder_is_followed_unless_it_leads_around() {
        let root = std::env::temp_dir().join(format!("presence-links-{}", std::process::id()));
        let (folder, shared) = (root.join("plugin"), root.join("shared"));
        for folder in [&folder, &shared] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(shared.join("rules.py"), "").unwrap();
        std::os::unix::fs::symlink(&shared, folder.join("shared")).unwrap();
        std::os::unix::fs::symlink(&folder, folder.join("itself")).unwrap();
        std::os::unix::fs::symlink(&root, folder.join("above")).unwrap();
        let mut files = Vec::new();
        let read = own_files(&folder, &mut files);
        fs::remove_dir_all(&root).unwrap();
        read.unwrap();
        assert_eq!(files, [folder.join("shared").join("rules.py")]);
    }
}
