//! What choosing and reading a row costs: `cargo bench -p drpruning-benches --bench sampler`.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use drpruning_core::corpus::{Corpus, Domain, Pick, Shard};
use drpruning_core::sampler::{Draw, Sampler};
use drpruning_core::shuffle::Shuffle;
use drpruning_core::tokens::Dtype;
use drpruning_core::weights::Weights;

/// Sheared `LLaMA`'s initial mixture of `RedPajama`'s seven domains (Xia et al. 2023, table 1).
const MIXTURE: [f64; 7] = [0.67, 0.045, 0.045, 0.02, 0.045, 0.025, 0.15];
const BATCH: usize = 256;
const SEQ_LEN: usize = 4096;

fn choosing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("choose_row");
    group.throughput(Throughput::Elements(BATCH as u64));
    for draw in [Draw::Balanced, Draw::Random] {
        let names: Vec<String> = (0..MIXTURE.len()).map(|i| i.to_string()).collect();
        let weights = Weights::new(&names, &MIXTURE).unwrap();
        let mut sampler = Sampler::new(
            names,
            &[100_000_000; MIXTURE.len()],
            &weights,
            BATCH,
            17,
            draw,
        )
        .unwrap();
        let mut batch = Vec::new();
        group.bench_function(format!("7 domains, {draw:?}"), |b| {
            b.iter(|| {
                sampler.next_batch(black_box(&mut batch));
            });
        });
    }
    group.finish();
}

fn shuffling(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("shuffle");
    group.throughput(Throughput::Elements(1));
    for rows in [
        1_000,
        (1 << 16) + 1,
        1 << 30,
        (1 << 30) + 1,
        490_000_000,
        (1 << 48) - 59,
    ] {
        let mut shuffle = Shuffle::new(17, 0, rows);
        let mut position = 0;
        group.bench_function(format!("{rows} rows"), |b| {
            b.iter(|| {
                position = (position + 1) % rows;
                shuffle.row(position)
            });
        });
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
    let picks: Vec<Pick> = (0..32)
        .map(|i| Pick {
            domain: 0,
            row: shuffle.row(i),
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
            let mut out = vec![0i64; picks.len() * SEQ_LEN];
            corpus.gather(&picks, SEQ_LEN, &mut out).unwrap();
            out
        });
    });
    group.finish();
}

criterion_group!(benches, choosing, shuffling, reading);
criterion_main!(benches);
