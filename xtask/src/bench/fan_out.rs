//! One online event in, one filtered event out: the rates of all contenders at
//! one size of the audience.
//!
//! An online goes only to viewers not yet told, so every user is offline when a
//! round begins: a timed phase takes everyone online, and an untimed one takes
//! them offline again. All contenders get both.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use presence_tests::site::Site;

use super::cpu::Cpu;
use super::entrants::Entrant;
use super::generator::{Generator, Window};
use super::load::{BEGIN_MS, Population};
use super::{Args, Broker};

/// The least number of events that a round times. The first events of a round are slow, because the
/// allocator has given back memory while other contenders had their turn. They would dominate a
/// shorter round.
const ROUND_EVENTS_MIN: usize = 10_000;

/// The contenders, as the table calls them.
pub(crate) const RELAY: &str = "(a) raw relay";
pub(crate) const NATIVE: &str = "(b) native filter";
pub(crate) const NODE: &str = "(c) the seed's filter in Node";
pub(crate) const PRESENCE: &str = "(d) presence";
pub(crate) const WITHOUT_REUSE: &str = "(d) without verdict reuse";
pub(crate) const WITH_STATE: &str = "(d) with its state kept on disk";
pub(crate) const EARLIER: &str = "(e) the earlier presence";
pub(crate) const EARLIER_WITHOUT_REUSE: &str = "(e) without verdict reuse";
pub(crate) const EARLIER_WITH_STATE: &str = "(e) with its state kept on disk";
/// What publishing alone costs with the same client: as many messages of as many bytes as
/// (d) publishes.
pub(crate) const LIMIT: &str = "(limit) relay of (d)'s messages";

/// The figures at one size of the audience.
pub(crate) struct Figures {
    pub(crate) viewers: usize,
    pub(crate) rows: Vec<Row>,
}

/// One contender's figures.
pub(crate) struct Row {
    pub(crate) title: &'static str,
    /// Online events a second, each round.
    pub(crate) rates: Vec<f64>,
    /// Processor time over all timed phases.
    pub(crate) cpu: Cpu,
    /// How many events the timed phases were fed.
    pub(crate) events: usize,
    /// How many messages the contender published for an event, on all subjects.
    pub(crate) published: f64,
}

/// A contender, its load, and its figures.
pub(crate) struct Lane {
    pub(crate) entrant: Entrant,
    pub(crate) generator: Generator,
    pub(crate) row: Row,
}

/// Measures all contenders, in turns.
pub(crate) fn measure(broker: &Broker, args: &Args, viewers: usize) -> Result<Figures> {
    let population = Population::with(viewers);
    let directory = population.directory();
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("directory.json");
    std::fs::write(&file, &directory)?;

    let mut entrants = vec![
        Entrant::own(broker, RELAY, "relay", &[])?,
        Entrant::own(
            broker,
            NATIVE,
            "filter",
            &["--directory", &file.to_string_lossy()],
        )?,
        Entrant::node(broker, NODE, &file)?,
    ];
    if !args.without_presence {
        entrants.push(Entrant::presence(broker, PRESENCE, None, &directory, Ok)?);
        let with_state = |site: Site| site.with("state.dir", "state");
        let without = |site: Site| site.with("engine.reuse_verdicts", false);
        entrants.push(Entrant::presence(
            broker,
            WITHOUT_REUSE,
            Some("reuseoff"),
            &directory,
            without,
        )?);
        entrants.push(Entrant::presence(
            broker,
            WITH_STATE,
            Some("stateful"),
            &directory,
            with_state,
        )?);
        if let Some(binary) = &args.baseline {
            let tenant = Some("earlier");
            let earlier = Entrant::presence_of(broker, EARLIER, tenant, &directory, Ok, binary)?;
            entrants.push(earlier);
            let (title, tenant) = (EARLIER_WITHOUT_REUSE, Some("earlieroff"));
            let earlier = Entrant::presence_of(broker, title, tenant, &directory, without, binary)?;
            entrants.push(earlier);
            let (title, tenant) = (EARLIER_WITH_STATE, Some("earlierstate"));
            let earlier =
                Entrant::presence_of(broker, title, tenant, &directory, with_state, binary)?;
            entrants.push(earlier);
        }
    }
    let lanes = entrants
        .into_iter()
        .map(|entrant| Lane::new(broker, entrant));
    let mut lanes = lanes.collect::<Result<Vec<_>>>()?;

    let mut limit = None;
    for lane in &mut lanes {
        lane.check(population)
            .with_context(|| lane.entrant.log_tail())?;
        if lane.row.title == PRESENCE {
            lane.record(broker, population, folder.path())?;
            let args = ["--published", &folder.path().to_string_lossy()];
            let entrant = Entrant::own(broker, LIMIT, "limit", &args)?;
            limit = Some(Lane::new(broker, entrant)?);
        }
    }
    lanes.extend(limit);
    for round in 0..=args.rounds {
        for lane in &mut lanes {
            let done = lane.round(broker, args.window, population, round);
            done.with_context(|| format!("{}\n{}", lane.entrant.title, lane.entrant.log_tail()))?;
        }
    }
    let figures = Figures {
        viewers,
        rows: lanes.into_iter().map(|lane| lane.row).collect(),
    };
    if let (Some(presence), Some(limit)) = (figures.row(PRESENCE), figures.row(LIMIT)) {
        ensure!(
            (presence.published - limit.published).abs() < 0.05,
            "for an event, presence published {:.2} messages, and the limit {:.2}",
            presence.published,
            limit.published
        );
    }
    Ok(figures)
}

