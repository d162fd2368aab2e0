//! The figures as text.

use std::fmt::Write;

use super::density::{Density, Resources};
use super::fairness;
use super::fan_out::{self, Figures, Row};
use super::fleet;
use super::in_process::{Ledger, Swaps};
use super::memory::Memory;
use super::operating::{SideLoads, UnderLoad};
use super::queries;
use super::storm;
use super::times::Times;

/// How wide the first column is.
const TITLE: usize = 32;
/// How wide a column of figures is.
const COLUMN: usize = 24;

/// Rates, ratios, and processor time of the fan-out. One column for each size of the audience.
pub(crate) fn fan_out(figures: &[Figures]) -> String {
    let mut text = String::new();
    let rows = figures.first().map_or(&[][..], |figures| &figures.rows);
    let titles: Vec<_> = rows.iter().map(|row| row.title).collect();

    line(
        &mut text,
        "one online event in, one filtered out",
        figures
            .iter()
            .map(|figures| format!("{} viewers", grouped(figures.viewers as f64))),
    );
    let _ = writeln!(text, "events a second (median round; lowest to highest)");
    for title in &titles {
        line(&mut text, title, cells(figures, title, rate));
    }
    let _ = writeln!(text, "ratio of the medians");
    for (name, top, bottom) in [
        ("d/limit", fan_out::PRESENCE, fan_out::LIMIT),
        ("d/a", fan_out::PRESENCE, fan_out::RELAY),
        ("d/b", fan_out::PRESENCE, fan_out::NATIVE),
        ("d/c", fan_out::PRESENCE, fan_out::NODE),
        ("d without reuse/b", fan_out::WITHOUT_REUSE, fan_out::NATIVE),
        (
            "d with its state kept/d",
            fan_out::WITH_STATE,
            fan_out::PRESENCE,
        ),
        ("d/e", fan_out::PRESENCE, fan_out::EARLIER),
        (
            "d without reuse/e without",
            fan_out::WITHOUT_REUSE,
            fan_out::EARLIER_WITHOUT_REUSE,
        ),
        (
            "d with its state kept/e with it",
            fan_out::WITH_STATE,
            fan_out::EARLIER_WITH_STATE,
        ),
    ] {
        if titles.contains(&top) && titles.contains(&bottom) {
            line(
                &mut text,
                name,
                figures.iter().map(|figures| ratio(figures, top, bottom)),
            );
        }
    }
    let _ = writeln!(
        text,
        "processor time an event: contender + broker + load, µs"
    );
    for title in &titles {
        line(&mut text, title, cells(figures, title, cpu));
    }
    let _ = writeln!(
        text,
        "messages published for an event, the filtered one among them"
    );
    for title in &titles {
        line(
            &mut text,
            title,
            cells(figures, title, |row| format!("{:.2}", row.published)),
        );
    }
    text
}

/// Rates and processor time of heartbeats.
pub(crate) fn heartbeats(rows: &[Row]) -> String {
    let mut text = String::new();
    let heads = ["a second", "µs (it+broker+load)"].map(str::to_owned);
    line(&mut text, "heartbeats taken in", heads);
    for row in rows {
        line(&mut text, row.title, [rate(row), cpu(row)]);
    }
    if let [counter, presence] = rows {
        line(
            &mut text,
            "ratio",
            [format!("{:.2}", presence.median() / counter.median())],
        );
    }
    text
}

/// How long answers to queries took.
pub(crate) fn queries(rows: &[queries::Row]) -> String {
    let mut text = String::new();
    let heads = ["median, µs", "99th percentile, µs", "times the bare one"];
    let title = "a query of 100 users at a time";
    line(&mut text, title, heads.map(str::to_owned));
    let bare = rows.first().map_or(f64::NAN, |row| row.took.us(0.5));
    for row in rows {
        let median = row.took.us(0.5);
        let cells = [median, row.took.us(0.99)].map(|us| format!("{us:.0}"));
        let times = format!("{:.2}", median / bare);
        line(&mut text, row.title, cells.into_iter().chain([times]));
    }
    text
}

