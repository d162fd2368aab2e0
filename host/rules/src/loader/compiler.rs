//! Compiles plugins. Compiled code is shared by the digest of the plugin's bytes, whatever its
//! name.
//!
//! A plugin can be made so that compiling it takes very long, and a compiler can't be
//! interrupted. So each compilation has a thread of its own, of low priority, and a time limit:
//! after that, nobody waits for it any more, and its slot is given to another one. Only a few
//! threads may go on like this. If there are more, they keep their slots until they end.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, available_parallelism};
use std::time::{Duration, Instant};

use presence_sandbox::{Engine, LoadError, Plugin, sha256};

use super::compile_slots::CompileSlots;
use super::trust::Provenance;

/// How many compiled plugins are kept that no pipeline uses. They save work when a pipeline that
/// was refused is loaded again.
const UNUSED_MAX: usize = 8;

/// How many threads compile one plugin. Each may need hundreds of megabytes for one function.
const THREADS_MAX: usize = 4;

/// How much the priority of the compiling threads is lowered.
const NICE: i32 = 10;

/// Compiles a component's bytes into a plugin of a given name.
type CompileFn = dyn Fn(&str, &[u8]) -> Result<Plugin, LoadError> + Send + Sync;

/// Compiles plugins, each digest once.
pub(super) struct Compiler {
    engine: Engine,
    load: Arc<CompileFn>,
    /// In the order of their last use: the newest is at the end.
    compiled: Mutex<Vec<Compiled>>,
    slots: Arc<CompileSlots>,
}

/// A digest, and the plugins compiled from the bytes of that digest.
struct Compiled {
    sha256: Arc<str>,
    entry: Arc<CompiledPlugins>,
}

/// The plugins compiled from one file's bytes, and who vouches for the bytes.
#[derive(Default)]
struct CompiledPlugins {
    state: Mutex<State>,
    /// Who vouches for the bytes. It is read once.
    provenance: OnceLock<Arc<Provenance>>,
}

/// The plugin under each of its names, and the compilation that is under way.
#[derive(Default)]
struct State {
    plugins: Vec<Arc<Plugin>>,
    under_way: Option<Arc<Compilation>>,
}

/// The progress of a compilation, shared by all who wait for it.
#[derive(Default)]
struct Compilation {
    status: Mutex<CompilationStatus>,
    ended: Condvar,
}

#[derive(Default, PartialEq)]
enum CompilationStatus {
    #[default]
    UnderWay,
    /// It takes too long: nobody waits for it any more.
    GivenUp,
    Ended,
}

impl Compiler {
    /// Compiles at most `at_once` plugins at a time. 0 means half the number of cores, and at
    /// least two.
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

    /// How many files of cached compiled code were refused, since their content had changed.
    pub(super) fn cache_refusals(&self) -> u64 {
        self.engine.cache_refusals()
    }

    /// Compiles a plugin for an owner. If the same bytes have been compiled, that result is used;
    /// if they are being compiled, it is waited for. `limit` counts from when compiling begins.
    ///
    /// # Errors
    /// If the bytes are no plugin, or compiling takes too long.
    pub(super) fn compile(
        &self,
        owner: &str,
        name: &str,
        bytes: &[u8],
        limit: Duration,
    ) -> Result<Arc<Plugin>, LoadError> {
        let entry = self.entry(sha256(bytes));
        entry.provenance_of(bytes);
        let too_slow = || LoadError::TooSlow {
            plugin: name.into(),
            seconds: limit.as_secs_f32(),
        };
        loop {
            let mut state = lock(&entry.state);
            if let Some(plugin) = state.plugins.iter().find(|it| *it.name == *name) {
                return Ok(Arc::clone(plugin));
            }
            if let Some(same) = state.plugins.first() {
                let plugin = Arc::new(same.with_name(name));
                state.plugins.push(Arc::clone(&plugin));
                return Ok(plugin);
            }
            let Some(other) = state.under_way.clone() else {
                let own = Arc::<Compilation>::default();
                state.under_way = Some(Arc::clone(&own));
                drop(state);
                return self
                    .begin(owner, name, bytes, limit, &entry, &own)?
                    .ok_or_else(too_slow);
            };
            drop(state);
            if !other.wait_until_done() {
                return Err(too_slow());
            }
        }
    }

