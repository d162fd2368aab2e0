//! `cargo xtask scale`: what users cost, simulated with the real core at several sizes, and
//! extrapolated to more users than one machine can have.
//!
//! The figures of the smallest size are also extrapolated to the larger sizes that are simulated.
//! How far off they are shows how reliable the figures are for sizes that aren't simulated.

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::bench::in_process::figures;

/// A row of a table: its title, and the function of its figure.
type Row<'a, T> = (&'a str, &'a dyn Fn(&T) -> f64);

/// Simulates what users cost, and carries it over to many millions.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// How many users there are in each simulation.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000, 400_000])]
    users: Vec<u64>,
    /// How many seconds are simulated.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many users the tables at the end are about.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000_000, 100_000_000])]
    of: Vec<u64>,
    #[command(flatten)]
    costs: Costs,
}

/// For how long a router holds a heartbeat back, to pass it on together with others of its shard.
/// In seconds.
const ROUTER_WAITS_S: f64 = 0.02;

/// What is measured elsewhere: see `cargo xtask bench`.
#[derive(clap::Args)]
struct Costs {
    /// Processor time of a node for taking an input from the broker, beside the core, in
    /// microseconds.
    #[arg(long, default_value_t = 0.6)]
    take_us: f64,
    /// For publishing a message.
    #[arg(long, default_value_t = 1.4)]
    publish_us: f64,
    /// For deciding with the plugins, of an event whose verdict isn't known.
    #[arg(long, default_value_t = 7.0)]
    decide_us: f64,
    /// For passing an input on to its shard.
    #[arg(long, default_value_t = 0.5)]
    route_us: f64,
    /// Processor time of the broker for a message in or out.
    #[arg(long, default_value_t = 1.0)]
    broker_us: f64,
    /// Processors of a node, and of a broker's server.
    #[arg(long, default_value_t = 8.0)]
    cores: f64,
    /// Up to which part of them is used.
    #[arg(long, default_value_t = 0.5)]
    load: f64,
}

/// What the bench `scale` prints.
#[derive(Deserialize)]
struct Simulated {
    users: u64,
    contacts: u64,
    online: f64,
    connections: f64,
    inputs_per_s: f64,
    changes_per_s: f64,
    standby_inputs_per_s: f64,
    input_bytes_per_s: f64,
    filtered_per_s: f64,
    others_per_s: f64,
    output_bytes_per_s: f64,
    told_per_s: f64,
    told_bytes_per_s: f64,
    parse_ns_per_s: f64,
    owner_ns_per_s: f64,
    standby_ns_per_s: f64,
    owner_bytes: f64,
    standby_bytes: f64,
    snapshot_bytes: f64,
    snapshot_ms: f64,
}

/// Runs the task.
///
/// # Errors
/// If a simulation fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let simulated = args
        .users
        .iter()
        .map(|users| simulate(*users, args.seconds));
    let simulated = simulated.collect::<Result<Vec<_>>>()?;
    print!("{}", simulations(&simulated));
    let largest = simulated.last().context("no size is given")?;
    ensure!(largest.users > 0, "there are no users");
    print!("\n{}", carried_over(largest, &args.of, &args.costs));
    Ok(())
}

/// Simulates this many users for this many seconds.
fn simulate(users: u64, seconds: u64) -> Result<Simulated> {
    let (users, seconds) = (users.to_string(), seconds.to_string());
    // Only this package is selected, so that the core is built for this alone, optimized.
    figures(
        "scale",
        &["--package", "presence-core", "--", &users, &seconds],
    )
}

/// A line of a table: its title, and a figure of each column.
fn line(title: &str, figures: impl Iterator<Item = String>) -> String {
    let figures: String = figures.map(|figure| format!("{figure:>24}")).collect();
    format!("{title:<48}{figures}\n")
}

