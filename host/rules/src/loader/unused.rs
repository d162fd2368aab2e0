//! Warnings about probable mistakes: plugins in the folder that the pipeline doesn't name, a
//! missing folder, and a pipeline without a redactor.

use presence_config::{self as config, Config};

use super::file;

/// The warning about a pipeline without a redactor.
pub const NO_REDACTOR: &str = "the pipeline has no redactor, so viewers get no metadata: write a \
                               [[pipeline]] entry for one, such as `plugin = \"redact\"`";

/// The names of the plugins in the folder that the pipeline doesn't name, sorted.
pub fn unused_files(config: &Config) -> Vec<String> {
    let files = std::fs::read_dir(&config.plugins.dir);
    let paths = files
        .into_iter()
        .flatten()
        .flatten()
        .map(|file| file.path());
    let names = paths.filter_map(|path| {
        let is_plugin = path.extension().is_some_and(|ending| ending == "wasm");
        is_plugin.then_some(path.file_stem()?.to_string_lossy().into_owned())
    });
    let is_named = |name: &String| config.pipeline.iter().any(|stage| stage.plugin == *name);
    let mut names: Vec<_> = names.filter(|name| !is_named(name)).collect();
    names.sort_unstable();
    names
}

/// The warning about a plugin that the pipeline doesn't name: it says how to have it used.
pub fn unused_warning(config: &Config, name: &str) -> String {
    let path = file(&config.plugins.dir, name);
    let unused = format!(
        "{} is not used, since no [[pipeline]] entry names it",
        path.display()
    );
    if let Err(fix) = config::name(name) {
        return format!("{unused}, and none can, since that is no name of a plugin: {fix}");
    }
    let write = format!(
        "to use it, write `[[pipeline]]` and `plugin = \"{name}\"` into the configuration (a \
         filter stands before the redactor)"
    );
    if config.pipeline.iter().any(|stage| stage.place.0.is_some()) {
        return format!("{unused}: {write}");
    }
    let default: Vec<_> = config.pipeline.iter().map(|stage| &*stage.plugin).collect();
    format!(
        "{unused}: {write}; entries replace the default pipeline, so write one for each of {} as \
         well",
        default.join(", ")
    )
}

/// The warning that the plugin folder is missing or can't be read, if so.
pub fn folder_warning(config: &Config) -> Option<String> {
    let dir = &config.plugins.dir;
    let warning = |what| {
        format!(
            "{} {what}, so there are no plugins but those built in: make it, or set [plugins] dir",
            dir.display()
        )
    };
    match std::fs::metadata(dir) {
        Ok(metadata) if metadata.is_dir() => None,
        Ok(_) => Some(warning("is no folder")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Some(warning("does not exist"))
        }
        Err(error) => Some(format!("{} can't be read: {error}", dir.display())),
    }
}

#[cfg(test)]
mod tests {
    use presence_config::{Place, StagePlace};

    use super::*;
    use crate::loader::built_in;

    #[test]
    fn a_file_that_no_entry_names_is_told_of_with_what_to_write() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.plugins.dir = folder.path().to_owned();
        let put = |file: &str| {
            std::fs::write(folder.path().join(file), built_in("privacy").unwrap()).unwrap();
        };
        for file in ["contacts.wasm", "quiet.wasm", "notes.txt", "a b.wasm"] {
            put(file);
        }
        assert_eq!(unused_files(&config), ["a b", "quiet"]);
        let warning = unused_warning(&config, "quiet");
        for words in [
            "quiet.wasm is not used",
            "`[[pipeline]]` and `plugin = \"quiet\"` into",
            "replace the default pipeline",
            "contacts, groups, blocklist, redact as well",
        ] {
            assert!(warning.contains(words), "{words} is not in: {warning}");
        }
        assert!(unused_warning(&config, "a b").contains("no name of a plugin"));
        // If the configuration has entries already, one more doesn't replace the default pipeline.
        let place = Place::File("presence.toml".into());
        config.pipeline[0].place = StagePlace(Some(place));
        let warning = unused_warning(&config, "quiet");
        assert!(!warning.contains("default"), "{warning}");
    }

    #[test]
    fn a_folder_that_is_not_there_is_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.plugins.dir = folder.path().to_owned();
        assert_eq!(folder_warning(&config), None);
        config.plugins.dir = folder.path().join("none");
        let warning = folder_warning(&config).unwrap();
        assert!(warning.contains("none does not exist"), "{warning}");
    }
}
