//! Mutated corpus files: each is read, or is an error that names the file; no panic, no overflow.
//!
//! `DRPRUNING_CASES=200000 cargo test --release --config profile.release.overflow-checks=true -p drpruning-core --test
//! mutated -- --nocapture` runs more of them; `DRPRUNING_SEED` changes them, `DRPRUNING_READERS="flat,llm.c"` chooses.

use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use drpruning_core::formats::mds::{Encoding, ShardEntry};
use drpruning_core::formats::megatron;
use drpruning_core::{Corpus, Domain, Dtype, Error, Pick, Shard};
use tempfile::TempDir;

/// Numbers of a file's structure that are at the edge of some type.
const EDGES: [u64; 12] = [
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    65_535,
    0x7FFF_FFFF,
    0xFFFF_FFFF,
    0x7FFF_FFFF_FFFF_FFFF,
    u64::MAX,
];

/// The generator of Marsaglia, "Xorshift RNGs" (2003).
struct Source(u64);

impl Source {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }

    /// Changes one to three places of `bytes`.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(3) {
            // Structure is at the start of these formats.
            let near = if self.below(2) == 0 { 64 } else { usize::MAX };
            let at = self.below(bytes.len().min(near));
            match self.below(7) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = self.below(256) as u8,
                2 => bytes.truncate(at),
                3 => {
                    let end = (at + 1 + self.below(16)).min(bytes.len());
                    drop(bytes.drain(at..end));
                }
                4 => {
                    let end = (at + self.below(64)).min(bytes.len());
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
                _ => {
                    let width = [1, 2, 4, 8][self.below(4)];
                    let edge = EDGES[self.below(EDGES.len())].wrapping_sub(self.below(3) as u64);
                    for (place, byte) in edge.to_le_bytes()[..width].iter().enumerate() {
                        if let Some(old) = bytes.get_mut(at + place) {
                            *old = *byte;
                        }
                    }
                }
            }
        }
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/corpus")
        .join(name)
}

/// Reads the tokens of a shard, at most 4,096.
fn read(shard: Shard) -> Result<(), Error> {
    let tokens = shard.tokens().min(4096) as usize;
    if tokens > 0 {
        let corpus = Corpus::new(vec![Domain::new("d".into(), vec![shard])?], None);
        corpus.gather(
            &[Pick { domain: 0, row: 0 }],
            tokens,
            &mut vec![0i64; tokens],
        )?;
    }
    Ok(())
}

/// Mutates `good`, the content of `path`, and reads it. Prints and returns the number of cases that were read.
fn campaign(name: &str, path: &Path, good: &[u8], act: impl Fn(u64) -> Result<(), Error>) -> u64 {
    let chosen = std::env::var("DRPRUNING_READERS")
        .map_or(true, |names| names.split(',').any(|chosen| chosen == name));
    let cases = if chosen {
        number("DRPRUNING_CASES", 200)
    } else {
        1
    };
    let mut valid = 0;
    let mut source = Source(0x9E37_79B9_7F4A_7C15 ^ number("DRPRUNING_SEED", 1));
    let mut file = File::create(path).unwrap(); // open for all cases, which takes a quarter of the time off
    for case in 0..cases {
        let mut bytes = good.to_vec();
        if case > 0 {
            source.mutate(&mut bytes);
        }
        file.rewind().unwrap();
        file.write_all(&bytes).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        match act(bytes.len() as u64) {
            Ok(()) => valid += 1,
            Err(Error::Corpus { .. }) => {}
            Err(error) => panic!("{name}, case {case}: {error:?}"),
        }
    }
    println!("| {name} | {cases} | {valid} | {} |", cases - valid);
    valid
}

#[test]
fn mutated_mds_shards_are_read_or_refused() {
    let entry =
        |samples, bytes, zstd_bytes, columns: &[Option<u32>], token_column, encoding| ShardEntry {
            samples,
            bytes,
            zstd_bytes,
            columns: columns.to_vec(),
            token_column,
            encoding,
        };
    let (u16, i32) = (Encoding::Shaped(Dtype::U16), Encoding::Shaped(Dtype::I32));
    let plain = Encoding::Plain(Dtype::U16);
    for (name, entry) in [
        ("bytes", entry(5, 376, None, &[None], 0, plain)),
        ("shaped", entry(12, 1_077, None, &[None], 0, i32)),
        (
            "typed",
            entry(12, 1_851, None, &[None], 0, Encoding::Typed(None)),
        ),
        ("shaped-ragged", entry(5, 965, None, &[None], 0, u16)),
        (
            "columns-ragged",
            entry(5, 1_118, None, &[None, None, Some(8)], 1, plain),
        ),
        (
            "columns-ragged-zstd",
            entry(5, 1_065, Some(0), &[None, None], 1, plain),
        ),
    ] {
        let folder = TempDir::new().unwrap();
        let cache: Arc<Path> = folder.path().join("cache").into();
        let file = if entry.zstd_bytes.is_some() {
            "shard.00000.mds.zstd"
        } else {
            "shard.00000.mds"
        };
        let good = std::fs::read(golden("mds").join(name).join(file)).unwrap();
        let path = folder.path().join(file);
        let valid = campaign(name, &path, &good, |length| {
            // An index that agrees with the size of the file, so that the reader gets to its content.
            let entry = match entry.zstd_bytes {
                Some(_) => ShardEntry {
                    zstd_bytes: Some(length),
                    ..entry.clone()
                },
                None => ShardEntry {
                    bytes: length,
                    ..entry.clone()
                },
            };
            Shard::verify_mds(&path, &entry)?;
            let result = Shard::open_mds(&path, entry, &cache).and_then(read);
            // Cases within one tick of the file system's clock would share their copy; and millions of copies remain.
            let _ = std::fs::remove_dir_all(&cache);
            result
        });
        assert!(valid > 0, "{name}: the golden file itself is read");
    }
}

#[test]
fn mutated_megatron_indices_are_read_or_refused() {
    let folder = TempDir::new().unwrap();
    let bin = folder.path().join("a.bin");
    std::fs::write(&bin, [0; 24]).unwrap();
    let mut index = b"MMIDIDX\0\0".to_vec();
    index.extend(1u64.to_le_bytes());
    index.push(8);
    index.extend(3u64.to_le_bytes());
    index.extend(4u64.to_le_bytes());
    index.extend([4i32, 4, 4].iter().flat_map(|length| length.to_le_bytes()));
    index.extend([0i64, 8, 16].iter().flat_map(|offset| offset.to_le_bytes()));
    index.extend(
        [0i64, 1, 2, 3]
            .iter()
            .flat_map(|document| document.to_le_bytes()),
    );
    let valid = campaign(
        "Megatron .idx",
        &folder.path().join("a.idx"),
        &index,
        |_| {
            megatron::verify(&bin)?;
            read(Shard::open(&bin, None)?)
        },
    );
    assert!(valid > 0);
}

#[test]
fn mutated_flat_files_are_read_or_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.bin");
    let mut header = [0i32; 256];
    header[..3].copy_from_slice(&[20_240_520, 1, 100]);
    let mut good: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    good.extend([0; 200]);
    assert!(campaign("llm.c", &path, &good, |_| read(Shard::open(&path, None)?)) > 0);
    assert!(
        campaign("flat", &path, &[1; 64], |_| read(Shard::open(
            &path,
            Some(Dtype::I64)
        )?)) > 0
    );
}
