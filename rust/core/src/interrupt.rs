//! Interruption of reads that take seconds: the decompression of a whole shard.

use std::cell::RefCell;
use std::rc::Rc;

use crate::error::{Error, Result};

/// Uncompressed bytes between two checks: a few hundredths of a second of zstd.
pub(crate) const INTERVAL: u64 = 8 << 20;

type Check = Rc<dyn Fn() -> bool>;

thread_local! {
    static CHECK: RefCell<Option<Check>> = const { RefCell::new(None) };
}

/// Runs `act`. Reads of whole shards in it, on this thread, end with [`Error::Interrupted`] soon after `is_stopped` returns
/// true.
pub fn interruptible<T>(is_stopped: impl Fn() -> bool + 'static, act: impl FnOnce() -> T) -> T {
    /// Restores the check of the caller, also after a panic.
    struct Restore(Option<Check>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CHECK.set(self.0.take());
        }
    }
    let _restore = Restore(CHECK.replace(Some(Rc::new(is_stopped))));
    act()
}

/// Returns [`Error::Interrupted`] if the reads of this thread must end.
pub(crate) fn check() -> Result<()> {
    // A clone, because the check may run any code, such as a signal handler that reads.
    let check = CHECK.with_borrow(Clone::clone);
    match check {
        Some(is_stopped) if is_stopped() => Err(Error::Interrupted),
        _ => Ok(()),
    }
}