/// The cost of the ledger. Its time is also shown as a share of the host's processor time for an
/// online event, at the first size of the audience.
pub(crate) fn ledger(ledger: &Ledger, figures: &[Figures]) -> String {
    let mut text = String::new();
    let title = format!("the ledger, {} users online", grouped(ledger.users as f64));
    line(&mut text, &title, ["online", "offline"].map(str::to_owned));
    let ns = |ns: f64| format!("{ns:.0}");
    let took = [ns(ledger.online_ns), ns(ledger.offline_ns)];
    line(&mut text, "time for an event, ns", took);
    let presence = figures.first().and_then(|it| it.row(fan_out::PRESENCE));
    if let Some(row) = presence {
        let event_ns = row.cpu.contender_ns as f64 / row.events.max(1) as f64;
        let part = format!("{:.1} %", 100.0 * ledger.online_ns / event_ns);
        line(&mut text, "of (d)'s processor time for it", [part]);
    }
    let heads = ["ledger", "their events", "whole shard"].map(str::to_owned);
    let title = format!("with {} contacts each", ledger.contacts);
    line(&mut text, &title, heads);
    let bytes = [ledger.ledger_bytes, ledger.event_bytes, ledger.shard_bytes];
    line(
        &mut text,
        "bytes a user",
        bytes.map(|bytes| format!("{bytes:.0}")),
    );
    let title = format!("a tracker of {}", grouped(ledger.connections as f64));
    line(&mut text, &title, ["tracker".to_owned()]);
    let bytes = format!("{:.0}", ledger.connection_bytes);
    line(&mut text, "bytes a connection", [bytes]);
    text
}

/// The cost of a swap of the pipeline.
pub(crate) fn swaps(swaps: &Swaps) -> String {
    let mut text = String::new();
    let title = format!(
        "swap, {} users × {}",
        grouped(swaps.users as f64),
        swaps.contacts
    );
    let heads = ["nothing changes", "all lose a viewer", "all gain one"];
    line(&mut text, &title, heads.map(str::to_owned));
    let kinds = [&swaps.same, &swaps.losses, &swaps.gains];
    let rates = kinds.map(|swap| grouped(swap.a_second));
    line(&mut text, "decided a second a core", rates);
    let longest = kinds.map(|swap| format!("{:.1}", swap.longest_ms));
    line(&mut text, "longest wait of new events, ms", longest);
    text
}

/// The effect of swaps under load on memory and on events.
pub(crate) fn under_load(figures: &UnderLoad) -> String {
    let mut text = String::new();
    let title = format!(
        "{} swaps under load, {} a second",
        grouped(figures.swaps as f64),
        figures.wanted_a_second
    );
    let heads = [
        "steady",
        "another node swaps",
        "while swapping",
        "ratio to either",
    ];
    line(&mut text, &title, heads.map(str::to_owned));
    for (title, part) in [("median, µs", 0.5), ("99th percentile, µs", 0.99)] {
        let times = [&figures.steady, &figures.elsewhere, &figures.swapping];
        let times = times.map(|it| it.us(part));
        let [steady, elsewhere, swapping] = times;
        let ratio = format!("{:.2} {:.2}", swapping / steady, swapping / elsewhere);
        let us = times.map(|us| format!("{us:.0}"));
        line(&mut text, title, us.into_iter().chain([ratio]));
    }
    let [before, after] = figures.resident;
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let times = format!("{:.3}", after as f64 / before as f64);
    line(
        &mut text,
        "resident, MiB: first, last",
        [mib(before), String::new(), mib(after), times],
    );
    let answered = [&figures.steady, &figures.elsewhere, &figures.swapping].map(Times::len);
    let answered = answered.map(|count| grouped(count as f64));
    line(&mut text, "events, each answered", answered);
    let a_second = format!("{:.0}", figures.a_second);
    let a_second = [String::new(), String::new(), a_second];
    line(&mut text, "swaps a second", a_second);
    text
}

/// The effect of a shadow and of scrapes of the metrics on the active path.
pub(crate) fn side_loads(figures: &SideLoads) -> String {
    let mut text = String::new();
    let heads = ["events a second", "of the plain one's"].map(str::to_owned);
    line(&mut text, "one online event in, one out", heads);
    let plain = figures.rows.first().map_or(f64::NAN, Row::median);
    for row in &figures.rows {
        let part = format!("{:.3}", row.median() / plain);
        line(&mut text, row.title, [rate(row), part]);
    }
    let compared = grouped(figures.compared);
    line(&mut text, "decisions that the shadow compared", [compared]);
    text
}

