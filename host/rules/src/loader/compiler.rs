//! Compiling plugins. Compiled code is shared by the digest of the plugin's bytes, whatever its
//! name.
//!
//! A plugin can be made so that compiling it takes very long, and a compiler can't be
//! interrupted. So each compilation has a thread of its own, of low priority, and a time limit:
//! after that, nobody waits for it any more, and its place is given to another one. The threads
//! that go on so are few: if there are more, places are given away when these threads end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

use presence_sandbox::{Engine, LoadError, Plugin, sha256};

use super::compile_slots::CompileSlots;
use super::trust::Proof;

/// How many compiled plugins are kept that no pipeline uses: an attempt to load a pipeline
/// that was refused is made again.
const UNUSED_MAX: usize = 8;

/// How many threads compile one plugin: each may take hundreds of megabytes for a function.
const THREADS_MAX: usize = 4;

/// How much lower than the rest of the node its threads are.
const NICE: i32 = 10;

/// What compiles a plugin of a name.
type CompileFn = dyn Fn(&str, &[u8]) -> Result<Plugin, LoadError> + Send + Sync;

/// Compiles plugins, each digest once.
pub(super) struct Compiler {
    engine: Engine,
    load: Arc<CompileFn>,
    compiled: Mutex<Vec<Compiled>>,
    slots: Arc<CompileSlots>,
}

/// What was compiled of one file's bytes, the last used at the end.
struct Compiled {
    sha256: Arc<str>,
    place: Arc<CompiledPlugins>,
}

/// What there is of one file's bytes.
#[derive(Default)]
struct CompiledPlugins {
    state: Mutex<State>,
    /// Who vouches for them.
    proof: OnceLock<Arc<Proof>>,
}

/// The plugin under each of its names, and the compilation that is under way.
#[derive(Default)]
struct State {
    plugins: Vec<Arc<Plugin>>,
    under_way: Option<Arc<Compilation>>,
}

/// A compilation, for all who wait for it.
#[derive(Default)]
struct Compilation {
    stage: Mutex<Stage>,
    ended: Condvar,
}

#[derive(Default, PartialEq)]
enum Stage {
    #[default]
    UnderWay,
    /// It takes too long: nobody waits for it any more.
    GivenUp,
    Ended,
}

impl Compiler {
    /// Compiles so many at a time; 0 for half as many as there are cores, and at least two.
    pub(super) fn new(engine: Engine, at_once: usize) -> Self {
        let load = {
            let engine = engine.clone();
            move |name: &str, bytes: &[u8]| Plugin::load(&engine, name, bytes)
        };
        Self::of(engine, at_once, Arc::new(load))
    }

    fn of(engine: Engine, at_once: usize, load: Arc<CompileFn>) -> Self {
        let at_once = match at_once {
            0 => (cores() / 2).max(2),
            at_once => at_once,
        };
        Self {
            engine,
            load,
            compiled: Mutex::default(),
            slots: Arc::new(CompileSlots::new(at_once)),
        }
    }

    /// How many compiled plugins were refused, since they weren't what was kept on disk.
    pub(super) fn cache_refusals(&self) -> u64 {
        self.engine.cache_refusals()
    }

    /// Compiles a plugin for an owner, unless its bytes have been, or are being, compiled. It may
    /// take so long, from when it begins.
    ///
    /// # Errors
    /// If it is no plugin, or takes too long.
    pub(super) fn compile(
        &self,
        owner: &str,
        name: &str,
        bytes: &[u8],
        limit: Duration,
    ) -> Result<Arc<Plugin>, LoadError> {
        let place = self.place(sha256(bytes));
        place.proof_of(bytes);
        let too_slow = || LoadError::TooSlow {
            plugin: name.into(),
            seconds: limit.as_secs_f32(),
        };
        loop {
            let mut state = held(&place.state);
            if let Some(plugin) = state.plugins.iter().find(|it| *it.name == *name) {
                return Ok(Arc::clone(plugin));
            }
            if let Some(same) = state.plugins.first() {
                let plugin = Arc::new(same.renamed(name));
                state.plugins.push(Arc::clone(&plugin));
                return Ok(plugin);
            }
            let Some(other) = state.under_way.clone() else {
                let own = Arc::<Compilation>::default();
                state.under_way = Some(Arc::clone(&own));
                drop(state);
                return self
                    .begin(owner, name, bytes, limit, &place, &own)?
                    .ok_or_else(too_slow);
            };
            drop(state);
            if !other.is_over() {
                return Err(too_slow());
            }
        }
    }

