//! Files that are read at an offset, with errors that name the file.
//!
//! Files are read with `pread` and never memory-mapped: a mapped file that is truncated kills the process with SIGBUS,
//! while a short read is an error. `docs/corpus.md` has the figures behind that choice.

use std::fs::{File, Metadata, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Change, CorpusProblem, Error, Result};
use crate::tokens::Dtype;

/// Size, modification time and inode: they identify a version of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    pub(crate) len: u64,
    /// Seconds and nanoseconds; on Windows zero and units of 100 ns.
    pub(crate) modified: (i64, i64),
    /// Device and inode; on Windows zero and the time of creation, which a replaced file does not share.
    pub(crate) inode: (u64, u64),
}

impl Stamp {
    #[cfg(unix)]
    fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self {
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            inode: (metadata.dev(), metadata.ino()),
        }
    }

    #[cfg(windows)]
    fn of(metadata: &Metadata) -> Self {
        use std::os::windows::fs::MetadataExt;
        Self {
            len: metadata.len(),
            modified: (0, metadata.last_write_time() as i64),
            inode: (0, metadata.creation_time()),
        }
    }
}

/// Number of names of an open file; a deleted one has none.
#[cfg(unix)]
fn links(metadata: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::nlink(metadata)
}

/// Windows counts no links here: an open file that was deleted or replaced is read on, with the bytes it had.
#[cfg(windows)]
fn links(_metadata: &Metadata) -> u64 {
    0
}

/// Reads from an offset, without a shared position: `pread`, or a read with an offset on Windows.
pub(crate) fn read_at(file: &File, out: &mut [u8], offset: u64) -> std::io::Result<usize> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_at(file, out, offset);
    #[cfg(windows)]
    return std::os::windows::fs::FileExt::seek_read(file, out, offset);
}

/// A regular file open for reading.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    file: File,
    stamp: Stamp,
    /// False on file systems that count no links, where a count of zero does not mean "deleted".
    linked: bool,
    /// End of the last read.
    end: AtomicU64,
}

