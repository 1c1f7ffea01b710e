//! The structure of the code, held by a test: which file may know which.
//!
//! Rules:
//! - no circles between the files of a crate. A file may use what the `mod.rs` above it defines
//!   (the trunk of its folder) without counting as one with it;
//! - crates know each other in one direction only, as [`FLOORS`] has them;
//! - Kafka's client library is known to `kafkabase` alone, the database driver to `warehouse` and
//!   to the sources that read PostgreSQL ([`KNOWN_TO`]). Tools for measuring and testing drive real
//!   clients.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Path, PathBuf},
};

use syn::{
    Attribute, Item, ItemMod, UseTree, Visibility,
    visit::{self, Visit},
};

/// The crates of the product from the ground up: each may know those below it.
const FLOORS: [&[&str]; 4] =
    [&["appbase"], &["eventslog", "kafkabase", "warehouse"], &["loader"], &["bulkerapp"]];
/// Crates for measuring and testing, which may know everything.
const TOOLS: [&str; 2] = ["bench", "testkit"];
/// Libraries with the crates, or folders of crates, that may use them.
const KNOWN_TO: [(&str, &[&str]); 2] =
    [("rdkafka", &["kafkabase"]), ("sqlx", &["warehouse", "appbase/src/repository"])];

/// A file's module path in its crate; empty for the root.
type Module = Vec<String>;

/// A path of the code, from the crate's root, or from the name of another crate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct CodePath {
    /// Empty: the file's own crate.
    krate: String,
    segments: Vec<String>,
}

#[derive(Debug)]
struct SourceFile {
    path: PathBuf,
    paths: Vec<CodePath>,
    /// Names that it hands on, with where they come from.
    handed_on: HashMap<String, CodePath>,
}

/// One crate's files by their modules.
struct Sources {
    name: String,
    files: BTreeMap<Module, SourceFile>,
}

fn crates_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("crates/testkit").to_owned()
}

impl Sources {
    fn read(name: &str) -> Sources {
        let root = crates_folder().join(name).join("src");
        let mut sources = Sources { name: name.to_owned(), files: BTreeMap::new() };
        let mut of_tests = BTreeSet::new();
        for path in rust_files(&root) {
            let module = module_of(&path, &root);
            let text = fs::read_to_string(&path).expect("a source file is readable");
            let parsed = syn::parse_file(&text).expect("a source file that compiles");
            let mut reader = Reader { module: module.clone(), ..Reader::default() };
            reader.visit_file(&parsed);
            of_tests.extend(reader.test_modules);
            let (paths, handed_on) = (reader.paths, reader.handed_on);
            sources.files.insert(module, SourceFile { path, paths, handed_on });
        }
        sources.files.retain(|module, _| !of_tests.iter().any(|test| module.starts_with(test)));
        sources
    }

    /// The file that a path of this crate leads to, through what `mod.rs` files hand on.
    fn resolve(&self, path: &CodePath) -> Option<&Module> {
        let mut path = path.clone();
        for _ in 0..8 {
            if !path.krate.is_empty() {
                return None;
            }
            let depth = (0..=path.segments.len())
                .rev()
                .find(|depth| self.files.contains_key(&path.segments[..*depth]))?;
            let (module, file) = self.files.get_key_value(&path.segments[..depth])?;
            let Some(handed_on) =
                path.segments.get(depth).and_then(|name| file.handed_on.get(name))
            else {
                return Some(module);
            };
            path = handed_on.clone();
        }
        None
    }

    /// Which file uses which, without the trunks above.
    fn edges(&self) -> BTreeMap<&Module, BTreeSet<&Module>> {
        let mut edges = BTreeMap::new();
        for (module, file) in &self.files {
            let used = file.paths.iter().filter_map(|path| self.resolve(path));
            let used: BTreeSet<_> = used.filter(|used| !module.starts_with(used)).collect();
            edges.insert(module, used);
        }
        edges
    }
}

/// What a file uses and hands on.
#[derive(Default)]
struct Reader {
    module: Module,
    paths: Vec<CodePath>,
    handed_on: HashMap<String, CodePath>,
    test_modules: Vec<Module>,
}

impl Reader {
    fn absolute(&self, segments: &[String]) -> Option<CodePath> {
        let (first, rest) = segments.split_first()?;
        let inside = |mut base: Module, rest: &[String]| {
            let supers = rest.iter().take_while(|segment| *segment == "super").count();
            base.truncate(base.len().saturating_sub(supers));
            base.extend_from_slice(&rest[supers..]);
            Some(CodePath { krate: String::new(), segments: base })
        };
        match first.as_str() {
            "crate" => inside(Module::new(), rest),
            "self" => inside(self.module.clone(), rest),
            "super" => inside(self.module.clone(), segments),
            // another crate, a child of this module, or a name that a `use` explains
            name => Some(CodePath { krate: name.to_owned(), segments: rest.to_vec() }),
        }
    }

