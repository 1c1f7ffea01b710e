//! The table and the JSON.

use std::{collections::BTreeMap, fmt, fs};

use anyhow::Result;
use serde::Serialize;

/// All results of a run, with the machine they hold for.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    cores: usize,
    memory_mib: u64,
    processor: String,
    results: Vec<Results>,
}

/// One benchmark, as often as it ran.
#[derive(Debug, Serialize)]
struct Results {
    name: String,
    rounds: Vec<Comparison>,
}

/// One run of a benchmark: ours and its reference.
#[derive(Debug, Serialize)]
pub(crate) struct Comparison {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) ours: f64,
    pub(crate) reference: f64,
    pub(crate) reference_is: &'static str,
    /// Further figures, by name with the unit in it.
    pub(crate) details: BTreeMap<&'static str, f64>,
}

impl Report {
    pub(crate) fn new() -> Result<Report> {
        let find = |text: &str, key: &str| {
            text.lines()
                .find(|line| line.starts_with(key))
                .and_then(|line| line.split(':').nth(1))
                .map(|value| value.trim().to_owned())
                .unwrap_or_default()
        };
        let memory = find(&fs::read_to_string("/proc/meminfo")?, "MemTotal");
        let kibibytes: u64 =
            memory.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default();
        Ok(Report {
            cores: std::thread::available_parallelism()?.get(),
            memory_mib: kibibytes >> 10,
            processor: find(&fs::read_to_string("/proc/cpuinfo")?, "model name"),
            results: Vec::new(),
        })
    }

    pub(crate) fn add(&mut self, comparison: Comparison) {
        eprintln!("{comparison}");
        match self.results.iter_mut().find(|results| results.name == comparison.name) {
            Some(results) => results.rounds.push(comparison),
            None => {
                self.results
                    .push(Results { name: comparison.name.clone(), rounds: vec![comparison] });
            }
        }
    }
}

impl Results {
    /// From the worst round to the best, as shares of the reference.
    fn sorted(&self) -> Vec<&Comparison> {
        let mut rounds: Vec<_> = self.rounds.iter().collect();
        rounds.sort_by(|a, b| a.share().total_cmp(&b.share()));
        rounds
    }
}

impl Comparison {
    fn share(&self) -> f64 {
        self.ours / self.reference
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { cores, memory_mib, processor, results } = self;
        writeln!(f, "{cores} cores, {memory_mib} MiB, {processor}")?;
        for results in results {
            let rounds = results.sorted();
            let (Some(worst), Some(best)) = (rounds.first(), rounds.last()) else {
                continue;
            };
            writeln!(f, "{}", rounds[rounds.len() / 2])?;
            let percent = |comparison: &Comparison| 100.0 * comparison.share();
            let (worst, best, count) = (percent(worst), percent(best), rounds.len());
            writeln!(f, "  the median of {count}, from {worst:.0}% to {best:.0}%")?;
        }
        Ok(())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Comparison { name, unit, ours, reference, reference_is, details } = self;
        let share = 100.0 * self.share();
        write!(f, "{name}: {ours:.0} {unit}, {share:.0}% of {reference:.0} ({reference_is})")?;
        details.iter().try_for_each(|(name, value)| write!(f, "; {name} {value:.1}"))
    }
}
