//! The chi-square ball at the size of a mixture, and far beyond it; sorting the losses is the yardstick.

#![allow(missing_docs)] // criterion's macros define public items

use chi2_ball::{Buffers, project, worst_case, worst_case_into};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;

/// Deterministic numbers in (0, 1), as good as random for this purpose.
fn noise(n: usize, step: f64) -> Vec<f64> {
    (1..=n)
        .map(|i| (i as f64 * step).fract().max(1e-3))
        .collect()
}

fn chi2(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("chi2");
    for n in [7, 1_000, 100_000, 1_000_000] {
        // Bell-shaped: the sum of three even ones.
        let parts = [
            0.618_033_988_749_895,
            0.465_571_231_876_768,
            0.682_327_803_828_019,
        ];
        let parts = parts.map(|step| noise(n, step));
        let losses: Vec<f64> = (0..n).map(|i| parts.iter().map(|x| x[i]).sum()).collect();
        let raw = noise(n, 0.754_877_666_246_693);
        let total: f64 = raw.iter().sum();
        let p: Vec<f64> = raw.iter().map(|p| p / total).collect();
        let y: Vec<f64> = p.iter().zip(&losses).map(|(p, v)| p * 4.0 * v).collect();
        group.bench_with_input(BenchmarkId::new("worst_case", n), &n, |bench, _| {
            bench.iter(|| worst_case(black_box(&losses), &p, 0.1, 0.2));
        });
        // Without the cost of fresh memory, which at a million entries is most of it.
        let (mut weights, mut multipliers) = (vec![0.0; n], vec![0.0; n]);
        let mut at_floor = vec![false; n];
        group.bench_with_input(BenchmarkId::new("worst_case_into", n), &n, |bench, _| {
            bench.iter(|| {
                let mut buffers = Buffers {
                    weights: &mut weights,
                    floor_multipliers: &mut multipliers,
                    at_floor: &mut at_floor,
                };
                worst_case_into(black_box(&losses), &p, 0.1, 0.2, &mut buffers)
            });
        });
        group.bench_with_input(BenchmarkId::new("project", n), &n, |bench, _| {
            bench.iter(|| project(black_box(&y), &p, 0.1, 0.2));
        });
        group.bench_with_input(BenchmarkId::new("sort", n), &n, |bench, _| {
            bench.iter(|| {
                let mut sorted = black_box(&losses).clone();
                sorted.sort_unstable_by(f64::total_cmp);
                sorted
            });
        });
    }
    group.finish();
}

criterion_group!(benches, chi2);
criterion_main!(benches);