impl Row {
    /// The median of the rates.
    pub(crate) fn median(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
    }
}

impl Figures {
    /// A contender's figures, if it was measured.
    pub(crate) fn row(&self, title: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.title == title)
    }
}

impl Lane {
    /// The generator takes the filtered events that an entrant publishes as answers.
    pub(crate) fn new(broker: &Broker, entrant: Entrant) -> Result<Self> {
        let subject = format!("{}.filtered.*", entrant.root);
        let generator = Generator::connect(broker.server.port(), &subject)?;
        let row = Row {
            title: entrant.title,
            rates: Vec::new(),
            cpu: Cpu::default(),
            events: 0,
            published: 0.0,
        };
        Ok(Self {
            entrant,
            generator,
            row,
        })
    }

    /// Checks that the contender does the work: its event has the right number of viewers.
    fn check(&mut self, population: Population) -> Result<()> {
        let one = population.of_one();
        let online = self
            .generator
            .ask(&one.online(&self.entrant.root, BEGIN_MS))?;
        self.generator
            .ask(&one.offline(&self.entrant.root, BEGIN_MS))?;
        let viewers = online.matches("\"v").count();
        let expected = if self.row.title == RELAY {
            0
        } else {
            population.viewers
        };
        // `"visibleTo"` begins like a viewer's id.
        let found = viewers.saturating_sub(online.matches("\"visibleTo\"").count());
        ensure!(
            found == expected,
            "{expected} viewers expected, not {found}: {online:.300}"
        );
        Ok(())
    }

    /// Writes what presence publishes for an online and an offline event into files, for
    /// the limit to publish.
    fn record(&mut self, broker: &Broker, population: Population, folder: &Path) -> Result<()> {
        let root = &self.entrant.root;
        let mut to_all = Generator::connect(broker.server.port(), &format!("{root}.events"))?;
        let one = population.of_one();
        // A moment later than the check's events.
        let at = BEGIN_MS + 1;
        for (kind, event) in [
            ("online", one.online(root, at)),
            ("offline", one.offline(root, at)),
        ] {
            std::fs::write(
                folder.join(format!("{kind}.filtered")),
                self.generator.ask(&event)?,
            )?;
            std::fs::write(folder.join(format!("{kind}.events")), to_all.message()?)?;
        }
        Ok(())
    }

    /// Takes everyone online, which is timed, and offline again, until enough events are timed.
    /// Round 0 is a warm-up, and doesn't count.
    pub(crate) fn round(
        &mut self,
        broker: &Broker,
        window: usize,
        population: Population,
        round: usize,
    ) -> Result<()> {
        let window = Window {
            messages: window,
            per_answer: 1,
        };
        let (pid, broker_pid) = (self.entrant.pid(), broker.pid()?);
        let cycles = ROUND_EVENTS_MIN.div_ceil(population.users);
        let (mut took, mut used, mut events) = (Duration::ZERO, Cpu::default(), 0);

        let published = broker.messages_in()?;
        for cycle in 0..cycles {
            let at = BEGIN_MS + 1_000 * (1 + round * cycles + cycle) as u64;
            let online = population.online(&self.entrant.root, at);
            let offline = population.offline(&self.entrant.root, at + 500);
            let before = Cpu::now(pid, broker_pid)?;
            took += self.generator.feed(&online, window)?;
            used.add(Cpu::now(pid, broker_pid)?.since(before));
            self.generator.feed(&offline, window)?;
            events += online.len();
        }
        // The host publishes other messages beside the filtered event, which may come later than
        // the event. So the messages of both phases are counted together, after the offlines: then
        // all of the onlines' messages have come. Both phases publish the same number.
        let published = broker.messages_in()? - published;

        if round > 0 {
            self.row.rates.push(events as f64 / took.as_secs_f64());
            self.row.cpu.add(used);
            self.row.events += events;
            self.row.published = published as f64 / (2 * events) as f64 - 1.0;
        }
        Ok(())
    }
}
