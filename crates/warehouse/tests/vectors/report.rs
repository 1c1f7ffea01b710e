//! The output of `make vectors`.

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Mutex,
};

use crate::{files, name_of, run::Way, run_file};

/// Runs all cases of a folder, a few at a time, and prints `FAIL <name>: <first difference>` for
/// each that fails, in the order of the names, then the sum.
pub(crate) fn report(folder: &Path) -> ExitCode {
    let files = match files(folder) {
        Ok(files) => files,
        Err(reason) => {
            println!("FAIL {reason}\n0 passed, 1 failed");
            return ExitCode::FAILURE;
        }
    };
    let workers = std::thread::available_parallelism().map_or(2, usize::from) * 2;
    let left: Mutex<Vec<(usize, &PathBuf)>> = Mutex::new(files.iter().enumerate().rev().collect());
    let results: Mutex<Vec<(usize, Result<(), String>)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((index, file)) = left.lock().ok().and_then(|mut left| left.pop()) {
                    let result = std::panic::catch_unwind(|| run_file(file, Way::OneByOne));
                    let result = result.unwrap_or_else(|_| Err("panicked".to_owned()));
                    if let Ok(mut results) = results.lock() {
                        results.push((index, result));
                    }
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_default();
    results.sort_by_key(|(index, _)| *index);
    let mut failed = files.len() - results.len(); // of a worker that died
    for (index, result) in &results {
        if let Err(difference) = result {
            failed += 1;
            println!("FAIL {}: {}", name_of(&files[*index]), difference.replace('\n', " "));
        }
    }
    println!("{} passed, {failed} failed", files.len() - failed);
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
