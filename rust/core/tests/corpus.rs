//! Reading rows: across shards, far into large files, and from files that are not what they were.

mod common;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use drpruning_core::formats::megatron::{Index, read_index, verify};
use drpruning_core::{
    Corpus, Domain, Dtype, Error, Pick, Shard, ShardRequest, ends_sha256, open_shards,
};
use proptest::prelude::*;
use tempfile::TempDir;

fn write(folder: &TempDir, name: &str, tokens: impl Iterator<Item = u16>) -> PathBuf {
    let path = folder.path().join(name);
    let bytes: Vec<u8> = tokens.flat_map(u16::to_le_bytes).collect();
    File::create(&path).unwrap().write_all(&bytes).unwrap();
    path
}

/// A domain whose token at place i is i, in shards of the given lengths.
fn counting(folder: &TempDir, lengths: &[u16]) -> Corpus {
    let mut start = 0;
    let mut shards = Vec::new();
    for (number, &length) in lengths.iter().enumerate() {
        let path = write(folder, &format!("{number}.bin"), start..start + length);
        shards.push(Shard::new(path, Dtype::U16, u64::from(length)));
        start += length;
    }
    Corpus::new(vec![Domain::new("counting".into(), shards).unwrap()], None)
}

fn row(corpus: &Corpus, row: u64, seq_len: usize) -> Result<Vec<i64>, Error> {
    let mut out = vec![-1i64; seq_len];
    corpus.gather(&[Pick { domain: 0, row }], seq_len, &mut out)?;
    Ok(out)
}

fn problem<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    match result {
        Err(error @ Error::Corpus { .. }) => error.to_string(),
        other => panic!("expected a corpus error, got {other:?}"),
    }
}

fn resize(path: &Path, bytes: u64) {
    OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn rows_run_across_shards(lengths in prop::collection::vec(0u16..50, 1..8), seq_len in 1usize..60) {
        let folder = TempDir::new().unwrap();
        let corpus = counting(&folder, &lengths);
        let rows = corpus.rows(seq_len)[0];
        prop_assert_eq!(rows, lengths.iter().map(|&n| u64::from(n)).sum::<u64>() / seq_len as u64);
        for number in 0..rows {
            let start = number as i64 * seq_len as i64;
            prop_assert!(row(&corpus, number, seq_len).unwrap().into_iter().eq(start..start + seq_len as i64));
        }
    }
}

#[test]
fn memory_is_used_without_a_copy() {
    let folder = TempDir::new().unwrap();
    let corpus = counting(&folder, &[30, 30]);
    let picks = [1, 0, 4].map(|row| Pick { domain: 0, row });
    let mut out = vec![-1i64; 100];
    let memory = out.as_ptr();
    corpus.gather_vec(&picks, 12, &mut out).unwrap();
    assert!(out.iter().copied().eq((12..24).chain(0..12).chain(48..60)));
    assert_eq!(out.as_ptr(), memory);
    assert!(!corpus.gather_vec(&[], 12, &mut out).unwrap(), "no wait");
    assert_eq!(out, []);
    resize(&folder.path().join("1.bin"), 10);
    problem(corpus.gather_vec(&picks, 12, &mut out));
    assert_eq!(out, []);
}

#[test]
fn more_shards_than_stay_open_are_read() {
    let folder = TempDir::new().unwrap();
    let corpus = counting(&folder, &[2; 600]);
    for _ in 0..2 {
        assert!(row(&corpus, 0, 1200).unwrap().into_iter().eq(0..1200));
    }
}

