//! What one core does from a JSON line to an encoded row, beside what JSON parsers do with the same
//! lines.
//!
//! The parsers only make their value of each line, no row; they stand for the least that a loader
//! built on them would spend. Figures are elements (events of about 1 KB and 30 columns) per
//! second.

#[path = "../../bench/src/events.rs"]
mod events;

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BatchSize, Criterion, Throughput};
use warehouse::{Batch, StreamOptions, postgres::copy_text};

/// Different events of one iteration: as many as a small batch has.
const EVENTS: u64 = 1000;

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_secs(1))
        .measurement_time(Duration::from_secs(3))
        .configure_from_args();
    measure(&mut criterion, &lines());
    criterion.final_summary();
}

fn measure(criterion: &mut Criterion, lines: &[Vec<u8>]) {
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Elements(EVENTS));
    let options = Arc::new(StreamOptions::default());

    group.bench_function("row", |bencher| {
        bencher.iter(|| {
            let batch = filled(lines, &options);
            copy_text(&batch).expect("rows in memory can be read")
        });
    });
    group.bench_function("push only", |bencher| bencher.iter(|| filled(lines, &options)));
    group.bench_function("sonic-rs value", |bencher| {
        bencher.iter(|| {
            for line in lines {
                let value: sonic_rs::Value = sonic_rs::from_slice(line).expect("a line is JSON");
                black_box(value);
            }
        });
    });
    group.bench_function("sonic-rs lazy", |bencher| {
        bencher.iter(|| {
            let text = |line| std::str::from_utf8(line).expect("a line is UTF-8");
            lines.iter().map(|line| count_values(text(line))).sum::<usize>()
        });
    });
    group.bench_function("simd-json", |bencher| {
        let parse = |mut copies: Vec<Vec<u8>>| {
            for copy in &mut copies {
                let value = simd_json::to_borrowed_value(copy).expect("a line is JSON");
                black_box(value);
            }
            copies // dropped outside of the timing
        };
        // it parses in place, so each iteration gets copies, made outside of the timing
        bencher.iter_batched(|| lines.to_vec(), parse, BatchSize::LargeInput);
    });
    group.bench_function("serde_json value", |bencher| {
        bencher.iter(|| {
            for line in lines {
                let value: serde_json::Value =
                    serde_json::from_slice(line).expect("a line is JSON");
                black_box(value);
            }
        });
    });
    group.finish();
}

fn lines() -> Vec<Vec<u8>> {
    let line = |number| {
        let mut event = String::new();
        events::write_event(&mut event, number);
        event.into_bytes()
    };
    (0..EVENTS).map(line).collect()
}

fn filled(lines: &[Vec<u8>], options: &Arc<StreamOptions>) -> Batch {
    let mut batch = Batch::new("events", options.clone()).expect("default options fit together");
    for line in lines {
        batch.push(line).expect("a line is an event");
    }
    batch
}

/// Lists the entries of objects at all levels without a tree; answers how many plain values they
/// have.
fn count_values(object: &str) -> usize {
    let mut count = 0;
    for entry in sonic_rs::to_object_iter(object) {
        let (key, value) = entry.expect("a line is JSON");
        black_box(key);
        let text = value.as_raw_str();
        count += if text.starts_with('{') { count_values(text) } else { 1 };
    }
    count
}
