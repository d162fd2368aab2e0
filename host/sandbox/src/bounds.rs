//! Limits on what a component may declare, checked before it is compiled.
//!
//! Fuel and the memory limit bound what a component does while it runs. What it declares costs the
//! host as well: each memory reserves address space, and each global, function and import takes
//! room in every instance of its module. Instances are counted as they will be made: a nested
//! component counts as often as it is instantiated.
//!
//! Compiling costs time and memory, too, and nothing can limit it once it has begun. The cost grows
//! with the size of the code, except within a function, which is compiled as a whole: a single
//! function has limits of its own.

use wasmparser::{
    ComponentAlias, ComponentExternalKind as Kind, ComponentInstance, ComponentOuterAliasKind,
    Encoding, FunctionBody, Instance, Operator, Parser, Payload,
};

use crate::LoadError;
use crate::error::one_line;

/// How many core instances, memories and tables a component may have in all.
pub(crate) const INSTANCES_MAX: usize = 128;
pub(crate) const MEMORIES_MAX: usize = 16;
pub(crate) const TABLES_MAX: usize = 64;

/// How many globals, functions and imports its instances may have in all.
const GLOBALS_MAX: u64 = 65_536;
const FUNCTIONS_MAX: u64 = 262_144;
const IMPORTS_MAX: u64 = 65_536;

/// How many types, and functions of components, it may declare in all: each is compiled or
/// checked, whether or not it is instantiated.
const TYPES_MAX: u64 = 65_536;
const COMPONENT_FUNCTIONS_MAX: u64 = 16_384;

/// How many bytes the code of one function may have, and how many values the compiler may have to
/// carry between its blocks: locals times blocks and branches. A function at the limit takes the
/// compiler some seconds and 200 MB. The largest functions of the interpreters that plugins in
/// TypeScript and Python contain reach a third of either limit.
const CODE_BYTES_MAX: usize = 1 << 20;
const CARRIED_MAX: u64 = 1 << 21;

/// How many bytes the host needs for each of these in an instance, at most.
const INSTANCE_BYTES: u64 = 1_024;
const GLOBAL_BYTES: u64 = 16;
const FUNCTION_BYTES: u64 = 40;
const IMPORT_BYTES: u64 = 40;

/// How deep components may be nested in a component.
const DEPTH_MAX: usize = 16;

/// The number of items of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    instances: u64,
    memories: u64,
    tables: u64,
    globals: u64,
    functions: u64,
    imports: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        // Nested components can double the numbers at each level: the sum could overflow.
        for (mine, theirs) in [
            (&mut self.instances, other.instances),
            (&mut self.memories, other.memories),
            (&mut self.tables, other.tables),
            (&mut self.globals, other.globals),
            (&mut self.functions, other.functions),
            (&mut self.imports, other.imports),
        ] {
            *mine = mine.saturating_add(theirs);
        }
    }

    /// Describes the first number that exceeds its limit, if any.
    fn excess(self) -> Option<String> {
        let bounds = [
            ("core instances", self.instances, INSTANCES_MAX as u64),
            ("memories", self.memories, MEMORIES_MAX as u64),
            ("tables", self.tables, TABLES_MAX as u64),
            ("globals", self.globals, GLOBALS_MAX),
            ("functions", self.functions, FUNCTIONS_MAX),
            ("imports of core modules", self.imports, IMPORTS_MAX),
        ];
        let passed = bounds.into_iter().find(|(_, has, max)| has > max);
        passed.map(|(what, has, max)| format!("it has {has} {what}, and a plugin may have {max}"))
    }

    /// How many bytes the host needs for the instances, at most, without their memories and tables.
    fn bytes(self) -> u64 {
        let bytes = [
            (self.instances, INSTANCE_BYTES),
            (self.globals, GLOBAL_BYTES),
            (self.functions, FUNCTION_BYTES),
            (self.imports, IMPORT_BYTES),
        ];
        let bytes = bytes
            .into_iter()
            .map(|(count, each)| count.saturating_mul(each));
        bytes.fold(0, u64::saturating_add)
    }
}

/// A module or component while it is read.
#[derive(Default)]
struct Level {
    is_module: bool,
    counts: Counts,
    /// The counts of one instance of each module and component, by its index at this level. `None`
    /// for one that is only given when it is instantiated.
    modules: Vec<Option<Counts>>,
    components: Vec<Option<Counts>>,
}

