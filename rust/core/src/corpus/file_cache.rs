//! An LRU cache of file handles, so that a corpus of any number of shards stays within a process's descriptor limit.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, TryLockError};

use crate::error::{Error, Result};
use crate::source::Source;

/// Handles kept open. Systems commonly allow a process 1024 descriptors, macOS 256, and other code needs some.
const CAPACITY: usize = 128;
/// `EMFILE` and `ENFILE` on Linux and macOS: no descriptors left for this process, or for any.
#[cfg(unix)]
const NO_DESCRIPTORS: [i32; 2] = [24, 23];
/// `ERROR_TOO_MANY_OPEN_FILES`.
#[cfg(windows)]
const NO_DESCRIPTORS: [i32; 1] = [4];

#[derive(Debug, Default)]
pub(crate) struct FileCache {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Number of requests; the least recently used file has the lowest number.
    clock: u64,
    open: HashMap<u64, (u64, Arc<Source>)>,
}

impl FileCache {
    /// Returns file number `key`; calls `open` if it is not in the cache.
    ///
    /// Never waits: while another thread holds the lock, the file is opened for this call alone. So a process that was
    /// forked at such a moment, and has no such thread, does not hang.
    ///
    /// # Errors
    ///
    /// As `open`. If no descriptor is left, the cache is emptied and `open` called again.
    pub(crate) fn get(&self, key: u64, open: impl Fn() -> Result<Source>) -> Result<Arc<Source>> {
        if let Some(source) = self.find(key) {
            return Ok(source);
        }
        let source = Arc::new(match open() {
            Err(Error::Io { source, .. })
                if source
                    .raw_os_error()
                    .is_some_and(|code| NO_DESCRIPTORS.contains(&code)) =>
            {
                self.with(|inner| inner.open.clear());
                open()?
            }
            other => other?,
        });
        self.with(|inner| {
            if inner.open.len() >= CAPACITY {
                let oldest = inner.open.iter().min_by_key(|(_, (used, _))| *used);
                if let Some(key) = oldest.map(|(&key, _)| key) {
                    inner.open.remove(&key);
                }
            }
            inner.open.insert(key, (inner.clock, Arc::clone(&source)));
        });
        Ok(source)
    }

    /// Returns file number `key` if it is open and no other thread holds the lock.
    pub(crate) fn find(&self, key: u64) -> Option<Arc<Source>> {
        let found = self.with(|inner| {
            inner.clock += 1;
            let clock = inner.clock;
            inner.open.get_mut(&key).map(|(used, source)| {
                *used = clock;
                Arc::clone(source)
            })
        });
        found.flatten()
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> Option<T> {
        match self.inner.try_lock() {
            Ok(mut inner) => Some(act(&mut inner)),
            Err(TryLockError::Poisoned(poisoned)) => Some(act(&mut poisoned.into_inner())),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn the_files_used_last_stay_open() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"content").unwrap();
        let opened = Cell::new(0);
        let open = || {
            opened.set(opened.get() + 1);
            Source::open(&path)
        };
        let cache = FileCache::default();
        for key in 0..CAPACITY as u64 {
            cache.get(key, open).unwrap();
        }
        cache.get(0, open).unwrap();
        assert_eq!(opened.get(), CAPACITY);
        cache.get(CAPACITY as u64, open).unwrap(); // 1 goes, 0 was used since
        assert_eq!(cache.inner.lock().unwrap().open.len(), CAPACITY);
        cache.get(0, open).unwrap();
        assert_eq!(opened.get(), CAPACITY + 1);
        cache.get(1, open).unwrap();
        assert_eq!(opened.get(), CAPACITY + 2);
    }

    #[test]
    fn no_descriptor_left_lets_all_files_go() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"content").unwrap();
        let cache = FileCache::default();
        cache.get(0, || Source::open(&path)).unwrap();
        let refused = Cell::new(false);
        let open = || {
            if refused.replace(true) {
                return Source::open(&path);
            }
            Err(Error::Io {
                path: path.clone(),
                source: std::io::Error::from_raw_os_error(NO_DESCRIPTORS[0]),
            })
        };
        assert_eq!(cache.get(1, open).unwrap().len(), 7);
        assert_eq!(cache.inner.lock().unwrap().open.len(), 1);
    }

    #[test]
    fn a_cache_in_use_is_not_waited_for() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"content").unwrap();
        let cache = FileCache::default();
        let held = cache.inner.lock().unwrap();
        assert_eq!(cache.get(0, || Source::open(&path)).unwrap().len(), 7);
        drop(held);
    }
}