/// More shards than stay open, so that threads replace each other's files; also for `-Zsanitizer=thread`.
#[test]
fn threads_open_and_read_one_corpus() {
    let folder = TempDir::new().unwrap();
    let cache: Arc<Path> = folder.path().join("cache").into();
    drop(counting(&folder, &[20; 300]));
    let request = |number| {
        ShardRequest::Bin(
            folder.path().join(format!("{number}.bin")),
            Some(Dtype::U16),
        )
    };
    let shards = open_shards((0..300).map(request).collect(), &cache).unwrap();
    let sums = ends_sha256(&shards).unwrap();
    assert!(
        shards
            .iter()
            .zip(&sums)
            .all(|(shard, sum)| shard.ends_sha256().unwrap() == *sum)
    );
    let corpus = Corpus::new(vec![Domain::new("d".into(), shards).unwrap()], None);
    let picks: Vec<Pick> = (0..200)
        .map(|number| Pick {
            domain: 0,
            row: number * 83 % 200,
        })
        .collect();
    std::thread::scope(|scope| {
        for threads in 1..4 {
            let (corpus, picks) = (&corpus, &picks);
            scope.spawn(move || {
                let mut out = vec![-1i64; 200 * 30];
                corpus.gather_on(threads, picks, 30, &mut out).unwrap();
                let expected = picks
                    .iter()
                    .flat_map(|pick| pick.row as i64 * 30..(pick.row as i64 + 1) * 30);
                assert!(out.into_iter().eq(expected), "{threads} threads");
            });
        }
    });
    drop(corpus);
    std::fs::remove_file(folder.path().join("150.bin")).unwrap();
    let requests = (0..300).map(request).collect();
    assert!(
        open_shards(requests, &cache)
            .unwrap_err()
            .to_string()
            .contains("150.bin")
    );
}

#[test]
fn ids_outside_the_vocabulary_are_named() {
    let folder = TempDir::new().unwrap();
    let first = write(&folder, "first.bin", 0..10);
    let second = write(&folder, "second.bin", [3, 100, 4].into_iter());
    let shards = vec![
        Shard::new(first, Dtype::U16, 10),
        Shard::new(second, Dtype::U16, 3),
    ];
    let corpus = Corpus::new(vec![Domain::new("d".into(), shards).unwrap()], Some(100));
    assert_eq!(row(&corpus, 0, 11).unwrap()[10], 3);
    let message = problem(row(&corpus, 0, 13));
    assert!(
        message.contains(
            "second.bin: expected token ids below the vocabulary's 100, found 100 at token 1"
        ),
        "{message}"
    );

    let negative = write(&folder, "negative.bin", [1, u16::MAX].into_iter());
    let shards = vec![Shard::new(negative, Dtype::I16, 2)];
    let corpus = Corpus::new(vec![Domain::new("d".into(), shards).unwrap()], None);
    assert!(
        problem(row(&corpus, 0, 2))
            .contains("expected token ids of 0 and above, found -1 at token 1")
    );
}

/// A file that has been read from and is then changed, in each way there is, is an error from then on.
#[test]
fn a_file_changed_between_reads_is_an_error() {
    type Change = fn(&Path);
    let cases: Vec<(Change, &str)> = vec![
        (
            |path| resize(path, 1_900),
            "expected 2000 bytes, found 1900",
        ),
        (
            |path| resize(path, 2_100),
            "expected 2000 bytes, found 2100",
        ),
        // Windows keeps a deleted file for those who have it open, and refuses to replace it.
        #[cfg(unix)]
        (
            |path| std::fs::remove_file(path).unwrap(),
            "deleted or replaced",
        ),
        #[cfg(unix)]
        (
            |path| {
                let other = path.with_extension("other");
                std::fs::copy(path, &other).unwrap();
                std::fs::rename(other, path).unwrap();
            },
            "deleted or replaced",
        ),
        (
            |path| {
                let file = OpenOptions::new().write(true).open(path).unwrap();
                common::overwrite(&file, 1_999, 1);
                file.set_modified(SystemTime::now() + Duration::from_secs(9))
                    .unwrap();
            },
            "expected it last written at",
        ),
    ];
    for (change, expected) in cases {
        let folder = TempDir::new().unwrap();
        let corpus = counting(&folder, &[1_000]);
        row(&corpus, 9, 100).unwrap();
        change(&folder.path().join("0.bin"));
        for number in [9, 0] {
            let message = problem(row(&corpus, number, 100));
            assert!(
                message.contains("0.bin: the file changed while it was in use")
                    && message.contains(expected),
                "{message}"
            );
        }
    }
}

