//! `presence plugin new`: a folder with a plugin that builds.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use presence_config as config;
use presence_config::escape::print;
use presence_sandbox::manifest::API;

use super::embedded::{TEMPLATES, wit, wit_file};
use super::language::Language;
use super::{build, sdk};

/// The arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The name of the plugin and of its folder: letters, digits, `_` and `-`.
    #[arg(value_parser = name)]
    name: String,
    /// The plugin's role.
    #[arg(long, value_enum, default_value_t)]
    role: Role,
    /// The language to write it in.
    #[arg(long, value_enum, default_value_t)]
    lang: Language,
}

#[derive(Clone, Copy, Default, ValueEnum)]
enum Role {
    /// Decides who may see an event.
    #[default]
    Filter,
    /// Decides what each viewer gets of an event.
    Redactor,
    /// Changes an event's metadata.
    Enricher,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Redactor => "redactor",
            Self::Enricher => "enricher",
        }
    }

    /// What the template's plugin does, for the README.
    fn does(self) -> &'static str {
        match self {
            Self::Filter => {
                "While a user's metadata says `\"status\": \"quiet\"`, only their contacts may see them."
            }
            Self::Redactor => {
                "A user's contacts get more of the metadata, and when the user was last seen; everyone else gets less."
            }
            Self::Enricher => {
                "It adds the kind of the user's client, `mobile` or `desktop`, from the user agent."
            }
        }
    }

    /// The plugin's place in a pipeline, for the README.
    fn stage(self) -> &'static str {
        match self {
            Self::Filter => "after the filters that admit viewers, `contacts` and `groups`",
            Self::Redactor => "instead of `redact`",
            Self::Enricher => "anywhere",
        }
    }

    fn config(self) -> &'static str {
        match self {
            Self::Filter => r#"{ status = "quiet" }"#,
            Self::Redactor => r#"{ contacts = ["device", "location"], others = ["device"] }"#,
            Self::Enricher => r#"{ into = "client" }"#,
        }
    }
}

fn name(text: &str) -> Result<String, String> {
    config::name(text).map(|()| text.to_owned())
}

/// Makes the folder, and prints the next steps.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let folder = Path::new(&args.name);
    if folder.exists() {
        bail!(
            "{} is there already: choose another name, or move it away",
            folder.display()
        );
    }
    for (path, content) in files(args)? {
        let path = folder.join(path);
        let place = || format!("can't write {}", path.display());
        fs::create_dir_all(path.parent().unwrap_or(folder)).with_context(place)?;
        fs::write(&path, content).with_context(place)?;
    }
    if args.lang == Language::C {
        build::write_bindings(folder, &wit_file(API), args.role.name())?;
    }
    print(format_args!("{}\n", next(args)))?;
    Ok(())
}

/// The files of a new plugin, with their paths in its folder.
fn files(args: &Args) -> anyhow::Result<Vec<(String, String)>> {
    let language = args.lang.templates();
    let mut files = vec![(wit_file(API), wit(API).unwrap_or_default().to_owned())];
    for (from, into) in [
        (format!("{language}/all/"), ""),
        (format!("{language}/{}/", args.role.name()), ""),
        (format!("manifests/{}/", args.role.name()), ""),
    ] {
        let of = TEMPLATES
            .iter()
            .filter_map(|(path, content)| Some((path.strip_prefix(&from)?, content)));
        files.extend(of.map(|(path, content)| (format!("{into}{path}"), fill(content, args))));
    }
    if args.lang == Language::Rust {
        files.extend(sdk::files()?);
    }
    Ok(files)
}

/// Fills in a template's placeholders.
fn fill(template: &str, args: &Args) -> String {
    let Args { name, role, lang } = args;
    [
        ("{{name}}", name.as_str()),
        // A package name that Cargo and npm accept, whatever the plugin is called.
        ("{{package}}", &format!("plugin-{}", name.to_lowercase())),
        ("{{role}}", role.name()),
        ("{{does}}", role.does()),
        ("{{stage}}", role.stage()),
        ("{{config}}", role.config()),
        ("{{install}}", lang.install()),
        ("{{test}}", lang.test()),
    ]
    .into_iter()
    .fold(template.to_owned(), |text, (blank, value)| {
        text.replace(blank, value)
    })
}

fn next(args: &Args) -> String {
    let Args { name, role, lang } = args;
    format!(
        "{name} is a {role} in {language}. Next:

  cd {name}
  {install}    # once
  {test}    # the rule by itself
  presence plugin test .    # builds {name}.wasm, and runs its self-tests in the sandbox

Its README says how to add it to a pipeline.",
        role = role.name(),
        language = lang.name(),
        install = lang.install(),
        test = lang.test(),
    )
}

#[cfg(test)]
mod tests {
    use presence_sandbox::Manifest;

    use super::*;

    #[test]
    fn every_template_is_whole_and_has_no_blanks_left() {
        for lang in Language::value_variants() {
            for role in Role::value_variants() {
                let args = Args {
                    name: "my-Rule_2".into(),
                    role: *role,
                    lang: *lang,
                };
                let files = files(&args).unwrap();
                let of = |path: &str| {
                    let file = files.iter().find(|(name, _)| name == path);
                    file.map(|(_, content)| content.as_str())
                };
                let manifest: Manifest = serde_json::from_str(of("plugin.json").unwrap()).unwrap();
                assert_eq!(manifest.name, "my-Rule_2");
                assert_eq!(manifest.role.as_str(), role.name());
                assert!(manifest.tests.len() >= 3, "{lang:?}");
                assert!(of("README.md").unwrap().contains(role.does()));
                for (path, content) in &files {
                    assert!(!content.contains("{{"), "{lang:?}: {path}");
                }
            }
        }
    }
}
