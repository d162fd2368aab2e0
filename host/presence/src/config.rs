//! `presence config`: the value in effect of each key, and what sets it. It reads the configuration
//! as a node would read it now. `presence status` shows what a running node has not taken over.

use presence_config::escape::{eprint_line, line, print, print_json};
use presence_config::{Effect, LoadedConfig, OnFailure, Place, Source, Stage, effect_of};
use presence_kit::text::{plain, table};
use serde_json::{Value, json};

use crate::ask::RequestArgs;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    common: RequestArgs,
}

/// Prints the configuration.
///
/// # Errors
/// If something is wrong with the configuration. The error has all problems.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let read = args.common.config.read()?;
    if let Some(problems) = read.problems {
        return Err(problems.into());
    }
    if let Some(tenants) = &read.config.tenants {
        eprint_line(format_args!(
            "note: these are the keys of the process, and of what its {} tenants leave out; \
             --tenant NAME prints those of one",
            tenants.len()
        ));
    }
    for variable in &read.config.ignored_variables {
        eprint_line(format_args!("warning: {variable}"));
    }
    match args.common.json {
        true => print_json(object(&read))?,
        false => print(page(&read))?,
    }
    Ok(())
}

/// The kind of source of a value, in a word, and the exact place.
fn source(place: Option<&Place>) -> (&'static str, Option<String>) {
    match place {
        None => ("default", None),
        Some(place @ Place::Variable(_)) => ("environment", Some(place.to_string())),
        Some(place) => ("file", Some(place.to_string())),
    }
}

/// The places of the pipeline's stages, in order. `None` for stages of the default pipeline.
fn stage_places(read: &LoadedConfig) -> impl Iterator<Item = Option<&Place>> {
    let places = read.settings.iter();
    let places = places.filter(|it| it.key.starts_with("pipeline["));
    places
        .map(|it| it.place.as_ref())
        .chain(std::iter::repeat(None))
}

fn object(read: &LoadedConfig) -> Value {
    let keys = read.settings.iter().filter(|it| !it.key.contains('['));
    let keys = keys.map(|setting| {
        let (source, place) = match setting.implied_by(&read.config) {
            Some(keys) => ("implied", Some(keys.to_owned())),
            None => source(setting.place.as_ref()),
        };
        json!({
            "key": setting.key,
            "value": setting.effective(&read.config),
            "source": source,
            "place": place,
            "restart": effect_of(&setting.key) == Effect::Restart,
        })
    });
    let stages = read.config.pipeline.iter().zip(stage_places(read));
    let stages = stages.map(|(stage, place)| {
        let (source, place) = source(place);
        json!({"stage": described(stage), "source": source, "place": place})
    });
    json!({
        "file": read.file,
        "settings": keys.collect::<Vec<_>>(),
        "pipeline": stages.collect::<Vec<_>>(),
    })
}

fn described(stage: &Stage) -> Value {
    let grants = stage.grants.iter().map(|grant| grant.as_str());
    let from = stage.source.map(|source| match source {
        Source::BuiltIn => "built-in",
        Source::Folder => "folder",
    });
    let on_failure = stage.on_failure.map(|policy| match policy {
        OnFailure::Hold => "hold",
        OnFailure::LastGood => "last-good",
    });
    json!({
        "plugin": stage.plugin,
        "config": stage.config,
        "grants": grants.collect::<Vec<_>>(),
        "source": from,
        "onFailure": on_failure,
    })
}

fn page(read: &LoadedConfig) -> String {
    let told = |place: Option<&Place>| match source(place) {
        (word, None) => word.to_owned(),
        (_, Some(place)) => line(place),
    };
    let keys = read.settings.iter().filter(|it| !it.key.contains('['));
    let mut rows: Vec<_> = keys
        .map(|setting| {
            let value = setting.effective(&read.config);
            [
                setting.key.clone(),
                value.map_or_else(|| "-".into(), line),
                match setting.implied_by(&read.config) {
                    Some(keys) => keys.to_owned(),
                    None => told(setting.place.as_ref()),
                },
                match effect_of(&setting.key) {
                    Effect::Restart => "restart".into(),
                    Effect::Live => String::new(),
                },
            ]
        })
        .collect();
    let stages = read.config.pipeline.iter().zip(stage_places(read));
    rows.extend(stages.enumerate().map(|(number, (stage, place))| {
        [
            format!("pipeline[{number}]"),
            plain(&described(stage)),
            told(place),
            String::new(),
        ]
    }));
    let file = match &read.file {
        Some(file) => line(file.display()),
        None => "no file: the defaults".into(),
    };
    format!(
        "{file}\n\n{}",
        table(["KEY", "VALUE", "SET BY", "TAKES EFFECT AT"], &rows)
    )
}
