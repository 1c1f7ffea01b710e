//! What one core does from a JSON line to an encoded row, beside what JSON parsers do with the same lines.
//!
//! The parsers only make their value of each line, no row; they stand for the least that a loader built on them would
//! spend. Figures are elements (events of about 1 KB and 30 columns) per second.

use std::{fmt::Write, hint::black_box, sync::Arc, time::Duration};

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
    (0..EVENTS).map(|number| event(number).into_bytes()).collect()
}

fn filled(lines: &[Vec<u8>], options: &Arc<StreamOptions>) -> Batch {
    let mut batch = Batch::new("events", options.clone()).expect("default options fit together");
    for line in lines {
        batch.push(line).expect("a line is an event");
    }
    batch
}

/// Walks objects at all levels without a tree, as the library does; answers how many plain values they have.
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

/// Event number `number`, of the shape that `crates/bench` sends (not shared: a file with tests in it warns here).
fn event(number: u64) -> String {
    let mut event = String::new();
    let random = mix(number);
    let (page, user, session) = (random % 997, random % 100_003, random % 1_000_033);
    let second = number % 86_400;
    let (hours, minutes, seconds) = (second / 3600, second / 60 % 60, second % 60);
    let millis = random % 1000;
    let timestamp =
        format!("2026-11-{:02}T{hours:02}:{minutes:02}:{seconds:02}.{millis:03}Z", number % 28 + 1);
    write!(
        event,
        concat!(
            r#"{{"id":{number},"type":"track","event":"Product Viewed","messageId":"{random:016x}-{number:016x}","#,
            r#""timestamp":"{timestamp}","sentAt":"{timestamp}","anonymousId":"anonymous-{session:012}","userId":"user-{user:09}","#,
            r#""context":{{"ip":"203.0.113.{octet}","locale":"en-GB","timezone":"Europe/London","#,
            r#""userAgent":"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36","#,
            r#""page":{{"path":"/products/{page}","url":"https://shop.example/products/{page}?ref=mail","title":"Product number {page}","referrer":"https://search.example/"}},"#,
            r#""library":{{"name":"analytics.js","version":"2.11.1"}},"screen":{{"width":1920,"height":1080,"density":1.25}},"#,
            r#""campaign":{{"name":"autumn-sale","source":"newsletter","medium":"email"}}}},"#,
            r#""properties":{{"product_id":"sku-{page:06}","category":"Garden chairs","name":"Folding chair \"Åre\", oak","price":{price}.{cents:02},"quantity":{quantity},"#,
            r#""currency":"EUR","position":{position},"discount":{discount},"in_stock":{in_stock}}},"session_id":{session},"visits":{visits}}}"#
        ),
        number = number,
        random = random,
        timestamp = timestamp,
        session = session,
        user = user,
        octet = random % 255,
        page = page,
        price = random % 500,
        cents = random % 100,
        quantity = random % 9 + 1,
        position = random % 40,
        discount = if random.is_multiple_of(3) { "0.15" } else { "0.2" },
        in_stock = !random.is_multiple_of(7),
        visits = random % 50,
    )
    .expect("writing to a String does not fail");
    event
}

/// Spreads numbers evenly (`SplitMix64`), the same in every run.
fn mix(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
