//! Compiling plugins. Compiled code is shared by the digest of the plugin's bytes, whatever its
//! name, and the number of compilations at a time is limited.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

use presence_sandbox::{Engine, LoadError, Plugin, sha256};

/// How many compiled plugins are kept that no pipeline uses: an attempt to load a pipeline
/// that was refused is made again.
const UNUSED_MAX: usize = 8;

/// Compiles plugins, each digest once.
pub(super) struct Compiler {
    engine: Engine,
    compiled: Mutex<Vec<Compiled>>,
    room: Room,
}

/// What was compiled of one file's bytes, the last used at the end.
struct Compiled {
    sha256: Arc<str>,
    plugins: Place,
}

/// The plugin under each of its names. Held while it is compiled, so that others who want
/// it wait.
type Place = Arc<Mutex<Vec<Arc<Plugin>>>>;

/// How many may compile at a time.
struct Room {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Compiler {
    pub(super) fn new(engine: Engine) -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self {
            engine,
            compiled: Mutex::default(),
            room: Room {
                free: Mutex::new((cores / 2).max(2)),
                freed: Condvar::new(),
            },
        }
    }

    /// How many compiled plugins were refused, since they weren't what was kept on disk.
    pub(super) fn cache_refusals(&self) -> u64 {
        self.engine.cache_refusals()
    }

    /// Compiles a plugin, unless its bytes have been, or are being, compiled.
    ///
    /// # Errors
    /// If it is no plugin.
    pub(super) fn compile(&self, name: &str, bytes: &[u8]) -> Result<Arc<Plugin>, LoadError> {
        let place = self.place(sha256(bytes));
        let mut plugins = held(&place);
        if let Some(plugin) = plugins.iter().find(|plugin| *plugin.name == *name) {
            return Ok(Arc::clone(plugin));
        }
        let plugin = match plugins.first() {
            Some(same) => same.renamed(name),
            None => self.room.within(|| {
                let before = self.engine.cache_hits();
                let plugin = Plugin::load(&self.engine, name, bytes)?;
                let from_cache = self.engine.cache_hits() > before;
                tracing::debug!(plugin = name, from_cache, "plugin compiled");
                Ok(plugin)
            })?,
        };
        let plugin = Arc::new(plugin);
        plugins.push(Arc::clone(&plugin));
        Ok(plugin)
    }

    /// Where the plugins of a digest are. One that is being compiled keeps nobody from
    /// another.
    fn place(&self, sha256: Arc<str>) -> Place {
        let mut compiled = held(&self.compiled);
        let known = compiled.iter().position(|known| known.sha256 == sha256);
        let known = known.map(|place| compiled.remove(place));
        let plugins = known.map_or_else(Place::default, |known| known.plugins);
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
            plugins: Arc::clone(&plugins),
        });
        plugins
    }
}

impl Compiled {
    /// Whether a pipeline uses it, or is to.
    fn is_used(&self) -> bool {
        let Ok(plugins) = self.plugins.try_lock() else {
            return true;
        };
        Arc::strong_count(&self.plugins) > 1
            || plugins.iter().any(|plugin| Arc::strong_count(plugin) > 1)
    }
}

impl Room {
    /// Works when there is room for it.
    fn within<T>(&self, work: impl FnOnce() -> T) -> T {
        let waited = self.freed.wait_while(held(&self.free), |free| *free == 0);
        *waited.unwrap_or_else(PoisonError::into_inner) -= 1;
        let _seat = Seat(self);
        work()
    }
}

/// One that compiles, panic or not.
struct Seat<'a>(&'a Room);

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        *held(&self.0.free) += 1;
        self.0.freed.notify_one();
    }
}

/// A panic can't leave any of them half-changed.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::built_in;
    use super::*;

    fn compiler() -> Compiler {
        Compiler::new(Engine::new().unwrap())
    }

    #[test]
    fn what_has_the_same_bytes_is_compiled_once_whatever_it_is_called() {
        let compiler = compiler();
        let (public, blocklist) = (built_in("public").unwrap(), built_in("blocklist").unwrap());
        let one = compiler.compile("rule", public).unwrap();
        // Another tenant's plugin of the same name takes nothing from it.
        let other = compiler.compile("rule", blocklist).unwrap();
        assert_ne!(one.sha256, other.sha256);
        assert!(Arc::ptr_eq(
            &one,
            &compiler.compile("rule", public).unwrap()
        ));
        let same = compiler.compile("all", public).unwrap();
        assert_eq!((&*same.name, &same.sha256), ("all", &one.sha256));
        assert_eq!(held(&compiler.compiled).len(), 2);
    }

    #[test]
    fn what_is_used_is_kept_and_of_the_rest_what_was_used_last() {
        let compiler = compiler();
        let used = compiler
            .compile("public", built_in("public").unwrap())
            .unwrap();
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
    fn so_many_compile_at_a_time_and_a_panic_gives_its_place_back() {
        let room = Room {
            free: Mutex::new(1),
            freed: Condvar::new(),
        };
        let broken = std::panic::AssertUnwindSafe(|| room.within(|| "x".parse::<u8>().unwrap()));
        assert!(std::panic::catch_unwind(broken).is_err());
        let at_once = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    room.within(|| {
                        use std::sync::atomic::Ordering::SeqCst;
                        assert_eq!(at_once.fetch_add(1, SeqCst), 0);
                        std::thread::yield_now();
                        at_once.fetch_sub(1, SeqCst);
                    });
                });
            }
        });
    }
}