/// Checks a plugin's file. Returns how many bytes the host needs for its instances, without their
/// memories and tables.
pub(crate) fn check(plugin: &str, bytes: &[u8]) -> Result<usize, LoadError> {
    let too_large = |what: String| LoadError::TooLarge {
        plugin: plugin.into(),
        what,
    };
    let counts = count(bytes).map_err(too_large)?;
    match counts.excess() {
        Some(what) => Err(too_large(what)),
        None => Ok(usize::try_from(counts.bytes()).unwrap_or(usize::MAX)),
    }
}

fn count(bytes: &[u8]) -> Result<Counts, String> {
    let garbage = |error| format!("it can't be read: {}", one_line(error));
    let mut levels: Vec<Level> = Vec::new();
    // All functions are compiled, whether or not their module is ever instantiated.
    let mut compiled = Counts::default();
    let (mut types, mut component_functions) = (0, 0);
    for payload in Parser::new(0).parse_all(bytes) {
        let payload = payload.map_err(garbage)?;
        if let Payload::Version { encoding, .. } = payload {
            if levels.len() > DEPTH_MAX {
                return Err(format!(
                    "its components are nested more than {DEPTH_MAX} deep"
                ));
            }
            levels.push(Level {
                is_module: encoding == Encoding::Module,
                ..Level::default()
            });
            continue;
        }
        let Some((level, above)) = levels.split_last_mut() else {
            continue;
        };
        match payload {
            Payload::TypeSection(section) => types += u64::from(section.count()),
            Payload::CoreTypeSection(section) => types += u64::from(section.count()),
            Payload::ComponentTypeSection(section) => types += u64::from(section.count()),
            Payload::ComponentCanonicalSection(section) => {
                component_functions += u64::from(section.count());
            }
            Payload::CodeSectionEntry(body) => function(&body).map_err(garbage)?.check()?,
            Payload::MemorySection(section) => level.counts.memories += u64::from(section.count()),
            Payload::TableSection(section) => level.counts.tables += u64::from(section.count()),
            Payload::GlobalSection(section) => level.counts.globals += u64::from(section.count()),
            Payload::FunctionSection(section) => {
                level.counts.functions += u64::from(section.count());
                compiled.functions += u64::from(section.count());
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    import.map_err(garbage)?;
                    level.counts.imports += 1;
                }
            }
            Payload::InstanceSection(section) => {
                for instance in section {
                    if let Instance::Instantiate { module_index, .. } = instance.map_err(garbage)? {
                        let mut counts = known(&level.modules, module_index)?;
                        counts.instances = 1;
                        level.counts.add(counts);
                    }
                }
            }
            Payload::ComponentInstanceSection(section) => {
                for instance in section {
                    if let ComponentInstance::Instantiate {
                        component_index, ..
                    } = instance.map_err(garbage)?
                    {
                        let counts = known(&level.components, component_index)?;
                        level.counts.add(counts);
                    }
                }
            }
            Payload::ComponentAliasSection(section) => {
                for alias in section {
                    match alias.map_err(garbage)? {
                        ComponentAlias::InstanceExport { kind, .. } => level.name(kind, None),
                        ComponentAlias::Outer { kind, count, index } => {
                            level.name_outer(above, kind, count, index);
                        }
                        ComponentAlias::CoreInstanceExport { .. } => {}
                    }
                }
            }
            Payload::ComponentImportSection(section) => {
                for import in section {
                    level.name(import.map_err(garbage)?.ty.kind(), None);
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    let export = export.map_err(garbage)?;
                    let counts = level.named(export.kind, export.index);
                    level.name(export.kind, counts);
                }
            }
            Payload::End(_) => {
                let Some(ended) = levels.pop() else {
                    continue;
                };
                match levels.last_mut() {
                    Some(around) if ended.is_module => around.modules.push(Some(ended.counts)),
                    Some(around) => around.components.push(Some(ended.counts)),
                    None => {
                        let mut counts = ended.counts;
                        counts.functions = counts.functions.max(compiled.functions);
                        return Ok(counts);
                    }
                }
            }
            _ => {}
        }
        // Checked after each section, so that the rest of a file that is too large isn't read.
        if let Some(excess) = levels.last().and_then(|level| level.counts.excess()) {
            return Err(excess);
        }
        for (what, has, max) in [
            ("types", types, TYPES_MAX),
            (
                "functions of components",
                component_functions,
                COMPONENT_FUNCTIONS_MAX,
            ),
        ] {
            if has > max {
                return Err(format!("it has {has} {what}, and a plugin may have {max}"));
            }
        }
    }
    Err("it has no end".into())
}

