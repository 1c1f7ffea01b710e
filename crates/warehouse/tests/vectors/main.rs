//! Every file in `loading` and `own` is a case: events, options, and what PostgreSQL must hold
//! afterwards.
//!
//! `TESTKIT_POSTGRES_URL` names the server; every case gets a database of its own.
//! `LOADING_VECTORS` names another folder in the same format (`make vectors`): then there is a line
//! for each case that fails and one for the sum, instead of the usual output of tests.

mod case;
mod compare;
mod database;
mod inspect;
mod report;
mod run;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

use run::Way;

use libtest_mimic::{Arguments, Failed, Trial};

/// Cases of the original's behaviour, and cases that we derived from the rules.
const FOLDERS: [&str; 2] = ["loading", "own"];

fn main() -> ExitCode {
    if let Some(folder) = std::env::var_os("LOADING_VECTORS") {
        return report::report(Path::new(&folder));
    }
    let arguments = Arguments::from_args();
    let mut trials = Vec::new();
    for folder in FOLDERS {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors").join(folder);
        match files(&path) {
            Ok(files) => trials.extend(files.into_iter().flat_map(trials_of)),
            Err(reason) => trials.push(Trial::test(folder, || Err(reason.into()))),
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// The case files of a folder, by name. A folder without any is an error.
fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let in_folder = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(in_folder)? {
        let path = entry.map_err(in_folder)?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(format!("{}: no case in this folder", folder.display()));
    }
    files.sort();
    Ok(files)
}

fn name_of(file: &Path) -> String {
    file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Runs the case of a file; the error is the first difference. A file that cannot be read is one
/// too.
fn run_file(file: &Path, way: Way) -> Result<(), String> {
    let case = read(file)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| error.to_string())?.block_on(run::run(&case, way))
}

fn read(file: &Path) -> Result<case::Case, String> {
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    case::Case::parse(&text)
}

/// A case of single events is run in both ways.
fn trials_of(file: PathBuf) -> Vec<Trial> {
    let has_single_events = read(&file).is_ok_and(|case| case.has_mode("stream"));
    let ways = [Way::OneByOne, Way::Together];
    let ways = if has_single_events { &ways[..] } else { &ways[..1] };
    let trial = |way: &Way| {
        let (file, way) = (file.clone(), *way);
        let suffix = if way == Way::Together { " (together)" } else { "" };
        Trial::test(format!("{}{suffix}", name_of(&file)), move || {
            run_file(&file, way).map_err(Failed::from)
        })
    };
    ways.iter().map(trial).collect()
}
