//! Every file in `loading` is a case: events, options, and what PostgreSQL must hold afterwards.
//!
//! `TESTKIT_POSTGRES_URL` names the server; every case gets a database of its own. `LOADING_VECTORS` names
//! another folder in the same format.

mod case;
mod compare;
mod database;
mod inspect;
mod run;

use std::path::{Path, PathBuf};

use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let folder = std::env::var_os("LOADING_VECTORS").map_or_else(default_folder, PathBuf::from);
    let trials = match files(&folder) {
        Ok(files) if !files.is_empty() => files.into_iter().map(trial).collect(),
        Ok(_) => vec![broken(&folder, "no case in this folder".to_owned())],
        Err(error) => vec![broken(&folder, error.to_string())],
    };
    libtest_mimic::run(&arguments, trials).exit();
}

fn default_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/loading")
}

fn files(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A file that cannot be read is a failure of its own name.
fn trial(path: PathBuf) -> Trial {
    let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    Trial::test(name, move || {
        let text =
            std::fs::read_to_string(&path).map_err(|error| Failed::from(error.to_string()))?;
        let case = case::Case::parse(&text).map_err(Failed::from)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failed::from(error.to_string()))?;
        runtime.block_on(run::run(&case)).map_err(Failed::from)
    })
}

fn broken(folder: &Path, reason: String) -> Trial {
    Trial::test(folder.display().to_string(), move || Err(Failed::from(reason)))
}