/// What determines the cost of compiling a function.
struct Function {
    bytes: usize,
    locals: u64,
    blocks: u64,
}

/// Measures the code of a function. Blocks are only counted if the limit can be exceeded at all.
fn function(body: &FunctionBody<'_>) -> wasmparser::Result<Function> {
    let bytes = body.as_bytes().len();
    let mut function = Function {
        bytes,
        locals: 0,
        blocks: 0,
    };
    if bytes > CODE_BYTES_MAX {
        return Ok(function);
    }
    for locals in body.get_locals_reader()? {
        function.locals += u64::from(locals?.0);
    }
    // A function has fewer blocks than bytes, so most functions can't exceed the limit.
    if function.locals.saturating_mul(bytes as u64) <= CARRIED_MAX {
        return Ok(function);
    }
    let mut code = body.get_operators_reader()?;
    while !code.eof() {
        function.blocks += match code.read()? {
            Operator::Block { .. }
            | Operator::Loop { .. }
            | Operator::If { .. }
            | Operator::Else
            | Operator::Br { .. }
            | Operator::BrIf { .. } => 1,
            Operator::BrTable { targets } => u64::from(targets.len()) + 1,
            _ => 0,
        };
    }
    Ok(function)
}

impl Function {
    fn check(&self) -> Result<(), String> {
        let Self {
            bytes,
            locals,
            blocks,
        } = self;
        if *bytes > CODE_BYTES_MAX {
            return Err(format!(
                "it has a function of {bytes} bytes, and a function may have {CODE_BYTES_MAX}"
            ));
        }
        if locals.saturating_mul(*blocks) > CARRIED_MAX {
            return Err(format!(
                "it has a function of {locals} locals and {blocks} blocks and branches, which \
                 can't be compiled in reasonable time"
            ));
        }
        Ok(())
    }
}

impl Level {
    /// The counts of one instance of the module or component with this index.
    fn named(&self, kind: Kind, index: u32) -> Option<Counts> {
        let named = match kind {
            Kind::Module => &self.modules,
            Kind::Component => &self.components,
            _ => return None,
        };
        named.get(index as usize).copied().flatten()
    }

    /// Gives a module or component the next index at this level.
    fn name(&mut self, kind: Kind, counts: Option<Counts>) {
        match kind {
            Kind::Module => self.modules.push(counts),
            Kind::Component => self.components.push(counts),
            _ => {}
        }
    }

    /// Gives a module or component of the level `out` levels further out the next index at this
    /// level.
    fn name_outer(&mut self, above: &[Self], kind: ComponentOuterAliasKind, out: u32, index: u32) {
        let kind = match kind {
            ComponentOuterAliasKind::CoreModule => Kind::Module,
            ComponentOuterAliasKind::Component => Kind::Component,
            ComponentOuterAliasKind::CoreType | ComponentOuterAliasKind::Type => return,
        };
        let counts = match (out as usize).checked_sub(1) {
            None => self.named(kind, index),
            Some(further) => {
                let outer = above.iter().rev().nth(further);
                outer.and_then(|outer| outer.named(kind, index))
            }
        };
        self.name(kind, counts);
    }
}

/// The counts of one instance of an instantiated module or component. Fails if they are unknown.
fn known(named: &[Option<Counts>], index: u32) -> Result<Counts, String> {
    named.get(index as usize).copied().flatten().ok_or_else(|| {
        "it instantiates a module or component that it is given, and whose size can't be told"
            .into()
    })
}

#[cfg(test)]
mod tests {
    fn check(text: &str) -> Result<usize, String> {
        let checked = super::check("rule", &wat::parse_str(text).unwrap());
        checked.map_err(|error| error.to_string())
    }

    /// A component with one module of these items, instantiated `times` times.
    fn instances(items: &str, times: usize) -> String {
        let instances = "(core instance (instantiate $m))".repeat(times);
        format!("(component (core module $m {items}) {instances})")
    }

    fn refusal(text: &str) -> String {
        let refusal = check(text).unwrap_err();
        let what = refusal.strip_prefix("`rule` is too large: ");
        what.unwrap_or_else(|| panic!("{refusal}")).to_owned()
    }