/// The effect of hostile tenants on a quiet one.
pub(crate) fn fairness(rows: &[fairness::Row]) -> String {
    let mut text = String::new();
    let heads = [
        "alone, µs",
        "broker loaded, µs",
        "beside it, µs",
        "ratio to either",
    ];
    for (title, part) in [("median", 0.5), ("99th percentile", 0.99)] {
        let title = format!("a quiet tenant's {title}");
        line(&mut text, &title, heads.map(str::to_owned));
        for row in rows {
            let times = [&row.alone, &row.broker_loaded, &row.beside];
            let [alone, loaded, beside] = times.map(|times| times.us(part));
            let ratio = format!("{:.2} {:.2}", beside / alone, beside / loaded);
            let us = [alone, loaded, beside].map(|us| format!("{us:.0}"));
            line(&mut text, row.title, us.into_iter().chain([ratio]));
        }
    }
    text
}

/// The resources that many tenants take on one node.
pub(crate) fn density(figures: &Density) -> String {
    let mut text = String::new();
    let tenants = figures.tenants as f64;
    let heads = ["one tenant", "idle", "an event in each", "given back"].map(str::to_owned);
    line(
        &mut text,
        &format!("{} tenants on one node", grouped(tenants)),
        heads,
    );
    let one = figures.one;
    let states = std::iter::once(one).chain(figures.all);
    let cells = |of: fn(Resources) -> u64| states.clone().map(move |it| grouped(of(it) as f64));
    line(&mut text, "resident, KiB", cells(|it| it.resident / 1_024));
    let others = (tenants - 1.0).max(1.0);
    let a_tenant = figures.all.map(|it| {
        let more = it.resident.saturating_sub(one.resident);
        format!("{:.1}", more as f64 / 1_024.0 / others)
    });
    let cells_of = std::iter::once(String::new()).chain(a_tenant);
    line(&mut text, "of it a tenant more, KiB", cells_of);
    line(&mut text, "threads", cells(|it| it.threads));
    line(&mut text, "mappings", cells(|it| it.mappings));
    line(&mut text, "open files", cells(|it| it.files));
    let subscriptions = figures.subscriptions.map(|it| grouped(it as f64));
    line(&mut text, "subscriptions", subscriptions);
    let idle = figures.idle_cpu.map(|it| format!("{it:.1}"));
    line(&mut text, "processor while idle, ‰", idle);
    let [first, again] = figures.started.map(|it| format!("{:.2}", it.as_secs_f64()));
    line(&mut text, "started, s: first, again", [first, again]);
    let events = format!("{:.2}", figures.events.as_secs_f64());
    line(&mut text, "an event in each, s", [events]);
    text
}

/// The effect of a storm on the node, and on a quiet tenant beside it.
pub(crate) fn storm(rows: &[storm::Row]) -> String {
    let mut text = String::new();
    let count = rows.first().map_or(0, |row| row.connections);
    let title = format!("{} connections lost at once", grouped(count as f64));
    let heads = rows.iter().map(|row| row.title.to_owned());
    line(&mut text, &title, heads);
    let mut cells = |title: &str, cell: &dyn Fn(&storm::Row) -> String| {
        line(&mut text, title, rows.iter().map(cell));
    };
    cells("events of the tenant published", &|row| {
        grouped(row.events as f64)
    });
    cells("messages dropped", &|row| grouped(row.dropped));
    let mib = |bytes: f64| format!("{:.1}", bytes / 1_048_576.0);
    cells("at most waiting for shards, MiB", &|row| mib(row.waiting));
    cells(
        "at most unacknowledged, MiB",
        &|row| mib(row.unacknowledged),
    );
    cells("resident before and at most, MiB", &|row| {
        row.resident.map(|it| mib(it as f64)).join(" ")
    });
    for (title, part) in [("median", 0.5), ("99th percentile", 0.99)] {
        let title = format!("a quiet tenant's {title}, µs: before, during");
        cells(&title, &|row| {
            let times = [&row.before, &row.during];
            times.map(|it| format!("{:.0}", it.us(part))).join(" ")
        });
    }
    text
}

