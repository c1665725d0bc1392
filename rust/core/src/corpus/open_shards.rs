//! Opens many shards: a few small reads each, on several threads, because most of the time is spent waiting for the disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::shard::Shard;
use crate::error::Result;
use crate::formats::mds::ShardEntry;
use crate::tokens::Dtype;

/// Threads: enough to hide the latency of a network file system. Waiting threads cost almost nothing.
const THREADS: usize = 8;
/// Smallest number of files for which another thread pays.
const FILES_PER_THREAD: usize = 32;

/// A file to open, with its description.
#[derive(Clone, Debug)]
pub enum ShardRequest {
    /// See [`Shard::open`].
    Bin(PathBuf, Option<Dtype>),
    /// See [`Shard::open_mds`].
    Mds(PathBuf, ShardEntry),
}

impl ShardRequest {
    fn open(self, cache: &Arc<Path>) -> Result<Shard> {
        match self {
            Self::Bin(path, dtype) => Shard::open(&path, dtype),
            Self::Mds(path, entry) => Shard::open_mds(&path, entry, cache),
        }
    }
}

/// Opens all files and returns the shards in the order of `requests`.
///
/// # Errors
///
/// As [`Shard::open`] and [`Shard::open_mds`]; of several errors the one for the first file.
pub fn open_shards(requests: Vec<ShardRequest>, cache: &Arc<Path>) -> Result<Vec<Shard>> {
    on_threads(requests, |request| request.open(cache))
}

/// Returns [`Shard::ends_sha256`] of each shard.
///
/// # Errors
///
/// As [`Shard::ends_sha256`]; of several errors the one for the first file.
pub fn ends_sha256(shards: &[Shard]) -> Result<Vec<[u8; 32]>> {
    on_threads(shards.iter().collect(), Shard::ends_sha256)
}

fn on_threads<A: Send, B: Send>(
    items: Vec<A>,
    act: impl Fn(A) -> Result<B> + Sync,
) -> Result<Vec<B>> {
    let count = items.len();
    let threads = count.div_ceil(FILES_PER_THREAD).clamp(1, THREADS);
    if threads == 1 {
        return items.into_iter().map(act).collect();
    }
    let share = count.div_ceil(threads);
    let mut items = items.into_iter();
    let parts: Vec<Vec<A>> = (0..threads)
        .map(|_| items.by_ref().take(share).collect())
        .collect();
    // A part stops once an earlier part has failed, because the first error is returned.
    let failed = AtomicUsize::new(usize::MAX);
    let run = |(number, part): (usize, Vec<A>)| {
        let mut done = Vec::with_capacity(part.len());
        for item in part {
            if failed.load(Ordering::Relaxed) < number {
                break;
            }
            done.push(act(item).inspect_err(|_| {
                failed.fetch_min(number, Ordering::Relaxed);
            })?);
        }
        Ok(done)
    };
    let results: Vec<Result<Vec<B>>> = std::thread::scope(|scope| {
        let running: Vec<_> = parts
            .into_iter()
            .enumerate()
            .map(|part| scope.spawn(|| run(part)))
            .collect();
        running
            .into_iter()
            .map(|part| {
                part.join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
            .collect()
    });
    let mut all = Vec::with_capacity(count);
    for part in results {
        all.extend(part?);
    }
    Ok(all)
}
