//! Prefetching changes only the time: the stream, its states and its errors are those of a sampler without it.

use std::fs::File;
use std::ops::Range;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use drpruning_core::{
    Batch, Corpus, Domain, Draw, Dtype, Error, Pick, Prefetch, Sampler, Shard, Token, Weights,
};
use proptest::prelude::*;

const SEQ_LEN: usize = 4;
const BATCH: usize = 6;

fn names() -> Vec<String> {
    vec!["a".into(), "b".into(), "c".into()]
}

/// Domains of 10, 20 and 30 rows; token t of domain d is 64 d + t.
fn write_corpus(folder: &Path) {
    for (number, name) in names().iter().enumerate() {
        let tokens: Vec<u8> = (0..SEQ_LEN * 10 * (number + 1))
            .flat_map(|token| ((64 * number + token) as u16).to_le_bytes())
            .collect();
        std::fs::write(folder.join(name), tokens).unwrap();
    }
}

fn open(folder: &Path) -> Arc<Corpus> {
    let domains = names().into_iter().enumerate().map(|(number, name)| {
        let tokens = (SEQ_LEN * 10 * (number + 1)) as u64;
        let shard = Shard::new(folder.join(&name), Dtype::U16, tokens);
        Domain::new(name, vec![shard]).unwrap()
    });
    Arc::new(Corpus::new(domains.collect(), None))
}

/// Has the system forget what it holds of the files, so that they are read from the disk.
fn forget(folder: &Path) {
    for name in names() {
        // Windows syncs only what is open for writing.
        let file = File::options()
            .read(true)
            .write(true)
            .open(folder.join(name))
            .unwrap();
        file.sync_all().unwrap();
        // SAFETY: no memory is passed; the descriptor is open. What stays in memory is read from there.
        #[cfg(target_os = "linux")]
        unsafe {
            libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED)
        };
    }
}

fn batches<T: Token>(corpus: Arc<Corpus>, part: Range<usize>, depth: usize) -> Prefetch<T> {
    let rows = corpus.rows(SEQ_LEN);
    let sampler = Sampler::new(names(), &rows, &even(), BATCH, 17, Draw::Balanced).unwrap();
    Prefetch::new(corpus, sampler, SEQ_LEN, part, depth).unwrap()
}

fn even() -> Weights {
    Weights::new(&names(), &[1.0, 1.0, 1.0]).unwrap()
}

fn next<T: Token>(batches: &Prefetch<T>) -> Result<Batch<T>, Error> {
    loop {
        if let Some(batch) = batches.next(Duration::from_secs(1)) {
            return batch;
        }
    }
}

fn expected(picks: &[Pick]) -> Vec<i32> {
    let start = |pick: &Pick| 64 * pick.domain as i32 + (pick.row as usize * SEQ_LEN) as i32;
    let row = |pick| start(pick)..start(pick) + SEQ_LEN as i32;
    picks.iter().flat_map(row).collect()
}

#[derive(Clone, Debug)]
enum Act {
    Next,
    NextInto,
    SetWeights(f64),
    Skip(u64),
    Restore,
    Pause,
    Forget,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => Just(Act::Next),
        3 => Just(Act::NextInto),
        2 => (0.0..1.0f64).prop_map(Act::SetWeights),
        1 => (0..20u64).prop_map(Act::Skip),
        1 => Just(Act::Restore),
        1 => Just(Act::Pause),
        1 => Just(Act::Forget),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Prefetching is transparent: any sequence of calls returns what it returns without prefetching.
    #[test]
    fn prefetched_batches_are_invisible(acts in prop::collection::vec(act(), 1..40), depth in 1usize..5) {
        let folder = tempfile::TempDir::new().unwrap();
        write_corpus(folder.path());
        let plain = batches::<i32>(open(folder.path()), 1..5, 0);
        let ahead = batches::<i32>(open(folder.path()), 1..5, depth);
        let mut saved = plain.state();
        for act in acts {
            match act {
                Act::Next => {
                    let batch = next(&ahead).unwrap();
                    prop_assert_eq!(&batch.tokens, &expected(&batch.picks));
                    prop_assert_eq!(batch, next(&plain).unwrap());
                }
                Act::NextInto => {
                    let mut out = [0; 4 * SEQ_LEN];
                    let (step, picks) = loop {
                        if let Some(taken) = ahead.next_into(&mut out, Duration::from_secs(1)) {
                            break taken.unwrap();
                        }
                    };
                    let batch = next(&plain).unwrap();
                    prop_assert_eq!((step, &picks, &out[..]), (batch.step, &batch.picks, &batch.tokens[..]));
                }
                Act::SetWeights(share) => {
                    let weights = Weights::new(&names(), &[share, 0.5, 0.0]).unwrap();
                    ahead.set_weights(weights.clone()).unwrap();
                    plain.set_weights(weights).unwrap();
                    saved = plain.state();
                }
                Act::Skip(steps) => {
                    ahead.skip(steps).unwrap();
                    plain.skip(steps).unwrap();
                }
                Act::Restore => {
                    ahead.restore(saved.clone()).unwrap();
                    plain.restore(saved.clone()).unwrap();
                }
                Act::Pause => {
                    ahead.pause();
                    ahead.resume();
                }
                Act::Forget => forget(folder.path()),
            }
            prop_assert_eq!(ahead.state(), plain.state());
            prop_assert_eq!(ahead.weights(), plain.weights());
            let step = plain.state().step;
            prop_assert_eq!(ahead.peek(step + 3).unwrap(), plain.peek(step + 3).unwrap());
        }
    }
}