    #[test]
    fn what_is_within_the_bounds_is_taken_and_counted() {
        assert_eq!(check("(component)"), Ok(0));
        assert_eq!(check(&instances("", 128)), Ok(128 * 1_024));
        assert_eq!(
            check(&instances(
                "(memory 0) (global i32 (i32.const 0)) (func)",
                16
            )),
            Ok(16 * (1_024 + 16 + 40))
        );
        // What is never instantiated takes no room.
        let unused = format!("(component (core module {}))", "(memory 0)".repeat(99));
        assert!(check(&unused).is_err(), "no module may have so many");
        let unused = format!("(component {})", "(core module (memory 0))".repeat(99));
        assert_eq!(check(&unused), Ok(0));
    }

    #[test]
    fn each_kind_has_its_bound() {
        for (items, times, words) in [
            ("", 129, "129 core instances, and a plugin may have 128"),
            ("(memory 0)", 17, "17 memories, and a plugin may have 16"),
            (
                "(table 0 funcref)",
                65,
                "65 tables, and a plugin may have 64",
            ),
        ] {
            assert_eq!(refusal(&instances(items, times)), format!("it has {words}"));
        }
        let globals = "(global v128 (v128.const i64x2 0 0))".repeat(1_000);
        assert!(refusal(&instances(&globals, 66)).contains("66000 globals"));
        let functions = "(func)".repeat(4_000);
        assert!(refusal(&instances(&functions, 70)).contains("functions, and a plugin may have"));
    }

    #[test]
    fn what_is_compiled_is_bounded_whether_or_not_it_is_instantiated() {
        let module = |items: &str| format!("(component (core module {items}))");
        let types = "(type (func))".repeat(65_537);
        assert!(refusal(&module(&types)).contains("65537 types, and a plugin may have 65536"));
        let code = |locals: usize, blocks: usize, end: usize| {
            let (locals, blocks) = ("i32 ".repeat(locals), "(block)".repeat(blocks));
            let rest = "nop ".repeat(end);
            module(&format!("(func (local {locals}) {blocks} {rest})"))
        };
        assert!(check(&code(1_000, 1_000, 100_000)).is_ok());
        assert!(refusal(&code(0, 0, 1 << 20)).contains("and a function may have 1048576"));
        assert!(refusal(&code(2_000, 1_100, 0)).contains("2000 locals and 1100 blocks"));
        let canon = "(core func (canon lower (func $f)))".repeat(16_385);
        let canon = format!("(component (import \"f\" (func $f)) {canon})");
        assert!(refusal(&canon).contains("16385 functions of components"));
    }

    #[test]
    fn eight_thousand_empty_memories_are_refused() {
        let memories = "(memory 0)".repeat(90);
        assert!(refusal(&instances(&memories, 99)).contains("memories"));
    }

    #[test]
    fn components_count_as_often_as_they_are_instantiated() {
        // 2^12 instances, declared in a few lines.
        let mut text = instances("(memory 0)", 1).replace("(component", "(component $c0");
        for level in 1..=12 {
            let inner = level - 1;
            text = format!(
                "(component $c{level} {text}
                  (instance (instantiate $c{inner})) (instance (instantiate $c{inner})))"
            );
        }
        assert!(refusal(&text).contains("memories"));
        let once = format!(
            "(component {} (instance (instantiate $c0)))",
            instances("(memory 0)", 3).replace("(component", "(component $c0")
        );
        assert_eq!(check(&once), Ok(3 * 1_024));
    }

    #[test]
    fn aliases_and_exports_are_names_of_the_same() {
        let outer = "(component
            (core module $m (memory 0) (memory 0) (memory 0))
            (component $c (alias outer 1 $m (core module $n)) (core instance (instantiate $n)))
            (export $d \"c\" (component $c))
            (instance (instantiate $d)) (instance (instantiate $d)) (instance (instantiate $d))
            (instance (instantiate $d)) (instance (instantiate $d)) (instance (instantiate $d)))";
        assert!(refusal(outer).contains("18 memories"));
    }

    #[test]
    fn what_can_not_be_counted_is_refused() {
        let given = "(component
            (import \"m\" (core module $m)) (core instance (instantiate $m)))";
        assert!(refusal(given).contains("is given"));
        let given = "(component
            (component $c (import \"c\" (component $d)) (instance (instantiate $d)))
            (component $e)
            (instance (instantiate $c (with \"c\" (component $e)))))";
        assert!(refusal(given).contains("is given"));
        let deep = format!("{}{}", "(component ".repeat(20), ")".repeat(20));
        assert!(refusal(&deep).contains("nested"));
    }
}