#[test]
fn a_file_of_another_size_or_none_is_an_error() {
    for (bytes, found) in [
        (Some(1_998), "found 1998 bytes"),
        (Some(2_002), "found 2002 bytes"),
        (None, "found none"),
    ] {
        let folder = TempDir::new().unwrap();
        let corpus = counting(&folder, &[1_000]);
        let path = folder.path().join("0.bin");
        match bytes {
            Some(bytes) => resize(&path, bytes),
            None => std::fs::remove_file(&path).unwrap(),
        }
        let message = problem(row(&corpus, 0, 100));
        assert!(
            message.contains("0.bin: expected") && message.contains(found),
            "{message}"
        );
    }
}

#[test]
fn places_beyond_four_billion_are_read() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("sparse.bin");
    let tokens = 1u64 << 40;
    let mut file = File::create(&path).unwrap();
    if file.set_len(2 * tokens).is_err() {
        return; // A file system without sparse files this large has no such corpus either.
    }
    std::io::Seek::seek(&mut file, std::io::SeekFrom::End(-4)).unwrap();
    file.write_all(&[1, 0, 2, 0]).unwrap();
    drop(file);
    let shard = Shard::new(path, Dtype::U16, tokens);
    let corpus = Corpus::new(vec![Domain::new("d".into(), vec![shard]).unwrap()], None);
    assert_eq!(row(&corpus, tokens / 4 - 1, 4).unwrap(), [0, 0, 1, 2]);
}

#[test]
fn token_counts_that_overflow_are_an_error() {
    let shards = vec![
        Shard::new("a.bin".into(), Dtype::U8, 1 << 62),
        Shard::new("b.bin".into(), Dtype::U8, 1 << 62),
    ];
    assert!(problem(Domain::new("d".into(), shards)).contains("b.bin"));
}

/// An index for documents of 3, 0 and 2 `uint16` tokens, and its `.bin`.
fn indexed(folder: &TempDir) -> (PathBuf, Vec<u8>) {
    let bin = write(folder, "indexed.bin", 10..15);
    let mut bytes = b"MMIDIDX\0\0".to_vec();
    bytes.extend(1u64.to_le_bytes());
    bytes.push(8);
    bytes.extend([3u64, 4].into_iter().flat_map(u64::to_le_bytes));
    bytes.extend([3i32, 0, 2].into_iter().flat_map(i32::to_le_bytes));
    bytes.extend(
        [0i64, 6, 6, 0, 1, 2, 3]
            .into_iter()
            .flat_map(i64::to_le_bytes),
    );
    std::fs::write(bin.with_extension("idx"), &bytes).unwrap();
    (bin, bytes)
}

#[test]
fn an_index_is_read() {
    let folder = TempDir::new().unwrap();
    let (bin, _) = indexed(&folder);
    let expected = Index {
        dtype: Dtype::U16,
        tokens: 5,
        documents: 3,
        modes: false,
    };
    assert_eq!(read_index(&bin).unwrap(), expected);
    assert_eq!(verify(&bin).unwrap(), expected);
}

/// Whatever single byte is changed, the index is refused or means the same: as many tokens of the same size.
#[test]
fn every_changed_byte_is_noticed_or_harmless() {
    let folder = TempDir::new().unwrap();
    let (bin, good) = indexed(&folder);
    let index = OpenOptions::new()
        .write(true)
        .open(bin.with_extension("idx"))
        .unwrap();
    for (place, &byte) in good.iter().enumerate() {
        for value in 0..=255 {
            common::overwrite(&index, place as u64, value);
            for result in [read_index(&bin), verify(&bin)] {
                match result {
                    Ok(index) => assert_eq!(
                        (index.tokens, index.dtype.size(), index.documents),
                        (5, 2, 3)
                    ),
                    Err(error) => assert!(matches!(error, Error::Corpus { .. }), "{error}"),
                }
            }
        }
        common::overwrite(&index, place as u64, byte);
    }
}

#[test]
fn an_index_of_any_other_length_is_refused() {
    let folder = TempDir::new().unwrap();
    let (bin, mut good) = indexed(&folder);
    let path = bin.with_extension("idx");
    for length in 0..good.len() {
        std::fs::write(&path, &good[..length]).unwrap();
        problem(read_index(&bin));
    }
    good.push(0);
    std::fs::write(&path, &good).unwrap();
    problem(read_index(&bin));
    std::fs::remove_file(&path).unwrap();
    assert!(problem(read_index(&bin)).contains("indexed.idx: expected a file, found none"));
}
