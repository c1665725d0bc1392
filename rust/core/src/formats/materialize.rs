//! Materialized shards: flat copies, in a cache folder, of shards that cannot be read in place.
//!
//! The name of a copy is a hash of path, size and time of the shard, column and encoding, which determine its content. A
//! copy contains the 8 bytes `drptok01`, the number of tokens as a u64, and the tokens. It is written to a temporary path,
//! synced and atomically renamed, so a file with its final name is complete. The writer holds a lock, for which other
//! processes wait.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::mds::{Encoding, Samples, ShardEntry};
use crate::error::{Error, Result};
use crate::source::{Source, Stamp};
use crate::tokens::Dtype;

const MAGIC: &[u8; 8] = b"drptok01";
/// Offset of the tokens in a materialized file.
pub(crate) const TOKENS_AT: u64 = 16;

/// Returns the materialized copy of `shard`, which it writes to `cache` if it does not exist, and its number of tokens.
pub(crate) fn materialized(
    shard: &Source,
    entry: &ShardEntry,
    dtype: Dtype,
    cache: &Path,
) -> Result<(Source, u64)> {
    let target = cache.join(name(shard, entry));
    let partial = target.with_extension("partial");
    loop {
        if let Some(found) = complete(&target, dtype) {
            return Ok(found);
        }
        std::fs::create_dir_all(cache).map_err(at(cache))?;
        let file = open_locked(&partial).map_err(at(&partial))?;
        // The previous holder of the lock renamed or removed the file: look for the copy again.
        if !is_at(&file, &partial) {
            continue;
        }
        let done = match complete(&target, dtype) {
            Some(_) => std::fs::remove_file(&partial).map_err(at(&partial)),
            None => write(&file, &partial, shard, entry)
                .and_then(|()| std::fs::rename(&partial, &target).map_err(at(&target))),
        };
        if let Err(error) = done {
            // The rest of a failed attempt would only waste disk space.
            let _ = std::fs::remove_file(&partial);
            return Err(error);
        }
    }
}

/// Returns whether `file` is the file at `path`.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(file), Ok(path)) => inode(file) == inode(path),
        _ => false,
    }
}

/// On Windows, [`open_locked`] opened it by this path, and no other process has opened it since.
#[cfg(windows)]
fn is_at(_file: &File, _path: &Path) -> bool {
    true
}

fn name(shard: &Source, entry: &ShardEntry) -> String {
    let path = std::path::absolute(shard.path()).unwrap_or_else(|_| shard.path().to_owned());
    let mut hash = Sha256::new();
    hash.update(path.as_os_str().as_encoded_bytes());
    hash.update(identity(shard.stamp(), entry));
    let digest = hash.finalize();
    let (high, low) = digest[..16].split_at(8);
    let word = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0u64, |word, &byte| word << 8 | u64::from(byte))
    };
    format!("{:016x}{:016x}.tokens", word(high), word(low))
}

/// Returns the text that identifies the content of a copy. The text is written out, because existing copies are found by
/// its hash: renaming a field must not change it.
fn identity(stamp: Stamp, entry: &ShardEntry) -> String {
    let Stamp {
        len,
        modified,
        inode,
    } = stamp;
    let ShardEntry {
        samples,
        bytes,
        zstd_bytes,
        columns,
        token_column,
        encoding,
    } = entry;
    let encoding = match encoding {
        Encoding::Plain(dtype) => format!("Plain({dtype:?})"),
        Encoding::Shaped(dtype) => format!("Shaped({dtype:?})"),
        Encoding::Typed(dtype) => format!("Typed({dtype:?})"),
    };
    format!(
        "\0Stamp {{ len: {len}, modified: {modified:?}, inode: {inode:?} }}\0ShardEntry {{ samples: {samples}, bytes: \
         {bytes}, zstd_bytes: {zstd_bytes:?}, columns: {columns:?}, chosen: {token_column}, encoding: {encoding} }}"
    )
}

fn complete(path: &Path, dtype: Dtype) -> Option<(Source, u64)> {
    let source = Source::open(path).ok()?;
    let head: [u8; TOKENS_AT as usize] = source.array(0).ok()?;
    let (magic, count) = head.split_at(8);
    let tokens = u64::from_le_bytes(count.try_into().ok()?);
    let bytes = tokens
        .checked_mul(dtype.size() as u64)?
        .checked_add(TOKENS_AT)?;
    (magic == MAGIC && bytes == source.len()).then_some((source, tokens))
}

fn write(file: &File, path: &Path, shard: &Source, entry: &ShardEntry) -> Result<()> {
    file.set_len(0).map_err(at(path))?;
    let mut out = BufWriter::with_capacity(1 << 18, file);
    out.write_all(&[0; TOKENS_AT as usize]).map_err(at(path))?;
    let samples = Samples::open(shard, entry)?;
    let tokens = samples.walk(|tokens| out.write_all(tokens).map_err(at(path)))?;
    shard.unchanged()?;
    out.rewind().map_err(at(path))?;
    out.write_all(MAGIC).map_err(at(path))?;
    out.write_all(&tokens.to_le_bytes()).map_err(at(path))?;
    out.flush().map_err(at(path))?;
    file.sync_all().map_err(at(path))
}

/// Opens or creates a file for writing, and waits until no other process or thread writes it. The system releases the
/// lock with the handle.
#[cfg(unix)]
fn open_locked(path: &Path) -> std::io::Result<File> {
    use std::os::fd::AsRawFd;
    let mut options = OpenOptions::new();
    let file = options
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)?;
    loop {
        // SAFETY: the descriptor is open for as long as `file` lives.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } == 0 {
            return Ok(file);
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// On Windows the handle itself is the lock: others may rename or remove the file meanwhile, not open it.
#[cfg(windows)]
fn open_locked(path: &Path) -> std::io::Result<File> {
    use std::os::windows::fs::OpenOptionsExt;
    const FILE_SHARE_DELETE: u32 = 4;
    const ERROR_SHARING_VIOLATION: i32 = 32;
    loop {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        match options.share_mode(FILE_SHARE_DELETE).open(path) {
            Err(error) if error.raw_os_error() == Some(ERROR_SHARING_VIOLATION) => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            opened => return opened,
        }
    }
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path: PathBuf = path.to_owned();
    move |source| Error::Io {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name of a copy is a hash of this text: a change of the text makes every existing copy useless.
    #[test]
    fn the_identity_of_a_copy_is_fixed() {
        let stamp = Stamp {
            len: 9,
            modified: (1, 2),
            inode: (3, 4),
        };
        let entry = ShardEntry {
            samples: 5,
            bytes: 6,
            zstd_bytes: Some(7),
            columns: vec![None, Some(8)],
            token_column: 1,
            encoding: Encoding::Typed(Some(Dtype::U16)),
        };
        assert_eq!(
            identity(stamp, &entry),
            "\0Stamp { len: 9, modified: (1, 2), inode: (3, 4) }\0ShardEntry { samples: 5, bytes: 6, zstd_bytes: \
             Some(7), columns: [None, Some(8)], chosen: 1, encoding: Typed(Some(U16)) }"
        );
    }
}
