//! The layers that Cargo can't enforce: which words may occur in which files.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use presence_tests::tools;

/// A word, and the only places in the host's sources where it may occur.
const PLACES: [(&str, &[&str]); 10] = [
    ("notify::", &["node/src/reload/watch.rs"]),
    ("HeaderMap", &["node/src/link/"]),
    // The client's types, and not its name, which the log's filter has as well. The directory and
    // the plugin store are buckets, and use JetStream's types.
    (
        "async_nats::",
        &["node/src/link/", "node/src/directory/", "node/src/store/"],
    ),
    (
        "use async_nats",
        &["node/src/link/", "node/src/directory/", "node/src/store/"],
    ),
    (
        "tokio",
        &[
            "node/src/",
            // Commands that stay connected.
            "presence/src/runtime.rs",
            "presence/src/dlq/redrive.rs",
            "presence/src/plugins/logs.rs",
            "presence/src/plugins/shadow.rs",
            "presence/src/record/",
            "presence/src/publish.rs",
            "presence/src/watch.rs",
        ],
    ),
    ("wasmtime", &["sandbox/src/"]),
    // Types that are passed into components, and code that reads component files.
    (
        "ComponentType",
        &["sandbox/src/api/", "sandbox/src/bounds.rs"],
    ),
    (
        "wasmparser",
        &[
            "sandbox/src/bounds.rs",
            "sandbox/src/manifest.rs",
            "component/src/",
        ],
    ),
    // What only the tools around plugins need.
    ("wit_component", &["component/src/"]),
    // Files have times, too.
    ("SystemTime", &["sandbox/src/artefacts.rs", "node/src/"]),
];

/// What the core never uses: input and output, clocks, randomness.
const NEVER_IN_CORE: [&str; 6] = [
    "std::fs",
    "std::net",
    "std::time",
    "std::thread",
    "std::env",
    "rand::",
];

#[test]
fn each_layer_keeps_to_itself() -> Result<()> {
    let host = tools::root().join("host");
    let mut files = Vec::new();
    for layer in [
        "component",
        "config",
        "core",
        "kit",
        "node",
        "presence",
        "rules",
        "sandbox",
    ] {
        sources(&host.join(layer).join("src"), &mut files)?;
    }
    let mut faults = Vec::new();
    for file in files {
        let name = file.strip_prefix(&host)?.to_string_lossy().into_owned();
        let text = fs::read_to_string(&file).with_context(|| name.clone())?;
        let code = text
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        for line in code {
            for (word, places) in PLACES {
                if line.contains(word) && !places.iter().any(|place| name.starts_with(place)) {
                    faults.push(format!("{name}: `{word}` belongs in {}", places.join(", ")));
                }
            }
            for word in NEVER_IN_CORE {
                if line.contains(word) && name.starts_with("core/") {
                    faults.push(format!("{name}: `{word}` has no place in the core"));
                }
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

fn sources(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, files)?;
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
    Ok(())
}