/// What was simulated, and by how much it differs from what the smallest size predicts.
fn simulations(all: &[Simulated]) -> String {
    let Some(first) = all.first() else {
        return String::new();
    };
    let row = |title: &str, figure: &dyn Fn(&Simulated) -> f64| {
        let predicted = |it: &Simulated| figure(first) * it.users as f64 / first.users as f64;
        let cells = all.iter().map(|it| match it.users == first.users {
            true => number(figure(it)),
            false => {
                let off = figure(it) / predicted(it);
                format!("{} ({off:.2})", number(figure(it)))
            }
        });
        line(title, cells)
    };
    let titles = all
        .iter()
        .map(|it| format!("{} users", number(it.users as f64)));
    let mut text = line("simulated (compared with the first, by users)", titles);
    let rows: [Row<'_, Simulated>; 16] = [
        ("online", &|it| it.online),
        ("connections", &|it| it.connections),
        ("inputs a second", &|it| it.inputs_per_s),
        ("of them connects and disconnects", &|it| it.changes_per_s),
        ("inputs that the standby takes in", &|it| {
            it.standby_inputs_per_s
        }),
        ("bytes of inputs a second", &|it| it.input_bytes_per_s),
        ("filtered events a second", &|it| it.filtered_per_s),
        ("other messages published a second", &|it| it.others_per_s),
        ("bytes published a second", &|it| it.output_bytes_per_s),
        ("messages told to the standby a second", &|it| it.told_per_s),
        ("bytes told a second", &|it| it.told_bytes_per_s),
        ("µs a second: parsing", &|it| it.parse_ns_per_s / 1e3),
        ("µs a second: the owner's core", &|it| {
            it.owner_ns_per_s / 1e3
        }),
        ("µs a second: the standby's core", &|it| {
            it.standby_ns_per_s / 1e3
        }),
        ("bytes of the owner", &|it| it.owner_bytes),
        ("bytes of the snapshot", &|it| it.snapshot_bytes),
    ];
    for (title, figure) in rows {
        text += &row(title, figure);
    }
    let cells = all.iter().map(|it| format!("{:.0}", it.snapshot_ms));
    text += &line("ms to take the snapshot", cells);
    let cells = all
        .iter()
        .map(|it| format!("{:.0}", it.owner_bytes / it.connections));
    text += &line("bytes a connection: the owner", cells);
    let cells = all
        .iter()
        .map(|it| format!("{:.0}", it.standby_bytes / it.connections));
    text += &line("bytes a connection: the standby", cells);
    let cells = all.iter().map(|it| {
        let ns = |ns_per_s: f64| ns_per_s / it.inputs_per_s;
        format!(
            "{:.0} + {:.0}, {:.0}",
            ns(it.parse_ns_per_s),
            ns(it.owner_ns_per_s),
            ns(it.standby_ns_per_s)
        )
    });
    text + &line("ns an input: parsing + the owner, the standby", cells)
}

/// What each of these numbers of users needs, from the cost per user in the largest simulation.
fn carried_over(from: &Simulated, of: &[u64], costs: &Costs) -> String {
    let needs: Vec<_> = of
        .iter()
        .map(|users| Needs::of(*users, from, costs))
        .collect();
    let row = |title: &str, figure: &dyn Fn(&Needs) -> f64| {
        line(title, needs.iter().map(|it| number(figure(it))))
    };
    let titles = of
        .iter()
        .map(|users| format!("{} users", number(*users as f64)));
    let contacts = from.contacts;
    let mut text = line(&format!("carried over, {contacts} contacts each"), titles);
    let rows: [Row<'_, Needs>; 14] = [
        ("connections", &|it| it.connections),
        ("inputs a second", &|it| it.inputs),
        ("filtered events a second", &|it| it.filtered),
        ("processors: owners", &|it| it.owners),
        ("processors: standbys", &|it| it.standbys),
        ("processors: routers, for plain subjects", &|it| it.routers),
        ("nodes, with the user in the subject", &|it| it.nodes),
        ("nodes, with plain subjects", &|it| it.nodes_routed),
        ("GiB of memory a node, beside the directory", &|it| {
            it.node_gib
        }),
        ("Mbit/s into a node", &|it| it.node_mbit),
        ("messages a second at the brokers", &|it| it.broker_messages),
        ("the same with plain subjects", &|it| {
            it.broker_messages_routed
        }),
        ("servers of the broker", &|it| it.servers),
        ("shards, so that one has 250,000 connections", &|it| {
            it.shards
        }),
    ];
    for (title, figure) in rows {
        text += &row(title, figure);
    }
    text
}

/// What some number of users needs.
struct Needs {
    connections: f64,
    inputs: f64,
    filtered: f64,
    owners: f64,
    standbys: f64,
    routers: f64,
    nodes: f64,
    nodes_routed: f64,
    node_gib: f64,
    node_mbit: f64,
    broker_messages: f64,
    broker_messages_routed: f64,
    servers: f64,
    shards: f64,
}