/// Domain c is not drawn at first; its missing file is an error of the first batch that needs it, at every call until the
/// file exists.
#[test]
fn an_error_comes_with_its_batch() {
    for depth in [0, 1, 4] {
        let folder = tempfile::TempDir::new().unwrap();
        write_corpus(folder.path());
        let batches = batches::<i64>(open(folder.path()), 0..BATCH, depth);
        let weights = |values: &[f64]| Weights::new(&names(), values).unwrap();
        batches.set_weights(weights(&[1.0, 1.0, 0.0])).unwrap();
        let (here, away) = (folder.path().join("c"), folder.path().join("away"));
        std::fs::rename(&here, &away).unwrap();
        for step in 0..10 {
            assert_eq!(next(&batches).unwrap().step, step);
        }
        batches.set_weights(even()).unwrap();
        let before = batches.state();
        for _ in 0..3 {
            let error = next(&batches).unwrap_err().to_string();
            assert!(error.contains("found none"), "{error}");
            assert_eq!(batches.state(), before);
        }
        // Weights that need no such file help at once, and so does the file.
        batches.set_weights(weights(&[1.0, 1.0, 0.0])).unwrap();
        assert_eq!(next(&batches).unwrap().step, 10);
        std::fs::rename(&away, &here).unwrap();
        batches.set_weights(even()).unwrap();
        assert_eq!(next(&batches).unwrap().step, 11);
    }
}

#[test]
fn an_id_that_does_not_fit_is_an_error() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("a");
    std::fs::write(&path, (1u32 << 31).to_le_bytes()).unwrap();
    let domain = Domain::new("a".into(), vec![Shard::new(path, Dtype::U32, 1)]).unwrap();
    let corpus = Corpus::new(vec![domain], None);
    let pick = [Pick { domain: 0, row: 0 }];
    corpus.gather(&pick, 1, &mut [0i64]).unwrap();
    let error = corpus.gather(&pick, 1, &mut [0i32]).unwrap_err();
    assert!(error.to_string().contains("found 2147483648"), "{error}");
}

/// Many at once, each dropped with its thread at work.
#[test]
fn threads_end_with_their_samplers() {
    let folder = tempfile::TempDir::new().unwrap();
    write_corpus(folder.path());
    let corpus = open(folder.path());
    let all: Vec<Prefetch<i32>> = (0..20)
        .map(|i| batches(corpus.clone(), 0..BATCH, 1 + i % 3))
        .collect();
    for _ in 0..5 {
        let taken: Vec<_> = all.iter().map(|batches| next(batches).unwrap()).collect();
        assert!(taken.windows(2).all(|pair| pair[0] == pair[1]));
    }
    drop(all);
    assert_eq!(Arc::strong_count(&corpus), 1);
}

/// A paused thread reads nothing, and prefetched batches remain.
#[test]
fn a_pause_keeps_prefetched_batches() {
    let folder = tempfile::TempDir::new().unwrap();
    write_corpus(folder.path());
    let batches = batches::<i32>(open(folder.path()), 0..BATCH, 2);
    assert_eq!(next(&batches).unwrap().step, 0);
    batches.pause();
    let mut taken = 0;
    while let Some(batch) = batches.next(Duration::from_millis(1)) {
        taken += 1;
        assert_eq!(batch.unwrap().step, taken);
    }
    assert!(taken <= 2);
    batches.resume();
    assert_eq!(next(&batches).unwrap().step, taken + 1);
}

/// While rows come from the disk, later batches are planned and their rows requested; the stream does not change.
#[test]
fn requests_to_the_disk_do_not_change_the_stream() {
    let folder = tempfile::TempDir::new().unwrap();
    write_corpus(folder.path());
    let plain = batches::<i64>(open(folder.path()), 0..BATCH, 0);
    let ahead = batches::<i64>(open(folder.path()), 0..BATCH, 1);
    for step in 0..200 {
        if step % 7 == 0 {
            forget(folder.path());
        }
        assert_eq!(next(&ahead).unwrap(), next(&plain).unwrap());
        assert_eq!(ahead.state(), plain.state());
        if step % 50 == 49 {
            let weights = Weights::new(&names(), &[f64::from(step), 50.0, 100.0]).unwrap();
            ahead.set_weights(weights.clone()).unwrap();
            plain.set_weights(weights).unwrap();
        }
    }
}

#[test]
fn unusable_parts_are_refused() {
    let folder = tempfile::TempDir::new().unwrap();
    write_corpus(folder.path());
    let corpus = open(folder.path());
    let sampler = |rows: &[u64]| {
        let names: Vec<String> = (0..rows.len()).map(|i| i.to_string()).collect();
        let weights = Weights::new(&names, &vec![1.0; rows.len()]).unwrap();
        Sampler::new(names, rows, &weights, 8, 0, Draw::Balanced).unwrap()
    };
    let rows = corpus.rows(SEQ_LEN);
    let refused = |rows: &[u64], seq_len, part| {
        let corpus = Arc::clone(&corpus);
        let batches = Prefetch::<i64>::new(corpus, sampler(rows), seq_len, part, 0);
        batches.unwrap_err().to_string()
    };
    assert!(refused(&rows, SEQ_LEN, 0..9).contains("rows 0..9 are not in a batch of 8"));
    assert!(refused(&rows, 0, 0..8).contains("seq_len is 0"));
    assert!(
        refused(&rows[1..], SEQ_LEN, 0..8).contains("expected the rows of corpus.rows(seq_len)")
    );
}
