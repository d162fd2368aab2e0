//! Python: componentize-py makes a component with an interpreter in it.

use std::path::Path;
use std::process::Command;

use anyhow::Context as _;

use super::{Source, tool};

pub(super) fn compile(source: &Source<'_>) -> anyhow::Result<Vec<u8>> {
    let program = tool::find(source.folder, "componentize-py").with_context(|| {
        format!(
            "componentize-py is needed: run `python3 -m venv .venv && .venv/bin/pip install \
             componentize-py==0.25.1` in {}",
            source.folder.display()
        )
    })?;
    let component = Path::new("build/component.wasm");
    let module = Path::new(source.entry).with_extension("");
    let mut command = Command::new(program);
    command
        .args(["--quiet", "--wit-path", &source.wit_file()])
        .args(["--world", source.world()])
        // Whatever of WASI the interpreter would ask for traps instead.
        .args(["componentize", "--stub-wasi"])
        .arg(module)
        .arg("--output")
        .arg(component)
        .current_dir(source.folder);
    tool::run(&mut command)?;
    super::super::read(&source.folder.join(component))
}
