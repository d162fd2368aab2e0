//! The image, the compose file and the Kubernetes example: the files that they name exist, the keys
//! that they set are the program's, and an edit of a ConfigMap is followed.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use presence_tests::{component, tools};
use serde_json::Value;

use super::{configured, document, documents, path, read};
use crate::world::World;

/// What Docker and Kubernetes wait before they kill, in milliseconds.
const GRACE_MS: u64 = 30_000;

#[test]
fn the_image_copies_what_is_there_and_sets_keys_that_the_program_has() -> Result<()> {
    let text = read("docker/Dockerfile")?.replace("\\\n", " ");
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    let of = |word: &str| -> Vec<Vec<&str>> {
        let found = lines.iter().filter_map(|line| line.strip_prefix(word));
        found
            .map(|rest| rest.split_whitespace().collect())
            .collect()
    };
    let copied = of("COPY ");
    let from_clone = copied.iter().filter(|words| !words[0].starts_with("--"));
    for words in from_clone {
        let source = tools::root().join(words[0]);
        ensure!(source.exists(), "there is no {}", source.display());
    }
    let variables = of("ENV ").concat();
    let variables: Vec<_> = variables
        .iter()
        .filter_map(|it| it.split_once('='))
        .collect();
    let config = |name: &str| variables.iter().find(|it| it.0 == name).map(|it| it.1);
    assert_eq!(
        config("PRESENCE_CONFIG"),
        Some("/etc/presence/presence.toml")
    );
    let variables = variables.into_iter().filter(|it| it.0 != "PRESENCE_CONFIG");
    configured(&path("docker/site/presence.toml"), variables)?;
    Ok(())
}

#[test]
fn the_compose_file_mounts_what_is_there_and_outlasts_a_stop() -> Result<()> {
    let compose = document("docker/compose.yaml")?;
    let node = &compose["services"]["presence"];
    let variables = node["environment"].as_object().context("environment")?;
    let variables = variables
        .iter()
        .filter_map(|it| Some((&**it.0, it.1.as_str()?)));
    let stop_ms = configured(&path("docker/site/presence.toml"), variables)?;
    assert_eq!(node["stop_grace_period"], "30s");
    ensure!(stop_ms < GRACE_MS, "{stop_ms} ms");
    let named = compose["volumes"].as_object().context("volumes")?;
    for service in ["nats", "presence"] {
        for volume in list(&compose["services"][service]["volumes"])? {
            let volume = volume.as_str().context("a volume")?;
            let source = volume.split(':').next().unwrap_or_default();
            let is_there = match source.strip_prefix("./") {
                Some(folder) => path("docker").join(folder).is_dir(),
                None => named.contains_key(source),
            };
            ensure!(is_there, "there is no volume {source}");
        }
        // On this machine only.
        for port in list(&compose["services"][service]["ports"])? {
            let port = port.as_str().unwrap_or_default();
            ensure!(port.starts_with("127.0.0.1:"), "{port}");
        }
    }
    let build = &node["build"];
    let context = build["context"].as_str().context("context")?;
    let file = build["dockerfile"].as_str().context("dockerfile")?;
    ensure!(path("docker").join(context).join(file).is_file(), "{build}");
    Ok(())
}

#[test]
fn the_kubernetes_example_is_whole() -> Result<()> {
    let top = document("kubernetes/kustomization.yaml")?;
    for file in list(&top["resources"])?
        .iter()
        .chain(list(&top["configMapGenerator"][0]["files"])?)
    {
        let file = file.as_str().context("a file")?;
        ensure!(
            path("kubernetes").join(file).is_file(),
            "there is no {file}"
        );
    }
    assert_eq!(top["generatorOptions"]["disableNameSuffixHash"], true);

    let objects = documents("kubernetes/presence.yaml")?;
    let node = objects.iter().find(|it| it["kind"] == "StatefulSet");
    let pod = &node.context("a StatefulSet")?["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let variables = list(&container["env"])?.iter().map(|it| {
        let name = it["name"].as_str().context("a name")?;
        Ok((name, it["value"].as_str().unwrap_or("presence-0")))
    });
    let variables = variables.collect::<Result<Vec<_>>>()?;
    let variables = variables.into_iter().filter(|it| it.0 != "PRESENCE_CONFIG");
    let stop_ms = configured(&path("kubernetes/presence.toml"), variables)?;
    let grace = pod["terminationGracePeriodSeconds"]
        .as_u64()
        .context("a grace")?;
    ensure!(grace * 1_000 > stop_ms, "{grace} s");
    // A mount without a volume would be a folder of the container; one with `subPath` would never
    // change.
    let mut volumes: Vec<_> = list(&pod["volumes"])?
        .iter()
        .map(|it| &it["name"])
        .collect();
    volumes.push(
        &node.context("a StatefulSet")?["spec"]["volumeClaimTemplates"][0]["metadata"]["name"],
    );
    for mount in list(&container["volumeMounts"])? {
        ensure!(volumes.contains(&&mount["name"]), "{mount}");
        ensure!(mount.get("subPath").is_none(), "{mount}");
    }
    for (probe, asks) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        assert_eq!(container[probe]["httpGet"]["path"], asks);
    }
    // kubectl, if there is one, has to be able to put it together.
    if let Some(kubectl) = tools::on_path("kubectl") {
        tools::run(
            Command::new(kubectl)
                .arg("kustomize")
                .arg(path("kubernetes")),
        )?;
    }
    Ok(())
}