/// How a fleet's shard changes hands, and what standby and router cost.
pub(crate) fn fleet(figures: &fleet::Figures) -> String {
    let mut text = String::new();
    let title = format!(
        "{} connections in a shard",
        grouped(figures.connections as f64)
    );
    let heads = ["took, s", "events at most, ms", "median, ms", "differences"];
    line(&mut text, &title, heads.map(str::to_owned));
    for it in &figures.measurements {
        let ms = |part| it.events.us(part) / 1_000.0;
        let cells = [
            format!("{:.2}", it.took.as_secs_f64()),
            format!("{:.1}", it.events.longest().as_secs_f64() * 1_000.0),
            format!("{:.1}", ms(0.5)),
            grouped(it.differences as f64),
        ];
        line(&mut text, it.title, cells);
    }
    let lease = figures.lease.as_secs_f64();
    let _ = writeln!(text, "  the lease is {lease} s");
    let heads = [
        "messages",
        "dropped",
        "owner, µs each",
        "standby, µs each",
        "share",
    ];
    line(
        &mut text,
        "a standby beside its owner",
        heads.map(str::to_owned),
    );
    for it in &figures.standby {
        let each = |ns: u64| ns as f64 / 1_000.0 / it.messages.max(1) as f64;
        let (owner, standby) = (each(it.owner_ns), each(it.standby_ns));
        let cells = [
            grouped(it.messages as f64),
            grouped(it.dropped),
            format!("{owner:.2}"),
            format!("{standby:.2}"),
            format!("{:.2}", standby / owner),
        ];
        line(&mut text, it.title, cells);
    }
    let routed = &figures.routed;
    let each = routed.ns / 1_000.0 / routed.messages.max(1.0);
    let cells = [grouped(routed.messages), format!("{each:.2}")];
    line(&mut text, "a router: messages, µs each", cells);
    text
}

/// The memory of a node's connections.
pub(crate) fn memory(figures: &Memory) -> String {
    let mut text = String::new();
    let title = format!("{} connections", grouped(figures.connections as f64));
    let heads = [
        "resident before, MiB",
        "with all, MiB",
        "bytes each",
        "took, s",
    ];
    line(&mut text, &title, heads.map(str::to_owned));
    let [before, with] = figures.resident.map(|it| it as f64);
    let cells = [
        format!("{:.0}", before / 1_048_576.0),
        format!("{:.0}", with / 1_048_576.0),
        format!("{:.0}", (with - before) / figures.connections as f64),
        format!("{:.1}", figures.took.as_secs_f64()),
    ];
    line(&mut text, "two of each user, one viewer", cells);
    text
}

fn cells(
    figures: &[Figures],
    title: &str,
    cell: impl Fn(&Row) -> String,
) -> impl Iterator<Item = String> {
    figures
        .iter()
        .map(move |figures| figures.row(title).map(&cell).unwrap_or_default())
}

fn line(text: &mut String, title: &str, cells: impl IntoIterator<Item = String>) {
    let _ = write!(text, "  {title:TITLE$}");
    for cell in cells {
        let _ = write!(text, "{cell:>COLUMN$}");
    }
    text.push('\n');
}

fn rate(row: &Row) -> String {
    let low = row.rates.iter().copied().fold(f64::INFINITY, f64::min);
    let high = row.rates.iter().copied().fold(0.0, f64::max);
    format!(
        "{} ({}k-{}k)",
        grouped(row.median()),
        thousands(low),
        thousands(high)
    )
}

fn cpu(row: &Row) -> String {
    let us = |ns: u64| ns as f64 / 1_000.0 / row.events.max(1) as f64;
    format!(
        "{:.2} + {:.2} + {:.2}",
        us(row.cpu.contender_ns),
        us(row.cpu.broker_ns),
        us(row.cpu.load_ns)
    )
}

fn ratio(figures: &Figures, top: &str, bottom: &str) -> String {
    let rate = |title| figures.row(title).map_or(f64::NAN, Row::median);
    format!("{:.2}", rate(top) / rate(bottom))
}

fn thousands(rate: f64) -> String {
    if rate < 10_000.0 {
        format!("{:.1}", rate / 1_000.0)
    } else {
        format!("{:.0}", rate / 1_000.0)
    }
}

/// A number with its thousands set apart.
fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
