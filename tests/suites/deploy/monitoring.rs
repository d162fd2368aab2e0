//! The alerts and the dashboard use only metrics that a node has, and Prometheus accepts them.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use presence_tests::host::Host;
use presence_tests::nats::NatsServer;
use presence_tests::site::Site;
use presence_tests::{promtool, tools};
use serde_json::{Value, json};

use super::exposition::Metrics;
use super::promql;
use crate::tenants;
use crate::world::World;

const RULES: &str = "prometheus/presence.rules.yml";
const DASHBOARD: &str = "grafana/presence.json";

#[tokio::test]
async fn alerts_and_dashboard_ask_for_metrics_labels_and_values_that_a_node_has() -> Result<()> {
    // Every metric that there may be.
    let world = World::start_with(|site| site.with("directory.source", "request")).await?;
    let mut metrics = world.host.metrics().await?;
    world.end().await?;
    // A fleet's have the tenant's name, if there are several.
    let server = NatsServer::start().await?;
    let site = Site::new(&server.url())?
        .with("fleet.enabled", true)?
        .with("tenant", vec![tenants::tenant("acme")])?;
    let fleet = Host::start(&site).await?;
    let of_fleet = fleet.metrics().await?;
    fleet.stop().await?;
    for line in of_fleet.lines().filter(|it| it.contains("presence_fleet_")) {
        metrics.push_str(line);
        metrics.push('\n');
    }
    metrics.push_str(&crate::input_stream::metrics_of_stream().await?);
    let metrics = Metrics::read(&metrics)?;

    let alerts = alerts()?.into_iter();
    let panels = dashboard_queries()?;
    ensure!(
        panels.len() > 50,
        "only {} queries were found",
        panels.len()
    );
    for (name, query) in alerts.chain(panels) {
        let checked = promql::read(&query).and_then(|query| metrics.check(&query));
        checked.with_context(|| format!("{name}: {query}"))?;
    }

    // The check itself sees what is wrong.
    for wrong in [
        "presence_nothing",
        "rate(presence_online_users[5m])",
        "presence_inputs_total > 0",
        "presence_plugin_quarantined{stage=\"a\"}",
        "rate(presence_questions_total{outcome=\"lost\"}[5m])",
        "sum by (tenant) (presence_online_users)",
        "rate(presence_decision_seconds[5m])",
    ] {
        let found = metrics.check(&promql::read(wrong)?);
        ensure!(found.is_err(), "nothing is found wrong with {wrong}");
    }
    Ok(())
}

#[test]
fn prometheus_takes_the_alerts_which_are_raised_when_they_should_be_and_not_else() -> Result<()> {
    let rules = super::path(RULES);
    run(Command::new(promtool::find()?)
        .args(["check", "rules"])
        .arg(rules))?;
    let tests = super::path("prometheus/presence.rules.test.yml");
    run(Command::new(promtool::find()?)
        .args(["test", "rules"])
        .arg(tests))?;
    // Each alert is raised in one of the tests.
    let tests = super::document("prometheus/presence.rules.test.yml")?;
    let tests = tests["tests"].as_array().context("tests")?;
    let raised = tests
        .iter()
        .flat_map(|test| test["alert_rule_test"].as_array());
    let raised = raised
        .flatten()
        .filter(|test| test["exp_alerts"] != json!([]));
    let raised: BTreeSet<_> = raised.map(|test| test["alertname"].to_string()).collect();
    let named: BTreeSet<_> = alerts()?
        .into_iter()
        .map(|(name, _)| format!("\"{name}\""))
        .collect();
    assert_eq!(raised, named);
    Ok(())
}

#[test]
fn prometheus_takes_every_query_of_the_dashboard() -> Result<()> {
    let queries = dashboard_queries()?.into_iter().enumerate();
    let rules = queries.map(
        |(number, (_, query))| json!({"record": format!("dashboard:{number}"), "expr": query}),
    );
    let groups = json!({"groups": [{"name": "dashboard", "rules": rules.collect::<Vec<_>>()}]});
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("dashboard.yml");
    fs::write(&file, groups.to_string())?;
    run(Command::new(promtool::find()?)
        .args(["check", "rules", "--lint=none"])
        .arg(file))
}

#[test]
fn the_guide_says_what_to_do_about_every_alert() -> Result<()> {
    let page = fs::read_to_string(tools::root().join("docs/operate/monitoring.md"))?;
    let rows = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `Presence"));
    let documented: BTreeSet<_> = rows
        .filter_map(|row| Some(format!("Presence{}", row.split_once('`')?.0)))
        .collect();
    let named: BTreeSet<_> = alerts()?.into_iter().map(|(name, _)| name).collect();
    assert_eq!(documented, named);
    Ok(())
}

/// Each alert with its query.
fn alerts() -> Result<Vec<(String, String)>> {
    let rules = super::document(RULES)?;
    let rules = rules["groups"][0]["rules"].as_array().context("rules")?;
    let alerts = rules.iter().map(|rule| {
        let text = |key: &str| rule[key].as_str().map(str::to_owned);
        Some((text("alert")?, text("expr")?))
    });
    let alerts: Option<_> = alerts.collect();
    alerts.context("an alert has a name and a query")
}

/// Each query of the dashboard, with where it stands, and with values for its variables.
fn dashboard_queries() -> Result<Vec<(String, String)>> {
    let dashboard: Value = serde_json::from_str(&super::read(DASHBOARD)?)?;
    let title = |of: &Value, key: &str| of[key].as_str().unwrap_or_default().to_owned();
    let list = |of: &Value| of.as_array().cloned().unwrap_or_default();
    let mut queries = Vec::new();
    for panel in list(&dashboard["panels"]) {
        ensure!(
            list(&panel["panels"]).is_empty(),
            "a row keeps panels to itself"
        );
        for target in list(&panel["targets"]) {
            queries.push((title(&panel, "title"), title(&target, "expr")));
        }
    }
    for annotation in list(&dashboard["annotations"]["list"]) {
        queries.push((title(&annotation, "name"), title(&annotation, "expr")));
    }
    for variable in list(&dashboard["templating"]["list"]) {
        let query = title(&variable["query"], "query");
        let Some(arguments) = query.strip_prefix("label_values(") else {
            ensure!(variable["type"] == "datasource", "{query} isn't understood");
            continue;
        };
        let arguments = arguments.strip_suffix(')').context("a bracket")?;
        let (series, label) = arguments.rsplit_once(", ").context("a label")?;
        let query = format!("group by ({label}) ({series})");
        queries.push((title(&variable, "name"), query));
    }
    for (place, query) in &mut queries {
        let filled = query
            .replace("$__rate_interval", "5m")
            .replace("$instance", ".*")
            .replace("$job", "presence");
        ensure!(
            !filled.contains('$'),
            "{place}: {query} has an unknown variable"
        );
        *query = filled;
    }
    Ok(queries)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    Ok(())
}
