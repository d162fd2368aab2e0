//! The guide's reference pages, compared with a node: they have exactly its metrics, reasons and
//! subjects.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result};
use presence_tests::host::Host;
use presence_tests::site::Site;
use presence_tests::tools;

use crate::world::World;

/// Reasons that occur only in replies, and so in no metric.
const IN_REPLIES: [&str; 4] = ["stale", "overloaded", "unavailable", "not-enabled"];

#[tokio::test]
async fn the_reference_has_every_metric_and_every_reason() -> Result<()> {
    // Everything is turned on, so that every metric is there.
    let world = World::start_with(|site| site.with("directory.source", "request")).await?;
    let exposition = world.host.metrics().await?;
    let mut told = BTreeMap::new();
    // The metrics that only a node with several tenants has.
    let acme = toml::Table::from_iter([("name".to_owned(), "acme".into())]);
    let site = Site::new(&world.server.url())?.with("tenant", vec![acme])?;
    let host = Host::start(&site).await?;
    let of_tenants = host.metrics().await?;
    let has = |line: &str| line.starts_with("presence_tenants{state=");
    assert!(of_tenants.lines().any(has), "{of_tenants}");
    told.insert(
        "presence_tenants".to_owned(),
        ("gauge".to_owned(), "`state`".to_owned()),
    );
    host.stop().await?;
    // The metrics that only a node of a fleet has.
    let site = Site::new(&world.server.url())?
        .with("tenant.prefix", "fleet")?
        .with("fleet.enabled", true)?
        .with("fleet.lease_ms", 600)?;
    let host = Host::start(&site).await?;
    let of_fleet = host.metrics().await?;
    let of_fleet = of_fleet.lines().filter(|it| it.contains("presence_fleet_"));
    let of_fleet: Vec<_> = of_fleet.collect();
    host.stop().await?;
    let of_stream = crate::input_stream::metrics_of_stream().await?;
    let others = of_fleet.into_iter().chain(of_stream.lines());
    for line in exposition.lines().chain(others) {
        if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|it| it.split_once(' '))
        {
            told.insert(name.to_owned(), (kind.to_owned(), String::new()));
        } else if let Some((name, (label, _))) = line
            .split_once('{')
            .and_then(|(name, rest)| Some((name, rest.split_once("=\"")?)))
        {
            let whole = name;
            let of_histogram = ["_bucket", "_sum", "_count"];
            let name = of_histogram.iter().find_map(|end| name.strip_suffix(end));
            let name = name.filter(|it| told.contains_key(*it)).unwrap_or(whole);
            let metric = told.get_mut(name).context("a type comes first")?;
            if label != "le" {
                metric.1 = format!("`{label}`");
            }
        }
    }
    // A metric that has values only with a canary or a shadow: the suite `canary` checks it.
    let candidate = told.get_mut("presence_candidate_quarantined");
    candidate.context("it is there")?.1 = "`plugin`".to_owned();
    let documented = rows("metrics.md")?.into_iter().filter_map(|row| {
        let [name, kind, label, _] = row.try_into().ok()?;
        let is_metric = name.starts_with("`presence_") || name.starts_with("`process_");
        is_metric.then(|| (name.trim_matches('`').to_owned(), (kind, label)))
    });
    assert_eq!(documented.collect::<BTreeMap<_, _>>(), told);

    let letters = exposition.lines().filter_map(|line| {
        let rest = line.strip_prefix("presence_dead_letters_total{reason=\"")?;
        Some(rest.split_once('"')?.0.to_owned())
    });
    let told: BTreeSet<_> = letters.chain(IN_REPLIES.map(Into::into)).collect();
    let documented = rows("reasons.md")?.into_iter().filter_map(|row| {
        let reason = row.first()?.strip_prefix('`')?.strip_suffix('`')?;
        Some(reason.to_owned())
    });
    let mut documented: BTreeSet<_> = documented.collect();
    for of_an_offline in ["disconnect", "logout", "timeout"] {
        documented.remove(of_an_offline);
    }
    assert_eq!(documented, told);
    world.end().await
}

/// The subjects in `permissions.conf`. Other suites check that these are what a node needs.
#[test]
fn the_reference_has_every_subject() -> Result<()> {
    let permissions = fs::read_to_string(tools::root().join("docs/permissions.conf"))?;
    let permitted = permissions
        .split('"')
        .filter(|text| text.starts_with("presence.") || text.starts_with("presence-"))
        .filter(|subject| !subject.ends_with(".>"))
        .map(|subject| match subject {
            inbox if inbox.starts_with("presence.inbox.") => "presence.inbox.<viewer>",
            query if query.starts_with("presence.query.") => "presence.query.<viewer>",
            "presence.admin.status.*" => "presence.admin.status.<id>",
            "presence.admin.validate.*" => "presence.admin.validate.<id>",
            "presence.admin.shadow.*" => "presence.admin.shadow.<id>",
            "presence.admin.follow.*" => "presence.admin.follow.<id>",
            "presence.admin.tenants.*" => "presence.admin.tenants.<id>",
            "presence.admin.logs.*" => "presence.admin.logs.<plugin>",
            subject => subject,
        });
    let permitted: BTreeSet<_> = permitted
        // For the service's questions, and for subjects between nodes, the file has only wildcards.
        .chain([
            "presence-directory.<question>",
            "presence.shard.<shard>.in.<kind>",
            "presence.shard.<shard>.heartbeats",
            "presence.shard.<shard>.stored.<kind>",
            "presence.shard.<shard>.told",
            "presence.node.<node>.<what>",
        ])
        .map(str::to_owned)
        .collect();
    let mut documented = BTreeSet::new();
    for row in rows("subjects.md")? {
        let names = row.first().context("a cell")?.split(", ");
        documented.extend(names.filter_map(|name| {
            let name = name.strip_prefix('`')?.strip_suffix('`')?;
            Some(name.to_owned())
        }));
    }
    assert_eq!(documented, permitted);
    Ok(())
}

/// The cells of all tables of a page of the reference.
fn rows(page: &str) -> Result<Vec<Vec<String>>> {
    let text = fs::read_to_string(tools::root().join("docs/reference").join(page))?;
    let rows = text.lines().filter_map(|line| {
        let row = line.strip_prefix("| ")?.strip_suffix(" |")?;
        Some(row.split('|').map(|cell| cell.trim().to_owned()).collect())
    });
    Ok(rows.collect())
}