    /// Compiles, on a thread of its own. None if it takes too long.
    fn begin(
        &self,
        owner: &str,
        name: &str,
        bytes: &[u8],
        limit: Duration,
        place: &Arc<CompiledPlugins>,
        own: &Arc<Compilation>,
    ) -> Result<Option<Arc<Plugin>>, LoadError> {
        let slot = self.slots.take(owner);
        let outcome = Arc::<Mutex<Option<Result<Arc<Plugin>, LoadError>>>>::default();
        let work = {
            let (load, engine) = (Arc::clone(&self.load), self.engine.clone());
            let (name, bytes) = (name.to_owned(), bytes.to_vec());
            let (place, own, outcome) = (Arc::clone(place), Arc::clone(own), Arc::clone(&outcome));
            let slot = slot.clone();
            move || {
                let compiled =
                    catch_unwind(AssertUnwindSafe(|| compile(&engine, &*load, &name, &bytes)));
                let compiled = compiled.unwrap_or_else(|_| {
                    Err(LoadError::NotAPlugin {
                        plugin: name,
                        what: "the compiler has failed on it, which is an error of the program"
                            .into(),
                    })
                });
                let mut state = held(&place.state);
                state.under_way = None;
                let compiled = compiled.map(Arc::new);
                // Even if nobody waits: it is there when it is asked for again.
                state.plugins.extend(compiled.as_ref().ok().cloned());
                *held(&outcome) = Some(compiled);
                drop(state);
                slot.end();
                own.end();
            }
        };
        let began = thread::Builder::new().name("compile".into()).spawn(work);
        if let Err(error) = began {
            held(&place.state).under_way = None;
            slot.end();
            own.end();
            return Err(LoadError::Engine(format!("no thread can be had: {error}")));
        }
        if !own.ends_by(Instant::now() + limit) {
            slot.give_up();
            return Ok(None);
        }
        let outcome = held(&outcome).take();
        outcome.transpose()
    }

    /// Who vouches for some bytes.
    pub(super) fn proof_of(&self, bytes: &[u8]) -> Arc<Proof> {
        self.place(sha256(bytes)).proof_of(bytes)
    }

    /// Who vouches for a plugin, by its digest: known for as long as it is used.
    pub(super) fn proof(&self, sha256: &str) -> Option<Arc<Proof>> {
        let compiled = held(&self.compiled);
        let known = compiled.iter().find(|known| *known.sha256 == *sha256)?;
        known.place.proof.get().map(Arc::clone)
    }

    /// Where the plugins of a digest are.
    fn place(&self, sha256: Arc<str>) -> Arc<CompiledPlugins> {
        let mut compiled = held(&self.compiled);
        let known = compiled.iter().position(|known| known.sha256 == sha256);
        let known = known.map(|place| compiled.remove(place));
        let place = known.map_or_else(Arc::default, |known| known.place);
        // Before the new one is in: it is used.
        let unused = compiled.iter().filter(|known| !known.is_used()).count();
        let mut excess = unused.saturating_sub(UNUSED_MAX);
        compiled.retain(|known| {
            let is_kept = excess == 0 || known.is_used();
            excess -= usize::from(!is_kept);
            is_kept
        });
        compiled.push(Compiled {
            sha256,
            place: Arc::clone(&place),
        });
        place
    }
}

/// Compiles on some threads, all of low priority and its own: what hangs there takes none from
/// another compilation.
fn compile(
    engine: &Engine,
    load: &CompileFn,
    name: &str,
    bytes: &[u8],
) -> Result<Plugin, LoadError> {
    // Of this thread alone, and of those that it begins. Where it can't be had, it is equal.
    let _ = rustix::process::nice(NICE);
    let before = engine.cache_hits();
    let threads = rayon::ThreadPoolBuilder::new()
        .num_threads(cores().min(THREADS_MAX))
        .thread_name(|number| format!("compile-{number}"))
        .build();
    let threads = threads.map_err(|error| LoadError::Engine(error.to_string()))?;
    let plugin = threads.install(|| load(name, bytes))?;
    let from_cache = engine.cache_hits() > before;
    tracing::debug!(plugin = name, from_cache, "plugin compiled");
    Ok(plugin)
}

fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

impl Compilation {
    fn end(&self) {
        *held(&self.stage) = Stage::Ended;
        self.ended.notify_all();
    }

    /// Waits until it has ended or is given up. Says whether it has ended.
    fn is_over(&self) -> bool {
        let is_under_way = |stage: &mut Stage| *stage == Stage::UnderWay;
        let stage = self.ended.wait_while(held(&self.stage), is_under_way);
        *stage.unwrap_or_else(PoisonError::into_inner) == Stage::Ended
    }

    /// Waits for its end, until a time at which it is given up. Says whether it has ended.
    fn ends_by(&self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let is_under_way = |stage: &mut Stage| *stage == Stage::UnderWay;
        let waited = self
            .ended
            .wait_timeout_while(held(&self.stage), left, is_under_way);
        let (mut stage, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *stage == Stage::UnderWay {
            *stage = Stage::GivenUp;
            self.ended.notify_all();
        }
        *stage == Stage::Ended
    }
}

impl CompiledPlugins {
    fn proof_of(&self, bytes: &[u8]) -> Arc<Proof> {
        let proof = self.proof.get_or_init(|| Arc::new(Proof::of(bytes)));
        Arc::clone(proof)
    }
}

impl Compiled {
    /// Whether a pipeline uses it, or is to, or it is being compiled.
    fn is_used(&self) -> bool {
        let state = held(&self.place.state);
        Arc::strong_count(&self.place) > 1
            || state.under_way.is_some()
            || state.plugins.iter().any(|it| Arc::strong_count(it) > 1)
    }
}

/// A panic can't leave any of them half-changed.
pub(super) fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::super::built_in;
    use super::*;