    fn use_tree(&mut self, tree: &UseTree, before: &mut Vec<String>, is_handed_on: bool) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.use_tree(&path.tree, before, is_handed_on);
                before.pop();
            }
            UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.use_tree(tree, before, is_handed_on));
            }
            UseTree::Name(name) => self.used(before, &name.ident.to_string(), None, is_handed_on),
            UseTree::Rename(rename) => {
                let renamed = Some(rename.rename.to_string());
                self.used(before, &rename.ident.to_string(), renamed, is_handed_on);
            }
            UseTree::Glob(_) => self.used(before, "self", None, false),
        }
    }

    fn used(&mut self, before: &[String], name: &str, renamed: Option<String>, is_handed_on: bool) {
        let mut segments = before.to_vec();
        if name != "self" {
            segments.push(name.to_owned());
        }
        let Some(path) = self.absolute(&segments) else {
            return;
        };
        if is_handed_on {
            // a face may name its children without `self`
            let mut own = path.clone();
            if !path.krate.is_empty() {
                let krate = std::mem::take(&mut own.krate);
                own.segments =
                    self.module.iter().cloned().chain([krate]).chain(path.segments).collect();
            }
            self.handed_on.insert(renamed.unwrap_or_else(|| name.to_owned()), own);
        } else {
            self.paths.push(path);
        }
    }
}

fn is_for_tests(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Path>().is_ok_and(|path| path.is_ident("test"))
    })
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item(&mut self, item: &'ast Item) {
        if let Item::Use(used) = item {
            if !is_for_tests(&used.attrs) {
                let is_handed_on = !matches!(used.vis, Visibility::Inherited);
                self.use_tree(&used.tree, &mut Vec::new(), is_handed_on);
            }
            return;
        }
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if is_for_tests(&module.attrs) {
            let name = module.ident.to_string();
            self.test_modules.push(self.module.iter().cloned().chain([name]).collect());
        } else {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<_> =
            path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        if segments.len() > 1
            && let Some(path) = self.absolute(&segments)
        {
            self.paths.push(path);
        }
        visit::visit_path(self, path);
    }
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("a readable folder").path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

fn module_of(path: &Path, root: &Path) -> Module {
    let inside = path.strip_prefix(root).expect("a file of the crate").with_extension("");
    let mut module: Module =
        inside.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        module.pop();
    }
    module
}

/// A way from a file back to itself, if there is one.
fn circle<'a>(
    edges: &BTreeMap<&'a Module, BTreeSet<&'a Module>>,
    from: &'a Module,
) -> Option<Vec<&'a Module>> {
    let mut ways = vec![vec![from]];
    let mut seen = BTreeSet::new();
    while let Some(way) = ways.pop() {
        for next in &edges[way[way.len() - 1]] {
            if *next == from {
                return Some(way);
            }
            if seen.insert(*next) {
                ways.push(way.iter().copied().chain([*next]).collect());
            }
        }
    }
    None
}

fn product_crates() -> impl Iterator<Item = &'static str> {
    FLOORS.into_iter().flatten().copied()
}

#[test]
fn every_crate_has_its_floor() {
    let folders = fs::read_dir(crates_folder()).expect("crates/");
    let mut found: Vec<_> = folders
        .filter_map(|folder| folder.ok()?.file_name().into_string().ok())
        .filter(|name| !TOOLS.contains(&name.as_str()))
        .collect();
    found.sort_unstable();
    let mut known: Vec<_> = product_crates().collect();
    known.sort_unstable();
    assert_eq!(found, known, "a new crate belongs into FLOORS");
}

#[test]
fn no_file_uses_one_that_uses_it() {
    let mut circles = Vec::new();
    for name in product_crates().chain(TOOLS) {
        let sources = Sources::read(name);
        let edges = sources.edges();
        assert!(edges.values().any(|used| !used.is_empty()) || edges.len() < 3, "{name} is read");
        for module in edges.keys() {
            if let Some(way) = circle(&edges, module) {
                let way: Vec<_> = way.iter().map(|module| module.join("::")).collect();
                circles.push(format!("{}: {}", sources.name, way.join(" -> ")));
            }
        }
    }
    assert!(circles.is_empty(), "circles:\n{}", circles.join("\n"));
}

#[test]
fn crates_know_only_those_below_them() {
    for (floor, names) in FLOORS.iter().enumerate() {
        let below: Vec<&str> = FLOORS[..floor].concat();
        for name in *names {
            let sources = Sources::read(name);
            let known = sources.files.values().flat_map(|file| &file.paths);
            let known: BTreeSet<_> = known.map(|path| path.krate.as_str()).collect();
            let others = product_crates().chain(TOOLS).filter(|other| other != name);
            for other in others.filter(|other| known.contains(other)) {
                assert!(below.contains(&other), "{name} may not know {other}");
            }
        }
    }
}

#[test]
fn client_libraries_are_known_to_one_crate_each() {
    for (library, places) in KNOWN_TO {
        let mut found = 0;
        for name in product_crates() {
            for file in Sources::read(name).files.values() {
                let is_used = file.paths.iter().any(|path| path.krate == library);
                let inside = file.path.strip_prefix(crates_folder()).expect("crates/");
                let may = places.iter().any(|place| inside.starts_with(place));
                assert!(may || !is_used, "{} may not use {library}", inside.display());
                found += usize::from(is_used);
            }
        }
        assert!(found > 0, "{library} is used somewhere, or is not looked for rightly");
    }
}