    /// Compiles on a thread of its own. `None`: it takes too long, and is given up.
    fn begin(
        &self,
        owner: &str,
        name: &str,
        bytes: &[u8],
        limit: Duration,
        entry: &Arc<CompiledPlugins>,
        own: &Arc<Compilation>,
    ) -> Result<Option<Arc<Plugin>>, LoadError> {
        let slot = self.slots.take(owner);
        let outcome = Arc::<Mutex<Option<Result<Arc<Plugin>, LoadError>>>>::default();
        let work = {
            let (load, engine) = (Arc::clone(&self.load), self.engine.clone());
            let (name, bytes) = (name.to_owned(), bytes.to_vec());
            let (entry, own, outcome) = (Arc::clone(entry), Arc::clone(own), Arc::clone(&outcome));
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
                let mut state = lock(&entry.state);
                state.under_way = None;
                let compiled = compiled.map(Arc::new);
                // Kept even if nobody waits any more: a later request finds it.
                state.plugins.extend(compiled.as_ref().ok().cloned());
                *lock(&outcome) = Some(compiled);
                drop(state);
                slot.end();
                own.end();
            }
        };
        let began = thread::Builder::new().name("compile".into()).spawn(work);
        if let Err(error) = began {
            lock(&entry.state).under_way = None;
            slot.end();
            own.end();
            return Err(LoadError::Engine(format!("no thread can be had: {error}")));
        }
        if !own.wait_with_deadline(Instant::now() + limit) {
            slot.give_up();
            return Ok(None);
        }
        let outcome = lock(&outcome).take();
        outcome.transpose()
    }

    /// Who vouches for a plugin with these bytes.
    pub(super) fn provenance_of(&self, bytes: &[u8]) -> Arc<Provenance> {
        self.entry(sha256(bytes)).provenance_of(bytes)
    }

    /// Who vouches for the plugin of a digest. `None`: the plugin is no longer kept, which can only
    /// happen while nothing uses it.
    pub(super) fn provenance(&self, sha256: &str) -> Option<Arc<Provenance>> {
        let compiled = lock(&self.compiled);
        let known = compiled.iter().find(|known| *known.sha256 == *sha256)?;
        known.entry.provenance.get().map(Arc::clone)
    }

    /// The entry of a digest, moved to the end of the list, or a new one. The oldest unused entries
    /// beyond `UNUSED_MAX` are removed.
    fn entry(&self, sha256: Arc<str>) -> Arc<CompiledPlugins> {
        let mut compiled = lock(&self.compiled);
        let known = compiled.iter().position(|known| known.sha256 == sha256);
        let known = known.map(|index| compiled.remove(index));
        let entry = known.map_or_else(Arc::default, |known| known.entry);
        // The new entry is in use, so it is added after this.
        let unused = compiled.iter().filter(|known| !known.is_used()).count();
        let mut excess = unused.saturating_sub(UNUSED_MAX);
        compiled.retain(|known| {
            let is_kept = excess == 0 || known.is_used();
            excess -= usize::from(!is_kept);
            is_kept
        });
        compiled.push(Compiled {
            sha256,
            entry: Arc::clone(&entry),
        });
        entry
    }
}

/// Compiles on a thread pool of its own, with low priority. A compilation that hangs there takes
/// no thread from another one.
fn compile(
    engine: &Engine,
    load: &CompileFn,
    name: &str,
    bytes: &[u8],
) -> Result<Plugin, LoadError> {
    // This concerns only this thread and those that it starts. If the system refuses, they keep
    // the normal priority.
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
        *lock(&self.status) = CompilationStatus::Ended;
        self.ended.notify_all();
    }

    /// Waits until the compilation has ended or is given up. Returns whether it has ended.
    fn wait_until_done(&self) -> bool {
        let is_under_way = |status: &mut CompilationStatus| *status == CompilationStatus::UnderWay;
        let status = self.ended.wait_while(lock(&self.status), is_under_way);
        *status.unwrap_or_else(PoisonError::into_inner) == CompilationStatus::Ended
    }

    /// Waits for the end of the compilation, and gives it up at a deadline. Returns whether it has
    /// ended.
    fn wait_with_deadline(&self, until: Instant) -> bool {
        let left = until.saturating_duration_since(Instant::now());
        let is_under_way = |status: &mut CompilationStatus| *status == CompilationStatus::UnderWay;
        let waited = self
            .ended
            .wait_timeout_while(lock(&self.status), left, is_under_way);
        let (mut status, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *status == CompilationStatus::UnderWay {
            *status = CompilationStatus::GivenUp;
            self.ended.notify_all();
        }
        *status == CompilationStatus::Ended
    }
}

impl CompiledPlugins {
    fn provenance_of(&self, bytes: &[u8]) -> Arc<Provenance> {
        let provenance = self
            .provenance
            .get_or_init(|| Arc::new(Provenance::of(bytes)));
        Arc::clone(provenance)
    }
}

impl Compiled {
    /// Whether a pipeline uses or is about to use one of the plugins, or one is being compiled.
    fn is_used(&self) -> bool {
        let state = lock(&self.entry.state);
        Arc::strong_count(&self.entry) > 1
            || state.under_way.is_some()
            || state.plugins.iter().any(|it| Arc::strong_count(it) > 1)
    }
}

/// Locks a mutex, even if it is poisoned: a panic can't leave any of the data half-changed.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
                lock(&told).recv().unwrap();
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
        // Another plugin of the same name, such as another tenant's, doesn't replace it.
        let other = compile("rule", bytes("blocklist"));
        assert_ne!(one.sha256, other.sha256);
        assert!(Arc::ptr_eq(&one, &compile("rule", bytes("public"))));
        let same = compile("all", bytes("public"));
        assert_eq!((&*same.name, &same.sha256), ("all", &one.sha256));
        assert_eq!(lock(&compiler.compiled).len(), 2);
    }

    #[test]
    fn what_is_used_is_kept_and_of_the_rest_what_was_used_last() {
        let compiler = compiler();
        let used = compiler.compile("", "public", bytes("public"), LONG);
        let used = used.unwrap();
        for number in 0..3 * UNUSED_MAX {
            compiler.entry(number.to_string().into());
        }
        let compiled = lock(&compiler.compiled);
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
        // This takes the only slot, which the compilation that was given up no longer has.
        assert!(
            compiler
                .compile("b", "quick", bytes("groups"), LONG)
                .is_ok()
        );
        // The slow compilation still goes on, and isn't begun again.
        assert!(slow(LONG).is_err());
        go.send(()).unwrap();
        while lock(&compiler.entry(sha256(bytes("public"))).state)
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
        // One compilation goes on without a slot, and the other one keeps the only slot.
        thread::scope(|scope| {
            let waiting = scope.spawn(|| compiler.compile("b", "quick", bytes("redact"), LONG));
            while compiler.slots.waiting() == 0 {
                thread::yield_now();
            }
            // Either of the two may end by this.
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
