//! The result of a comparison, as JSON and as text for people.

use std::fmt::Write as _;
use std::sync::Arc;

use presence_config::escape::line;
use presence_core::body::explain::stage;
use presence_core::comparison::{PairCount, Pairs};
use presence_core::names::{Id, Names};
use presence_sandbox::{Blueprint, Plugin};
use roaring::RoaringBitmap;
use serde_json::{Value, json};

use super::online_period::{Delivery, Difference};
use super::tally::Tally;
use super::{Example, StageDifference};
use crate::explained::{reasons, what_it_does};
use crate::figures::grouped;
use crate::text::{columns, table, time};

/// How many viewers an example names on one line.
const VIEWERS_MAX: usize = 10;

/// How many characters of a file's digest are shown: enough to tell files apart.
const DIGEST_CHARS: usize = 12;

pub(crate) struct Report {
    /// The plugin in the old and in the new run. All other pairs have the same order.
    pub(super) versions: [Version; 2],
    pub(super) names: Arc<Names>,
    pub(super) tally: Tally,
    pub(super) failures: [u64; 2],
    pub(super) examples: Vec<Example>,
}

/// A plugin as it is in one run.
pub(super) struct Version {
    plugin: String,
    /// `None` if the pipeline doesn't have it.
    found: Option<Arc<Plugin>>,
}

impl Version {
    /// Finds a plugin in a pipeline.
    pub(super) fn of(plugin: &str, blueprint: &Blueprint) -> Self {
        let stage = blueprint.stages().find(|it| *it.plugin.name == *plugin);
        Self {
            plugin: plugin.into(),
            found: stage.map(|stage| Arc::clone(&stage.plugin)),
        }
    }

    fn object(&self) -> Option<Value> {
        let found = self.found.as_ref()?;
        let version = found.manifest.version.to_string();
        Some(json!({"plugin": self.plugin, "version": version, "sha256": &*found.sha256}))
    }

    fn row(&self, which: &str) -> [String; 3] {
        let [name, digest] = match &self.found {
            Some(found) => {
                let digest = found.sha256.get(..DIGEST_CHARS).unwrap_or_default();
                let name = format!("{} {}", self.plugin, found.manifest.version);
                [name, digest.into()]
            }
            None => [format!("without {}", self.plugin), String::new()],
        };
        [which.into(), line(&name), digest]
    }
}

impl Report {
    /// The report as a JSON object.
    pub(crate) fn object(&self) -> Value {
        let tally = &self.tally;
        let pairs = |pairs: &Pairs| json!(pairs.count());
        let ([old, new], [failed_old, failed_new]) = (&self.versions, self.failures);
        json!({
            "old": old.object(),
            "new": new.object(),
            "messages": tally.messages,
            "from": tally.span.map(|(from, _)| from),
            "to": tally.span.map(|(_, to)| to),
            "stays": {"same": tally.same, "different": tally.periods - tally.same},
            "lost": pairs(&tally.lost),
            "gained": pairs(&tally.gained),
            "otherwise": pairs(&tally.otherwise),
            "pluginFailed": {"old": failed_old, "new": failed_new},
            "examples": self.examples.iter().map(|it| self.example_object(it)).collect::<Vec<_>>(),
        })
    }

    fn example_object(&self, example: &Example) -> Value {
        let (at, user, _) = example.key;
        let Difference {
            gained,
            lost,
            otherwise,
            sample,
        } = &example.difference;
        let told = |told: &Option<Arc<Delivery>>| told.as_ref().map(|told| told.object());
        let sample = sample.as_ref().map(|(viewer, [old, new])| {
            json!({"viewerId": self.name(*viewer), "old": told(old), "new": told(new)})
        });
        json!({
            "at": at,
            "userId": self.name(user),
            "lost": self.list(lost),
            "gained": self.list(gained),
            "otherwise": self.list(otherwise),
            "sample": sample,
            "why": example.whys.iter().map(|why| self.why_object(why)).collect::<Vec<_>>(),
        })
    }

    fn why_object(&self, why: &StageDifference) -> Value {
        let [old, new] = why.stages.each_ref();
        let [old, new] = [old, new].map(|report| report.as_ref().map(stage));
        json!({"viewerId": self.name(why.viewer), "old": old, "new": new})
    }

