//! What several tests of damaged files share.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};

/// Replaces the byte of `file` at `place`.
pub(crate) fn overwrite(mut file: &File, place: u64, value: u8) {
    file.seek(SeekFrom::Start(place)).unwrap();
    file.write_all(&[value]).unwrap();
}
