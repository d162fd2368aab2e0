//! Checks that fuzz/run runs everything: every target has a corpus to begin with, and every corpus
//! has a target that is listed in Cargo.toml.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::path::Path;

#[test]
fn every_target_is_built_and_has_a_corpus() -> Result<(), Box<dyn Error>> {
    let targets = names("fuzz_targets")?;
    assert_eq!(targets, names("corpus")?);
    let manifest = fs::read_to_string(folder().join("Cargo.toml"))?;
    for target in &targets {
        let path = format!("path = \"fuzz_targets/{target}.rs\"\n");
        assert!(manifest.contains(&path), "{target} is not in Cargo.toml");
        let corpus = fs::read_dir(folder().join("corpus").join(target))?;
        assert!(corpus.count() > 0, "{target} has an empty corpus");
    }
    Ok(())
}

fn names(within: &str) -> Result<BTreeSet<String>, Box<dyn Error>> {
    let entries = fs::read_dir(folder().join(within))?;
    let stem = |path: &Path| Some(path.file_stem()?.to_string_lossy().into_owned());
    let mut names = BTreeSet::new();
    for entry in entries {
        names.extend(stem(&entry?.path()));
    }
    Ok(names)
}

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