    /// The report as text.
    pub(crate) fn page(&self) -> String {
        let [old, new] = &self.versions;
        let mut page = columns(&[old.row("old"), new.row("new")]);
        let tally = &self.tally;
        let _ = write!(page, "\n{}", count(tally.messages, "message"));
        if let Some((from, to)) = tally.span {
            let _ = write!(page, ", {} to {}", time(from), time(to));
        }
        let _ = writeln!(
            page,
            "\n{} from online to offline, {} of them different",
            count(tally.periods, "stay"),
            grouped(tally.periods - tally.same)
        );
        let [failed_old, failed_new] = self.failures.map(grouped);
        if self.failures != [0, 0] {
            let _ = writeln!(
                page,
                "events on which a plugin failed: {failed_old} with the old, {failed_new} with the new"
            );
        }
        if tally.same == tally.periods {
            page.push_str("\nnobody gains or loses sight of anybody, and all are told the same\n");
            return page;
        }
        let row = |what: &str, pairs: &Pairs| {
            let PairCount {
                pairs,
                users,
                viewers,
            } = pairs.count();
            let [pairs, users, viewers] = [pairs, users, viewers].map(grouped);
            [what.into(), pairs, users, viewers]
        };
        let rows = [
            row("lose sight", &tally.lost),
            row("gain sight", &tally.gained),
            row("are told otherwise", &tally.otherwise),
        ];
        let _ = write!(
            page,
            "\n{}",
            table(["VIEWERS WHO", "PAIRS", "USERS", "VIEWERS"], &rows)
        );
        for (number, example) in self.examples.iter().enumerate() {
            self.push_example(&mut page, number + 1, example);
        }
        let rest = (tally.periods - tally.same).saturating_sub(self.examples.len() as u64);
        if rest > 0 {
            let _ = writeln!(page, "\nand {} more: see --examples", grouped(rest));
        }
        page
    }

    fn push_example(&self, page: &mut String, number: usize, example: &Example) {
        let (at, user, _) = example.key;
        let user = line(self.name(user));
        let _ = writeln!(page, "\n{number}. {user} came online, {}", time(at));
        let difference = &example.difference;
        for (what, viewers) in [
            ("lose sight", &difference.lost),
            ("gain sight", &difference.gained),
            ("told otherwise", &difference.otherwise),
        ] {
            if !viewers.is_empty() {
                let _ = writeln!(page, "   {what}: {}", self.line(viewers));
            }
        }
        if let Some((viewer, [old, new])) = &difference.sample {
            let viewer = line(self.name(*viewer));
            for (which, told) in [("old", old), ("new", new)] {
                let told = told.as_ref().map(|told| line(told.object()));
                let told = told.unwrap_or_else(|| "nothing more".into());
                let _ = writeln!(page, "   {viewer} is told, {which}: {told}");
            }
        }
        for why in &example.whys {
            let viewer = line(self.name(why.viewer));
            for (which, report) in ["old", "new"].iter().zip(&why.stages) {
                let Some(stage) = &report.as_ref().map(stage) else {
                    continue;
                };
                let _ = writeln!(page, "   {which}: {}", what_it_does(stage, &viewer));
                for reason in reasons(stage, &user, &viewer) {
                    let _ = writeln!(page, "        {reason}");
                }
            }
        }
    }

    fn name(&self, id: Id) -> String {
        let name = self.names.name(id);
        name.map(|name| name.as_str().to_owned())
            .unwrap_or_default()
    }

    fn list(&self, viewers: &RoaringBitmap) -> Vec<String> {
        viewers.iter().map(|viewer| self.name(Id(viewer))).collect()
    }

    /// The first of these viewers, and how many more there are.
    fn line(&self, viewers: &RoaringBitmap) -> String {
        let named = viewers.iter().take(VIEWERS_MAX);
        let named: Vec<_> = named.map(|viewer| line(self.name(Id(viewer)))).collect();
        let mut names = named.join(", ");
        let rest = viewers.len() - named.len() as u64;
        if rest > 0 {
            let _ = write!(names, " and {} more", grouped(rest));
        }
        names
    }
}

fn count(number: u64, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {what}{plural}", grouped(number))
}
