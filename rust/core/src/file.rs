//! Reading at an offset, with errors that name the file.
//!
//! Files are read with `pread` and never mapped: a file that is cut short while it is mapped kills the process with
//! SIGBUS, while a short read can be told to the reader.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// A regular file open for reading.
#[derive(Debug)]
pub(crate) struct Source {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Source {
    /// # Errors
    ///
    /// [`Error::Corpus`] if there is no such file or it is a folder, [`Error::Io`] if it cannot be opened.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|source| failed(path, source))?;
        let metadata = file.metadata().map_err(|source| failed(path, source))?;
        if !metadata.is_file() {
            return Err(problem(
                path,
                "expected a file, found something else".into(),
            ));
        }
        Ok(Self {
            path: path.to_owned(),
            file,
            len: metadata.len(),
        })
    }

    /// Bytes in the file when it was opened.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// [`Error::Corpus`] if the file ends before that, [`Error::Io`] if the system cannot read it.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let wanted = offset.saturating_add(out.len() as u64);
        let mut done = 0;
        while done < out.len() {
            match self.file.read_at(&mut out[done..], offset + done as u64) {
                Ok(0) => {
                    let found = offset + done as u64;
                    return Err(self.problem(format!(
                        "the file is cut short: expected at least {wanted} bytes, found no more than {found}"
                    )));
                }
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(&self.path, error)),
            }
        }
        Ok(())
    }

    pub(crate) fn problem(&self, problem: String) -> Error {
        Error::Corpus {
            path: self.path.clone(),
            problem,
        }
    }
}

pub(crate) fn problem(path: &Path, problem: String) -> Error {
    Error::Corpus {
        path: path.to_owned(),
        problem,
    }
}

fn failed(path: &Path, source: std::io::Error) -> Error {
    if source.kind() == ErrorKind::NotFound {
        return problem(path, "expected a file, found none".into());
    }
    Error::Io {
        path: path.to_owned(),
        source,
    }
}
