//! The sources of the Rust SDK, for the folder of a new plugin, so that it builds without a
//! registry that has the SDK.

use anyhow::Context as _;
use toml::{Table, Value};

use super::embedded::{SDK, SDK_WORKSPACE};

/// The SDK's folder in a plugin's folder. Its bindings expect the API two folders up, in `wit`.
const FOLDER: &str = "vendor/presence-plugin";

/// The SDK's files, with their paths in the plugin's folder.
pub(super) fn files() -> anyhow::Result<Vec<(String, String)>> {
    let workspace: Table = SDK_WORKSPACE
        .parse()
        .context("reading plugins/Cargo.toml")?;
    let workspace = table(&workspace, "workspace");
    let file = |(path, content): &(&str, &str)| {
        let content = match *path {
            "Cargo.toml" => alone(content, workspace)?,
            _ => (*content).to_owned(),
        };
        Ok((format!("{FOLDER}/{path}"), content))
    };
    SDK.iter().map(file).collect()
}

/// A package's manifest in which everything that it inherits from its workspace is written out.
fn alone(manifest: &str, workspace: Option<&Table>) -> anyhow::Result<String> {
    let mut manifest: Table = manifest.parse().context("reading the SDK's Cargo.toml")?;
    let of = |key| workspace.and_then(|workspace| table(workspace, key));
    if let Some(Value::Table(package)) = manifest.get_mut("package") {
        inherit(package, of("package"));
    }
    dependencies(&mut manifest, of("dependencies"));
    let targets = manifest.get_mut("target").and_then(Value::as_table_mut);
    for (_, target) in targets.into_iter().flatten() {
        if let Value::Table(target) = target {
            dependencies(target, of("dependencies"));
        }
    }
    Ok(toml::to_string(&manifest)?)
}

fn dependencies(of: &mut Table, workspace: Option<&Table>) {
    for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
        if let Some(Value::Table(list)) = of.get_mut(kind) {
            inherit(list, workspace);
        }
    }
}

/// Replaces each `key.workspace = true` by the workspace's value for the key.
fn inherit(list: &mut Table, workspace: Option<&Table>) {
    for (key, value) in list.iter_mut() {
        let Some(own) = value
            .as_table_mut()
            .filter(|own| own.contains_key("workspace"))
        else {
            continue;
        };
        let Some(shared) = workspace.and_then(|workspace| workspace.get(key)) else {
            continue;
        };
        own.remove("workspace");
        *value = match shared {
            shared if own.is_empty() => shared.clone(),
            Value::Table(shared) => {
                let mut all = shared.clone();
                all.extend(std::mem::take(own));
                all.into()
            }
            version => {
                own.insert("version".into(), version.clone());
                std::mem::take(own).into()
            }
        };
    }
}

fn table<'a>(of: &'a Table, key: &str) -> Option<&'a Table> {
    of.get(key)?.as_table()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sdk_stands_without_its_workspace() {
        let files = files().unwrap();
        let manifest = files.iter().find(|(path, _)| path.ends_with("/Cargo.toml"));
        let (_, manifest) = manifest.unwrap();
        assert!(!manifest.contains("workspace"), "{manifest}");
        let manifest: Table = manifest.parse().unwrap();
        assert_eq!(manifest["package"]["edition"].as_str(), Some("2024"));
        assert_eq!(
            manifest["dependencies"]["serde"]["features"][0].as_str(),
            Some("derive")
        );
        let talc = &manifest["target"]["cfg(target_arch = \"wasm32\")"]["dependencies"]["talc"];
        assert_eq!(talc["optional"].as_bool(), Some(true));
        assert!(talc["version"].is_str());
        assert!(files.iter().any(|(path, _)| path.ends_with("/src/lib.rs")));
    }
}
