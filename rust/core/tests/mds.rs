//! MDS shards that mosaicml-streaming wrote, and what becomes of them when any byte is changed.

mod common;

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use drpruning_core::formats::mds::{Encoding, ShardEntry};
use drpruning_core::{Corpus, Domain, Dtype, Error, Pick, Shard};
use tempfile::TempDir;

/// Folders in `tests/golden/corpus/mds`, and the entry of their first shard in `index.json`.
fn cases() -> Vec<(&'static str, ShardEntry)> {
    let entry = |samples, bytes, columns: &[Option<u32>], token_column, encoding| ShardEntry {
        samples,
        bytes,
        zstd_bytes: None,
        columns: columns.to_vec(),
        token_column,
        encoding,
    };
    let (u16, i32) = (Encoding::Shaped(Dtype::U16), Encoding::Shaped(Dtype::I32));
    let plain = Encoding::Plain(Dtype::U16);
    vec![
        ("bytes", entry(5, 376, &[None], 0, plain)),
        ("fixed", entry(12, 638, &[Some(32)], 0, plain)),
        ("shaped", entry(12, 1_077, &[None], 0, i32)),
        ("typed", entry(12, 1_851, &[None], 0, Encoding::Typed(None))),
        (
            "columns",
            entry(12, 972, &[Some(16), None, Some(32)], 2, plain),
        ),
        ("bytes-ragged", entry(5, 945, &[None], 0, plain)),
        ("shaped-ragged", entry(5, 965, &[None], 0, u16)),
        (
            "columns-ragged",
            entry(5, 1_118, &[None, None, Some(8)], 1, plain),
        ),
    ]
}

/// The golden shard, where it may be changed.
fn copy(folder: &TempDir, name: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/corpus/mds");
    let path = folder.path().join(name);
    std::fs::copy(golden.join(name).join("shard.00000.mds"), &path).unwrap();
    path
}

fn read(path: &Path, entry: &ShardEntry, cache: &Arc<Path>) -> Result<Vec<i64>, Error> {
    let shard = Shard::open_mds(path, entry.clone(), cache)?;
    let mut out = vec![0; shard.tokens() as usize];
    let length = out.len();
    let corpus = Corpus::new(vec![Domain::new("d".into(), vec![shard])?], None);
    corpus.gather(&[Pick { domain: 0, row: 0 }], length, &mut out)?;
    Ok(out)
}

#[test]
fn golden_shards_are_read() {
    let folder = TempDir::new().unwrap();
    let cache: Arc<Path> = folder.path().join("cache").into();
    for (name, entry) in cases() {
        let found = read(&copy(&folder, name), &entry, &cache).unwrap();
        let modulus = match entry.encoding {
            Encoding::Plain(Dtype::U16) | Encoding::Shaped(Dtype::U16) => 60_000,
            _ => 1 << 20,
        };
        assert!(
            found.into_iter().eq((0..).map(|i| i * 7919 % modulus).take(
                if name.ends_with("ragged") {
                    362
                } else {
                    16 * entry.samples as usize
                }
            )),
            "{name}"
        );
    }
}

/// Threads that open one shard write one copy of it; also for `-Zsanitizer=thread`.
#[test]
fn threads_share_a_copy() {
    let folder = TempDir::new().unwrap();
    let cache: Arc<Path> = folder.path().join("cache").into();
    let (name, entry) = cases().pop().unwrap();
    let path = copy(&folder, name);
    let found = std::thread::scope(|scope| {
        let threads = [(); 6].map(|()| scope.spawn(|| read(&path, &entry, &cache).unwrap()));
        threads.map(|thread| thread.join().unwrap())
    });
    assert!(
        found
            .iter()
            .all(|tokens| tokens.len() == 362 && *tokens == found[0])
    );
    assert_eq!(std::fs::read_dir(&cache).unwrap().count(), 1);
}

/// Every byte of the head and of the first sample, with every value: an error, or the same tokens except those of the
/// changed bytes.
#[test]
fn every_changed_byte_is_noticed_or_harmless() {
    let folder = TempDir::new().unwrap();
    let cache: Arc<Path> = folder.path().join("cache").into();
    for (name, entry) in cases() {
        let path = copy(&folder, name);
        let good = std::fs::read(&path).unwrap();
        let word = |at: usize| u32::from_le_bytes(good[at..at + 4].try_into().unwrap()) as usize;
        let (head, first, second) = (4 + 4 * (word(0) + 1), word(4), word(8));
        let whole = read(&path, &entry, &cache).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        // A ragged shard is materialized in the cache; reading it sequentially without that finds the same tokens.
        let in_place = !name.ends_with("ragged");
        for place in (0..head).chain(first..second) {
            for value in 0..=255 {
                if value == good[place] || (!in_place && value % 5 > 0) {
                    continue;
                }
                common::overwrite(&file, place as u64, value);
                let verified = Shard::verify_mds(&path, &entry);
                match (in_place && verified.is_ok()).then(|| read(&path, &entry, &cache)) {
                    Some(Ok(found)) => {
                        assert_eq!(found.len(), whole.len(), "{name} byte {place}");
                        let changed = found.iter().zip(&whole).filter(|(a, b)| a != b).count();
                        assert!(
                            changed <= usize::from(place >= first),
                            "{name} byte {place}"
                        );
                    }
                    Some(Err(error)) => assert!(matches!(error, Error::Corpus { .. }), "{error}"),
                    None => {}
                }
                match verified {
                    Ok(tokens) => {
                        assert!(place >= first, "{name} byte {place} of the head is {value}");
                        assert_eq!(tokens, whole.len() as u64, "{name} byte {place}");
                    }
                    Err(error) => assert!(matches!(error, Error::Corpus { .. }), "{error}"),
                }
            }
            common::overwrite(&file, place as u64, good[place]);
        }
    }
}

#[test]
fn claims_are_held_against_the_file_before_memory_is_taken() {
    let folder = TempDir::new().unwrap();
    let cache: Arc<Path> = folder.path().join("cache").into();
    let path = copy(&folder, "fixed");
    let good = cases().remove(1).1;
    for (entry, expected) in [
        (
            ShardEntry {
                samples: u64::MAX,
                ..good.clone()
            },
            "room for all offsets",
        ),
        (
            ShardEntry {
                samples: 0,
                ..good.clone()
            },
            "at least 1 sample",
        ),
        (
            ShardEntry {
                bytes: u64::MAX,
                ..good.clone()
            },
            "expected 18446744073709551615 bytes",
        ),
        (
            ShardEntry {
                columns: vec![Some(u32::MAX)],
                ..good.clone()
            },
            "exactly 4294967295 bytes",
        ),
        (
            ShardEntry {
                columns: vec![Some(u32::MAX); 9],
                ..good
            },
            "exactly 38654705655 bytes",
        ),
    ] {
        let error = read(&path, &entry, &cache).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}
