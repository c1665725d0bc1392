//! The streams in `tests/golden/sampler.json`, written by the Python reference implementation: the same seed gives the
//! same rows in every version.

use std::path::Path;

use drpruning_core::{Draw, Sampler, Shuffle, Weights};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    shuffles: Vec<ShuffleCase>,
    streams: Vec<StreamCase>,
}

#[derive(Deserialize)]
struct ShuffleCase {
    seed: u64,
    domain: u32,
    rows: u64,
    positions: Vec<u64>,
    expected: Vec<u64>,
}

#[derive(Deserialize)]
struct StreamCase {
    rows: Vec<u64>,
    seed: u64,
    batch_size: usize,
    draw: String,
    stages: Vec<Stage>,
}

#[derive(Deserialize)]
struct Stage {
    weights: Vec<f64>,
    batches: Vec<Vec<(u32, u64)>>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/sampler.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn shuffles() {
    for case in golden().shuffles {
        let mut shuffle = Shuffle::new(case.seed, case.domain, case.rows);
        for (position, expected) in case.positions.into_iter().zip(case.expected) {
            let mut found = [0];
            shuffle.fill(position, &mut found);
            assert_eq!(found, [expected], "row {position} of {}", case.rows);
        }
    }
}

#[test]
fn streams() {
    for case in golden().streams {
        let names: Vec<String> = (0..case.rows.len()).map(|i| i.to_string()).collect();
        let draw = if case.draw == "balanced" {
            Draw::Balanced
        } else {
            Draw::Random
        };
        let weights = |values: &[f64]| Weights::new(&names, values).unwrap();
        let first = weights(&case.stages[0].weights);
        let mut sampler = Sampler::new(
            names.clone(),
            &case.rows,
            &first,
            case.batch_size,
            case.seed,
            draw,
        )
        .unwrap();
        for (number, stage) in case.stages.iter().enumerate() {
            if number > 0 {
                sampler.set_weights(weights(&stage.weights)).unwrap();
            }
            for expected in &stage.batches {
                let mut batch = Vec::new();
                sampler.next_batch(&mut batch);
                let found: Vec<(u32, u64)> =
                    batch.iter().map(|pick| (pick.domain, pick.row)).collect();
                assert_eq!(
                    &found,
                    expected,
                    "stage {number} of the case with {} domains",
                    names.len()
                );
            }
        }
    }
}
