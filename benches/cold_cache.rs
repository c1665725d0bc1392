//! Reading files that are not in the page cache, compared with the simplest reader with the same access pattern:
//! `cargo bench -p drpruning-benches --bench cold_cache -- FOLDER`. Linux only; writes a file of 1 GiB into FOLDER.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use drpruning_core::{Corpus, Domain, Dtype, Pick, Shard};

const SEQ_LEN: usize = 4096;
const ROW_BYTES: usize = 2 * SEQ_LEN;
const ROWS: u64 = (1 << 30) / ROW_BYTES as u64;
const BATCH: usize = 32;
/// Batches that a sampler with a prefetch thread plans in advance.
const AHEAD: usize = 4;
/// Rows of a random measurement: each is of another part of the file.
const RANDOM: usize = 4096;
const ROUNDS: usize = 5;

fn main() {
    let folder = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    let path = PathBuf::from(folder.unwrap_or_else(|| ".".into())).join("drpruning-cold.bin");
    let mut file = File::create(&path).unwrap();
    let mut word = 1u64;
    for _ in 0..ROWS {
        let row: Vec<u8> = (0..ROW_BYTES / 8)
            .flat_map(|_| {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (word & 0x7fff_7fff_7fff_7fff).to_le_bytes()
            })
            .collect();
        file.write_all(&row).unwrap();
    }
    file.sync_all().unwrap();
    println!("MB/s, median of {ROUNDS} rounds in turn, page cache of the file dropped before each");
    let mut figures: Vec<(&str, Vec<f64>)> = Vec::new();
    for round in 0..ROUNDS {
        for (place, (name, bytes, run)) in measurements(&path, round as u64).into_iter().enumerate()
        {
            drop_cache(&path);
            let start = Instant::now();
            run();
            let speed = bytes as f64 / start.elapsed().as_secs_f64() / 1e6;
            if round == 0 {
                figures.push((name, Vec::new()));
            }
            figures[place].1.push(speed);
        }
    }
    for (name, mut speeds) in figures {
        speeds.sort_by(f64::total_cmp);
        println!("{name:60} {:6.0}", speeds[ROUNDS / 2]);
    }
    std::fs::remove_file(path).unwrap();
}

type Measurement<'a> = (&'static str, usize, Box<dyn Fn() + 'a>);

fn measurements(path: &Path, round: u64) -> Vec<Measurement<'_>> {
    // SplitMix64 (Steele et al. 2014) of a counter: rows in no order the system could see.
    let order = move |pattern: u64| {
        let mix = move |at: u64| {
            let word = (at + (pattern << 32) + (round << 48)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (word ^ (word >> 27)) % ROWS
        };
        (0..RANDOM as u64).map(mix).collect::<Vec<u64>>()
    };
    let (a, b, c, d) = (order(1), order(2), order(3), order(4));
    let whole = ROWS as usize * ROW_BYTES;
    let part = RANDOM * ROW_BYTES;
    vec![
        (
            "in order: read() of 1 MiB, as dd",
            whole,
            Box::new(|| plain_in_order(path)),
        ),
        (
            "in order: gather",
            whole,
            Box::new(|| gather(path, &(0..ROWS).collect::<Vec<_>>(), 0)),
        ),
        (
            "random rows: pread on 1 thread",
            part,
            Box::new(move || plain(path, &a, 1)),
        ),
        (
            "random rows: pread on 32 threads, as fio at depth 32",
            part,
            Box::new(move || plain(path, &b, 32)),
        ),
        (
            "random rows: gather",
            part,
            Box::new(move || gather(path, &c, 0)),
        ),
        (
            "random rows: gather, will_need 4 batches ahead",
            part,
            Box::new(move || gather(path, &d, AHEAD)),
        ),
    ]
}

fn plain_in_order(path: &Path) {
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    while file.read(&mut buffer).unwrap() > 0 {}
}

fn plain(path: &Path, rows: &[u64], threads: usize) {
    let file = File::open(path).unwrap();
    std::thread::scope(|scope| {
        for part in rows.chunks(rows.len() / threads) {
            let file = &file;
            scope.spawn(move || {
                let mut buffer = [0; ROW_BYTES];
                for row in part {
                    file.read_exact_at(&mut buffer, row * ROW_BYTES as u64)
                        .unwrap();
                }
            });
        }
    });
}

fn gather(path: &Path, rows: &[u64], ahead: usize) {
    let shard = Shard::new(path.into(), Dtype::U16, ROWS * SEQ_LEN as u64);
    let corpus = Corpus::new(vec![Domain::new("cold".into(), vec![shard]).unwrap()], None);
    let picks: Vec<Pick> = rows.iter().map(|&row| Pick { domain: 0, row }).collect();
    let batches: Vec<&[Pick]> = picks.chunks(BATCH).collect();
    let mut out = vec![0i64; BATCH * SEQ_LEN];
    if ahead > 0 {
        for batch in &batches[..ahead] {
            corpus.will_need(batch, SEQ_LEN);
        }
    }
    for (number, batch) in batches.iter().enumerate() {
        if let Some(next) = batches.get(number + ahead).filter(|_| ahead > 0) {
            corpus.will_need(next, SEQ_LEN);
        }
        corpus
            .gather(batch, SEQ_LEN, &mut out[..batch.len() * SEQ_LEN])
            .unwrap();
    }
}

fn drop_cache(path: &Path) {
    let file = File::open(path).unwrap();
    // SAFETY: no memory is passed; the descriptor is open.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}