    const LONG: Duration = Duration::from_secs(600);
    const SHORT: Duration = Duration::from_millis(20);

    fn compiler() -> Compiler {
        Compiler::new(Engine::new().unwrap(), 0)
    }

    fn bytes(name: &str) -> &'static [u8] {
        built_in(name).unwrap()
    }

    /// A compiler that hangs on plugins whose names begin with `slow`: on each until it gets a
    /// message.
    fn hanging(at_once: usize) -> (Compiler, Sender<()>) {
        let (go, told): (Sender<()>, Receiver<()>) = channel();
        let told = Mutex::new(told);
        let engine = Engine::new().unwrap();
        let own = engine.clone();
        let load = move |name: &str, bytes: &[u8]| {
            if name.starts_with("slow") {
                held(&told).recv().unwrap();
            }
            Plugin::load(&own, name, bytes)
        };
        (Compiler::of(engine, at_once, Arc::new(load)), go)
    }

    #[test]
    fn what_has_the_same_bytes_is_compiled_once_whatever_it_is_called() {
        let compiler = compiler();
        let compile = |name: &str, bytes| compiler.compile("", name, bytes, LONG).unwrap();
        let one = compile("rule", bytes("public"));
        // Another tenant's plugin of the same name takes nothing from it.
        let other = compile("rule", bytes("blocklist"));
        assert_ne!(one.sha256, other.sha256);
        assert!(Arc::ptr_eq(&one, &compile("rule", bytes("public"))));
        let same = compile("all", bytes("public"));
        assert_eq!((&*same.name, &same.sha256), ("all", &one.sha256));
        assert_eq!(held(&compiler.compiled).len(), 2);
    }

    #[test]
    fn what_is_used_is_kept_and_of_the_rest_what_was_used_last() {
        let compiler = compiler();
        let used = compiler.compile("", "public", bytes("public"), LONG);
        let used = used.unwrap();
        for number in 0..3 * UNUSED_MAX {
            compiler.place(number.to_string().into());
        }
        let compiled = held(&compiler.compiled);
        assert_eq!(compiled.len(), UNUSED_MAX + 2);
        assert!(compiled.iter().any(|known| known.sha256 == used.sha256));
        let last = (3 * UNUSED_MAX - 1).to_string();
        assert!(compiled.iter().any(|known| *known.sha256 == *last));
    }

    #[test]
    fn one_that_takes_too_long_is_given_up_and_its_place_is_another_s() {
        let (compiler, go) = hanging(1);
        let slow = |limit| compiler.compile("a", "slow", bytes("public"), limit);
        let error = slow(SHORT).err().unwrap().to_string();
        assert_eq!(
            error,
            "`slow` takes too long to compile: more than 0.02 s ([plugins] compile_timeout_ms)"
        );
        // The only place there is.
        assert!(
            compiler
                .compile("b", "quick", bytes("groups"), LONG)
                .is_ok()
        );
        // It goes on, and isn't begun again.
        assert!(slow(LONG).is_err());
        go.send(()).unwrap();
        while held(&compiler.place(sha256(bytes("public"))).state)
            .under_way
            .is_some()
        {
            thread::yield_now();
        }
        assert!(slow(SHORT).is_ok(), "what came of it late is taken");
    }

    #[test]
    fn few_go_on_that_nobody_waits_for() {
        let (compiler, go) = hanging(1);
        for (name, file) in [("slow-1", "public"), ("slow-2", "groups")] {
            assert!(compiler.compile("a", name, bytes(file), SHORT).is_err());
        }
        // One goes on in a place of its own, and the other keeps the only one that there is.
        thread::scope(|scope| {
            let waiting = scope.spawn(|| compiler.compile("b", "quick", bytes("redact"), LONG));
            while compiler.slots.waiting() == 0 {
                thread::yield_now();
            }
            // Whichever of the two it is that ends.
            go.send(()).unwrap();
            assert!(waiting.join().unwrap().is_ok());
        });
        go.send(()).unwrap();
    }

    #[test]
    fn a_panic_is_a_refusal_and_gives_its_place_back() {
        let engine = Engine::new().unwrap();
        let compiler = Compiler::of(engine, 1, Arc::new(|_, _| panic!("broken")));
        for _ in 0..3 {
            let error = compiler.compile("", "rule", b"x", LONG).err().unwrap();
            assert!(error.to_string().contains("the compiler has failed on it"));
        }
    }
}