impl Needs {
    fn of(users: u64, from: &Simulated, costs: &Costs) -> Self {
        let times = users as f64 / from.users as f64;
        let connections = from.connections * times;
        let inputs = from.inputs_per_s * times;
        let filtered = from.filtered_per_s * times;
        let published = (from.filtered_per_s + from.others_per_s + from.told_per_s) * times;
        let seconds = |us: f64| us / 1e6;
        let taking = inputs * seconds(costs.take_us) + from.parse_ns_per_s * times / 1e9;
        let owners = taking
            + from.owner_ns_per_s * times / 1e9
            + published * seconds(costs.publish_us)
            + filtered * seconds(costs.decide_us);
        let told = from.told_per_s * times;
        // The standby takes in only a part of the inputs itself. The owner tells it of many
        // heartbeats.
        let share = from.standby_inputs_per_s / from.inputs_per_s;
        let standbys =
            taking * share + told * seconds(costs.take_us) + from.standby_ns_per_s * times / 1e9;
        let of_node = costs.cores * costs.load;
        let nodes = ((owners + standbys) / of_node).ceil();
        let bytes = (from.owner_bytes + from.standby_bytes) * times;
        // An input is the application's message, one message to the owner, and one to the standby
        // if it takes the input in itself. A published message is counted as one in and one out,
        // however many gateways listen.
        let broker_messages = inputs * (2.0 + share) + published * 2.0;
        // With a router, an input also goes to the router, and comes to the broker again. The
        // router passes heartbeats of one shard on together. A connect or disconnect between them
        // parts them into two messages.
        let shards = (connections / 250_000.0).max(64.0).log2().ceil().exp2();
        let changes = from.changes_per_s * times;
        let together = (inputs * ROUTER_WAITS_S / (nodes * shards)).max(1.0);
        let passed_on = ((inputs - changes) / together + 2.0 * changes).min(inputs);
        let broker_messages_routed = broker_messages + passed_on * 2.0;
        let routers = inputs * seconds(costs.take_us + costs.route_us);
        let node_bytes =
            (from.input_bytes_per_s * (1.0 + share) + from.told_bytes_per_s) * times / nodes;
        Self {
            connections,
            inputs,
            filtered,
            owners,
            standbys,
            routers,
            nodes,
            nodes_routed: ((owners + standbys + routers) / of_node).ceil(),
            node_gib: bytes / nodes / f64::from(1 << 30),
            node_mbit: node_bytes * 8.0 / 1e6,
            broker_messages,
            broker_messages_routed,
            servers: (broker_messages * seconds(costs.broker_us) / of_node).ceil(),
            shards,
        }
    }
}

/// A figure with only its significant places.
fn number(figure: f64) -> String {
    match figure {
        figure if figure >= 10_000_000.0 => format!("{:.1} M", figure / 1e6),
        figure if figure >= 100_000.0 => format!("{:.0} k", figure / 1e3),
        figure if figure >= 100.0 => format!("{figure:.0}"),
        figure => format!("{figure:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simulated() -> Simulated {
        Simulated {
            users: 1_000_000,
            contacts: 50,
            online: 900_000.0,
            connections: 1_350_000.0,
            inputs_per_s: 70_000.0,
            changes_per_s: 2_000.0,
            standby_inputs_per_s: 2_000.0,
            input_bytes_per_s: 14e6,
            filtered_per_s: 1_200.0,
            others_per_s: 2_400.0,
            output_bytes_per_s: 2e6,
            told_per_s: 1_000.0,
            told_bytes_per_s: 1e6,
            parse_ns_per_s: 20e6,
            owner_ns_per_s: 100e6,
            standby_ns_per_s: 90e6,
            owner_bytes: 1.5e9,
            standby_bytes: 1.6e9,
            snapshot_bytes: 1e9,
            snapshot_ms: 5_000.0,
        }
    }

    #[test]
    fn ten_times_the_users_need_ten_times_as_much_and_no_larger_nodes() {
        let costs = Costs {
            take_us: 0.6,
            publish_us: 1.4,
            decide_us: 7.0,
            route_us: 1.0,
            broker_us: 1.0,
            cores: 8.0,
            load: 0.5,
        };
        let [one, ten] =
            [10_000_000, 100_000_000].map(|users| Needs::of(users, &simulated(), &costs));
        assert!((ten.inputs - 10.0 * one.inputs).abs() < 1e-6);
        let tenth = (ten.owners + ten.standbys) / 10.0;
        assert!((one.owners + one.standbys - tenth).abs() < 1e-9);
        assert!(one.nodes * costs.cores * costs.load >= one.owners + one.standbys);
        assert!(ten.nodes <= 10.0 * one.nodes, "nodes are rounded up");
        assert_eq!(one.shards, 64.0, "no fewer than there are by default");
        assert!(ten.connections / ten.shards <= 250_000.0);
        assert!(one.nodes_routed >= one.nodes);
        let text = carried_over(&simulated(), &[10_000_000], &costs);
        assert!(
            text.contains("10.0 M users") && text.contains("13.5 M"),
            "{text}"
        );
    }
}