fn list(value: &Value) -> Result<&Vec<Value>> {
    value
        .as_array()
        .with_context(|| format!("{value} is no list"))
}

/// A volume of a ConfigMap, as the kubelet writes it: each file is a link over the link
/// `..data` to a folder for each edit, and an edit replaces that link.
struct Volume<'a>(&'a Path);

impl Volume<'_> {
    /// Makes it of files that lie in the folder.
    fn begin(&self, files: &[&str]) -> Result<()> {
        let edit = self.0.join("..edit-0");
        fs::create_dir(&edit)?;
        symlink("..edit-0", self.0.join("..data"))?;
        for name in files {
            if self.0.join(name).exists() {
                fs::rename(self.0.join(name), edit.join(name))?;
            }
            symlink(Path::new("..data").join(name), self.0.join(name))?;
        }
        Ok(())
    }

    /// Makes the edit `number`, which adds or replaces a file.
    fn edit(&self, number: u32, name: &str, content: impl AsRef<[u8]>) -> Result<()> {
        let before = fs::canonicalize(self.0.join("..data"))?;
        let edit = format!("..edit-{number}");
        fs::create_dir(self.0.join(&edit))?;
        for file in fs::read_dir(&before)? {
            let file = file?;
            fs::copy(file.path(), self.0.join(&edit).join(file.file_name()))?;
        }
        fs::write(self.0.join(&edit).join(name), content)?;
        let next = self.0.join("..data_tmp");
        symlink(&edit, &next)?;
        fs::rename(next, self.0.join("..data"))?;
        if fs::symlink_metadata(self.0.join(name)).is_err() {
            symlink(Path::new("..data").join(name), self.0.join(name))?;
        }
        Ok(fs::remove_dir_all(before)?)
    }
}

#[tokio::test]
async fn edits_of_config_maps_are_followed_as_the_kubelet_makes_them() -> Result<()> {
    let mut world = World::start_with(|mut site| {
        site.set_pipeline(&[("contacts", None), ("redact", None)])?;
        Volume(site.path()).begin(&["presence.toml", "directory.json"])?;
        Volume(&site.path().join("plugins.d")).begin(&[])?;
        Ok(site)
    })
    .await?;
    world.until_visible_to("12345", &["11111", "67890"]).await?;
    let folder = world.site.path().to_owned();
    let (site, plugins) = (Volume(&folder), folder.join("plugins.d"));

    let directory = r#"{"contacts": {"12345": ["33333"]}, "groups": {"team": ["12345", "44444"]}}"#;
    site.edit(1, "directory.json", directory)?;
    world.until_visible_to("12345", &["33333"]).await?;

    let text = fs::read_to_string(world.site.config_path())?;
    let edited = text.replace("\"contacts\"", "\"groups\"");
    ensure!(edited != text, "{text}");
    site.edit(2, "presence.toml", edited)?;
    world.until_visible_to("12345", &["44444"]).await?;

    // A new plugin, and then another version of it.
    let named = |rule: &str| component::named(&component::load(rule)?, "groups");
    Volume(&plugins).edit(1, "groups.wasm", named("contacts")?)?;
    world.until_visible_to("12345", &["33333"]).await?;
    Volume(&plugins).edit(2, "groups.wasm", named("groups")?)?;
    world.until_visible_to("12345", &["44444"]).await?;
    world.end().await
}
