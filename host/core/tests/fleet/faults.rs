//! Which faults happen when. They are drawn from the seed before the run.

use crate::broker::Random;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A process is killed.
    Crash(usize),
    /// A process starts again, with the contents of its disk or without.
    Start {
        node: usize,
        with_disk: bool,
    },
    /// A process is stopped (SIGSTOP) for a time.
    Stop {
        node: usize,
        for_ms: u64,
    },
    /// A process is stopped in the middle of the next filtered event that it publishes.
    StopInWrite {
        node: usize,
        for_ms: u64,
    },
    /// A node leaves in order.
    Leave(usize),
    /// A node loses its connection to the broker, or gets it back.
    Cut(usize),
    Mend(usize),
    /// A server loses its connections to the others, or gets them back.
    Isolate(usize),
    Rejoin(usize),
    /// All links become slow, or normal again.
    Slow(u64),
}

/// Faults of one node at a time: when everything has settled, it is killed or leaves, and then
/// comes back.
pub(crate) fn draw_alone(
    nodes: usize,
    from: u64,
    until: u64,
    random: &mut Random,
) -> Vec<(u64, Fault)> {
    let mut faults = Vec::new();
    let mut t = from + random.within(0, 1_000);
    while t < until {
        let node = random.within(0, nodes as u64 - 1) as usize;
        let fault = match random.chance(70) {
            true => Fault::Crash(node),
            false => Fault::Leave(node),
        };
        faults.push((t, fault));
        let start = Fault::Start {
            node,
            with_disk: false,
        };
        faults.push((t + 1_500, start));
        t += random.within(3_500, 4_500);
    }
    faults
}

/// The faults of a run until `until`, each with its time.
pub(crate) fn draw(nodes: usize, until: u64, random: &mut Random) -> Vec<(u64, Fault)> {
    let mut faults = Vec::new();
    let mut t = 1_500;
    while t < until {
        let node = random.within(0, nodes as u64 - 1) as usize;
        let lasts_ms = match random.chance(50) {
            true => random.within(50, 600),
            false => random.within(600, 3_000),
        };
        let end = t + lasts_ms;
        match random.within(0, 11) {
            0..=2 => {
                faults.push((t, Fault::Crash(node)));
                let with_disk = random.chance(60);
                faults.push((end, Fault::Start { node, with_disk }));
            }
            3 | 4 => faults.push((
                t,
                Fault::Stop {
                    node,
                    for_ms: lasts_ms,
                },
            )),
            5 | 6 => faults.push((
                t,
                Fault::StopInWrite {
                    node,
                    for_ms: lasts_ms + 300,
                },
            )),
            7 => {
                faults.push((t, Fault::Leave(node)));
                let with_disk = random.chance(60);
                faults.push((end + 1_500, Fault::Start { node, with_disk }));
            }
            8 => {
                faults.push((t, Fault::Cut(node)));
                faults.push((end, Fault::Mend(node)));
            }
            9 => {
                let server = random.within(0, 2) as usize;
                faults.push((t, Fault::Isolate(server)));
                faults.push((end, Fault::Rejoin(server)));
            }
            10 => {
                // A split in which no server belongs to a majority.
                for server in 0..3 {
                    faults.push((t, Fault::Isolate(server)));
                    faults.push((end, Fault::Rejoin(server)));
                }
            }
            _ => {
                faults.push((t, Fault::Slow(random.within(5, 40))));
                faults.push((end, Fault::Slow(0)));
            }
        }
        // Some faults come close together, and some after everything has settled.
        t += match random.chance(60) {
            true => random.within(100, 1_500),
            false => random.within(3_000, 5_500),
        };
    }
    faults.sort_by_key(|(at, _)| *at);
    faults
}
