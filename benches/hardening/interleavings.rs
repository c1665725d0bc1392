//! The prefetch queue under schedules chosen by shuttle: see `interleavings.py`, which builds this test.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use drpruning_core::{Batch, Corpus, Domain, Draw, Dtype, Prefetch, Sampler, Shard, Weights};
use shuttle::rand::{Rng, thread_rng};
use shuttle::thread;

const SEQ_LEN: usize = 4;
const BATCH: usize = 4;

fn names() -> Vec<String> {
    vec!["a".into(), "b".into()]
}

fn open(folder: &Path) -> Arc<Corpus> {
    let domain = |name: String| {
        let path = folder.join(&name);
        std::fs::write(&path, (0..80).collect::<Vec<u8>>()).unwrap();
        Domain::new(name, vec![Shard::new(path, Dtype::U8, 80)]).unwrap()
    };
    Arc::new(Corpus::new(names().into_iter().map(domain).collect(), None))
}

fn batches(corpus: &Arc<Corpus>, depth: usize) -> Prefetch<i32> {
    let weights = Weights::new(&names(), &[1.0, 1.0]).unwrap();
    let rows = corpus.rows(SEQ_LEN);
    let sampler = Sampler::new(names(), &rows, &weights, BATCH, 17, Draw::Balanced).unwrap();
    Prefetch::new(Arc::clone(corpus), sampler, SEQ_LEN, 0..BATCH, depth).unwrap()
}

/// Takes the next batch. Under shuttle no wait times out, so that a lost wake-up is a deadlock, which it reports.
fn next(batches: &Prefetch<i32>) -> Batch<i32> {
    batches.next(Duration::from_secs(1)).unwrap().unwrap()
}

/// Uses a queue with a thread as a training loop does, and checks that it gives what one without a thread gives.
fn train(corpus: &Arc<Corpus>) {
    let (with, without) = (
        batches(corpus, thread_rng().gen_range(1..4)),
        batches(corpus, 0),
    );
    for _ in 0..thread_rng().gen_range(1..8) {
        match thread_rng().gen_range(0..8) {
            0 => {
                let weights = Weights::new(&names(), &[1.0, 3.0]).unwrap();
                with.set_weights(weights.clone()).unwrap();
                without.set_weights(weights).unwrap();
            }
            1 => {
                with.skip(3).unwrap();
                without.skip(3).unwrap();
            }
            2 => {
                let state = with.state();
                with.restore(state.clone()).unwrap();
                without.restore(state).unwrap();
            }
            3 => {
                with.pause(); // until it is resumed, only batches that are ready can be taken
                assert_eq!(with.state(), without.state());
                with.resume();
            }
            _ => assert_eq!(next(&with), next(&without)),
        }
        assert_eq!(with.state(), without.state());
    }
}

/// Takes batches on two threads while a third one saves the state: each batch is given once.
fn share(corpus: &Arc<Corpus>) {
    let with = Arc::new(batches(corpus, 2));
    let takers: Vec<_> = (0..2)
        .map(|_| {
            let with = Arc::clone(&with);
            thread::spawn(move || [next(&with).step, next(&with).step])
        })
        .collect();
    drop(with.state());
    let mut steps: Vec<u64> = takers
        .into_iter()
        .flat_map(|taker| taker.join().unwrap())
        .collect();
    steps.sort_unstable();
    assert_eq!(steps, [0, 1, 2, 3]);
}

#[test]
fn no_schedule_loses_a_batch_or_a_wake_up() {
    let cases: usize = std::env::var("DRPRUNING_CASES").map_or(1000, |text| text.parse().unwrap());
    let folder = tempfile::TempDir::new().unwrap();
    let corpus = open(folder.path());
    for act in [train, share] {
        let (random, depth) = (Arc::clone(&corpus), Arc::clone(&corpus));
        shuttle::check_random(move || act(&random), cases);
        shuttle::check_pct(move || act(&depth), cases, 3);
    }
    println!("{} schedules", 4 * cases);
}
