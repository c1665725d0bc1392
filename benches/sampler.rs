//! What choosing and reading a row costs: `cargo bench -p drpruning-benches --bench sampler`.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use drpruning_core::draw::Balanced;
use drpruning_core::{Corpus, Domain, Draw, Dtype, Pick, Sampler, Shard, Shuffle, Weights};

/// Sheared `LLaMA`'s initial mixture of `RedPajama`'s seven domains (Xia et al. 2023, table 1).
const MIXTURE: [f64; 7] = [0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15];
const BATCH: usize = 256;
const SEQ_LEN: usize = 4096;

/// Rows of a domain: from one to 2^48, some next to where the method or the network's shape changes.
const SIZES: [u64; 12] = [
    1,
    2,
    3,
    10,
    1_000,
    2_048,
    2_049,
    (1 << 16) + 1,
    490_000_000,
    1 << 30,
    (1 << 30) + 1,
    1 << 48,
];

/// Choosing rows: which domain, which of its rows, in which order. The domains are of one size, so that the table shows
/// what each size costs.
fn choosing(criterion: &mut Criterion) {
    for domains in [7, 64] {
        let mut group = criterion.benchmark_group(format!("choosing a row of {domains} domains"));
        group.throughput(Throughput::Elements(BATCH as u64));
        for rows in SIZES {
            group.bench_function(format!("balanced, {rows} rows each"), |b| {
                let mut sampler = sampler(domains, rows, Draw::Balanced);
                let mut batch = Vec::new();
                b.iter(|| sampler.next_batch(black_box(&mut batch)));
            });
        }
        group.bench_function("random, 490000000 rows each", |b| {
            let mut sampler = sampler(domains, 490_000_000, Draw::Random);
            let mut batch = Vec::new();
            b.iter(|| sampler.next_batch(black_box(&mut batch)));
        });
        group.finish();
    }
}

fn sampler(domains: usize, rows: u64, draw: Draw) -> Sampler {
    let names: Vec<String> = (0..domains).map(|i| i.to_string()).collect();
    // Seven: RedPajama's. More: falling as 1, 1/2, 1/3, ...
    let values = if domains == MIXTURE.len() {
        MIXTURE.to_vec()
    } else {
        (1..=domains).map(|i| 1.0 / i as f64).collect()
    };
    let weights = Weights::new(&names, &values).unwrap();
    Sampler::new(names, &vec![rows; domains], &weights, BATCH, 17, draw).unwrap()
}

/// The parts: the mixture alone, the order within one domain alone.
fn parts(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("mixture");
    group.throughput(Throughput::Elements(1));
    for domains in [7, 64] {
        let weights = sampler(domains, 1, Draw::Balanced).weights().clone();
        let mut mixture = Balanced::new(weights);
        group.bench_function(format!("{domains} domains"), |b| b.iter(|| mixture.draw()));
    }
    group.finish();
    let mut group = criterion.benchmark_group("shuffle");
    let mut out = [0; 16];
    group.throughput(Throughput::Elements(out.len() as u64));
    for rows in SIZES {
        let mut shuffle = Shuffle::new(17, 0, rows);
        let mut position = 0;
        group.bench_function(format!("{rows} rows, 16 at a time"), |b| {
            b.iter(|| {
                shuffle.fill(position, black_box(&mut out));
                position += 16;
            });
        });
    }
    group.finish();
}

/// What does not depend on how far one goes: passing over batches, going on from a saved state.
fn going_on(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("going on");
    for domains in [7, 64] {
        for steps in [1_000, 1_000_000_000] {
            let start = sampler(domains, 490_000_000, Draw::Balanced);
            group.bench_function(
                format!("skip {steps} batches of {BATCH}, {domains} domains"),
                |b| b.iter(|| start.clone().skip(steps).unwrap()),
            );
        }
        let mut far = sampler(domains, 2_000, Draw::Balanced);
        far.skip(1_000_000_000_000 / BATCH as u64).unwrap();
        let (state, mut batch) = (far.state(), Vec::new());
        group.bench_function(
            format!("restore at sample 10^12 and plan a batch, {domains} domains of 2000 rows"),
            |b| {
                b.iter(|| {
                    let mut sampler = sampler(domains, 2_000, Draw::Balanced);
                    sampler.restore(state.clone()).unwrap();
                    sampler.next_batch(&mut batch);
                });
            },
        );
    }
    group.finish();
}

fn reading(criterion: &mut Criterion) {
    let rows = 4_096;
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("tokens.bin");
    File::create(&path)
        .unwrap()
        .write_all(&vec![1; 2 * rows * SEQ_LEN])
        .unwrap();
    let shard = Shard::new(path, Dtype::U16, (rows * SEQ_LEN) as u64);
    let corpus = Corpus::new(
        vec![Domain::new("tokens".into(), vec![shard]).unwrap()],
        Some(32_000),
    );
    let mut shuffle = Shuffle::new(17, 0, rows as u64);
    let mut rows = [0; 32];
    shuffle.fill(0, &mut rows);
    let picks: Vec<Pick> = (0..32)
        .map(|i| Pick {
            domain: 0,
            row: rows[i],
        })
        .collect();
    let mut group = criterion.benchmark_group("gather");
    group.throughput(Throughput::Elements(picks.len() as u64));
    let mut out = vec![0i64; picks.len() * SEQ_LEN];
    group.bench_function("32 rows of 4096 uint16, reused output", |b| {
        b.iter(|| corpus.gather(&picks, SEQ_LEN, &mut out).unwrap());
    });
    group.bench_function("32 rows of 4096 uint16, fresh output", |b| {
        b.iter(|| {
            let mut out = Vec::<i64>::new();
            corpus.gather_vec(&picks, SEQ_LEN, &mut out).unwrap();
            out
        });
    });
    group.finish();
}

criterion_group!(benches, choosing, parts, going_on, reading);
criterion_main!(benches);