impl Source {
    /// Opens a file and never waits: a pipe without a writer would block in `open`.
    ///
    /// # Errors
    ///
    /// [`Error::Corpus`] if there is no such file or it is none (a folder, pipe, socket or device), [`Error::Io`] if it
    /// cannot be opened.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(
            &mut options,
            libc::O_NONBLOCK | libc::O_NOCTTY,
        );
        let file = options.open(path).map_err(|source| failed(path, source))?;
        let metadata = file.metadata().map_err(|source| failed(path, source))?;
        if !metadata.is_file() {
            return Err(problem(path, CorpusProblem::NotAFile));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            stamp: Stamp::of(&metadata),
            linked: links(&metadata) > 0,
            end: AtomicU64::new(u64::MAX),
        })
    }

    /// Opens a file and checks that it is still the version of `stamp`.
    ///
    /// # Errors
    ///
    /// As [`Self::open`], and [`Error::Corpus`] if it is another file, has another size, or was modified.
    pub(crate) fn open_again(path: &Path, stamp: &Stamp) -> Result<Self> {
        let source = Self::open(path)?;
        source.compare(stamp, &source.stamp)?;
        Ok(source)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Returns the size of the file in bytes when it was opened.
    pub(crate) fn len(&self) -> u64 {
        self.stamp.len
    }

    pub(crate) fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Checks that the file exists and has not changed since it was opened. One `fstat`: all earlier reads are then of
    /// that version.
    ///
    /// # Errors
    ///
    /// [`Error::Corpus`] if it was truncated, grown, modified or, except on Windows, deleted or replaced.
    pub(crate) fn unchanged(&self) -> Result<()> {
        let metadata = self
            .file
            .metadata()
            .map_err(|source| failed(&self.path, source))?;
        if self.linked && links(&metadata) == 0 {
            return Err(self.changed(Change::Removed));
        }
        self.compare(&self.stamp, &Stamp::of(&metadata))
    }

    fn compare(&self, expected: &Stamp, found: &Stamp) -> Result<()> {
        if found.len != expected.len {
            return Err(self.changed(Change::Size {
                expected: expected.len,
                found: found.len,
            }));
        }
        if found.inode != expected.inode {
            return Err(self.changed(Change::Replaced));
        }
        if found.modified != expected.modified {
            return Err(self.changed(Change::Modified {
                expected: expected.modified,
                found: found.modified,
            }));
        }
        Ok(())
    }

    /// Fills `out` with the bytes from `offset`.
    ///
    /// # Errors
    ///
    /// [`Error::Corpus`] if the file ends before that, [`Error::Io`] if the system cannot read it.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let expected = offset.saturating_add(out.len() as u64);
        self.end.store(expected, Ordering::Relaxed);
        let mut done = 0;
        while done < out.len() {
            match read_at(&self.file, &mut out[done..], offset + done as u64) {
                Ok(0) => {
                    let found = offset + done as u64;
                    let problem = CorpusProblem::Truncated { expected, found };
                    return Err(self::problem(&self.path, problem));
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(&self.path, error)),
            }
        }
        Ok(())
    }

    /// Fills `out` as [`Self::read`] if all bytes are in the page cache. If not, requests them from the system, so that
    /// many requests are in flight at once, and returns false.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    pub(crate) fn read_from_memory(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        use std::os::fd::AsRawFd;
        if self.end.load(Ordering::Relaxed) == offset {
            // Sequential access: the readahead of the system applies.
            return self.read(offset, out).map(|()| true);
        }
        let (file, at) = (self.file.as_raw_fd(), offset as libc::off_t);
        let place = libc::iovec {
            iov_base: out.as_mut_ptr().cast(),
            iov_len: out.len(),
        };
        // SAFETY: `place` is the memory of `out`, which is borrowed for the call; the descriptor is open.
        let count = unsafe { libc::preadv2(file, &raw const place, 1, at, libc::RWF_NOWAIT) };
        if usize::try_from(count) == Ok(out.len()) {
            self.end.store(offset + out.len() as u64, Ordering::Relaxed);
            return Ok(true);
        }
        if count < 0 && std::io::Error::last_os_error().kind() != ErrorKind::WouldBlock {
            // The file system does not support the call; any other error occurs again in `read`.
            return self.read(offset, out).map(|()| true);
        }
        self.will_need(offset, out.len());
        Ok(false)
    }

    /// Requests these bytes from the system, which reads them in the background.
    #[cfg(all(target_os = "linux", target_pointer_width = "64"))]
    pub(crate) fn will_need(&self, offset: u64, len: usize) {
        use std::os::fd::AsRawFd;
        let (file, at, len) = (
            self.file.as_raw_fd(),
            offset as libc::off_t,
            len as libc::off_t,
        );
        // SAFETY: no memory is passed; the descriptor is open. The call is a hint, so its result does not matter.
        unsafe { libc::posix_fadvise(file, at, len, libc::POSIX_FADV_WILLNEED) };
    }

    /// Does nothing on other systems.
    #[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
    pub(crate) fn will_need(&self, _offset: u64, _len: usize) {}

    /// Reads and waits on other systems, which have no such call.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    #[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
    pub(crate) fn read_from_memory(&self, offset: u64, out: &mut [u8]) -> Result<bool> {
        self.read(offset, out).map(|()| true)
    }

    /// Returns the `N` bytes from `offset`.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub(crate) fn array<const N: usize>(&self, offset: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read(offset, &mut bytes)?;
        Ok(bytes)
    }

    /// Checks the dtype `found` in the file against the dtype that the user expects; `place` names where it was found.
    ///
    /// # Errors
    ///
    /// [`Error::Corpus`] if they differ.
    pub(crate) fn expect_dtype(
        &self,
        expected: Option<Dtype>,
        found: Dtype,
        place: &'static str,
    ) -> Result<()> {
        match expected {
            Some(expected) if expected != found => {
                let problem = CorpusProblem::Dtype {
                    expected,
                    found,
                    place,
                };
                Err(self::problem(&self.path, problem))
            }
            _ => Ok(()),
        }
    }

    /// Returns the error for content that does not follow the format; `problem` names the expected and found values.
    pub(crate) fn problem(&self, problem: String) -> Error {
        self::problem(&self.path, CorpusProblem::Format(problem))
    }

    fn changed(&self, change: Change) -> Error {
        self::problem(&self.path, CorpusProblem::Changed(change))
    }
}

pub(crate) fn problem(path: &Path, problem: CorpusProblem) -> Error {
    Error::Corpus {
        path: path.to_owned(),
        problem,
    }
}

pub(crate) fn failed(path: &Path, source: std::io::Error) -> Error {
    match source.raw_os_error() {
        Some(code) if MISSING.contains(&code) => problem(path, CorpusProblem::Missing),
        Some(code) if NOT_A_FILE.contains(&code) => problem(path, CorpusProblem::NotAFile),
        Some(code) if INVALID_PATH.contains(&code) => {
            problem(path, CorpusProblem::InvalidPath(source.kind()))
        }
        _ => Error::Io {
            path: path.to_owned(),
            source,
        },
    }
}

#[cfg(unix)]
const MISSING: [i32; 2] = [libc::ENOENT, libc::ENOTDIR];
/// A socket, or a device without a driver.
#[cfg(unix)]
const NOT_A_FILE: [i32; 2] = [libc::ENXIO, libc::ENODEV];
/// No file can have such a path: symbolic links in a circle, a name that is too long.
#[cfg(unix)]
const INVALID_PATH: [i32; 2] = [libc::ELOOP, libc::ENAMETOOLONG];
/// `ERROR_FILE_NOT_FOUND` and `ERROR_PATH_NOT_FOUND`.
#[cfg(windows)]
const MISSING: [i32; 2] = [2, 3];
/// `ERROR_INVALID_FUNCTION`, of a device.
#[cfg(windows)]
const NOT_A_FILE: [i32; 1] = [1];
/// `ERROR_INVALID_NAME` and `ERROR_FILENAME_EXCED_RANGE`.
#[cfg(windows)]
const INVALID_PATH: [i32; 2] = [123, 206];
