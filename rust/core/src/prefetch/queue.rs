//! The queue of prefetched and planned batches. A mutex guards it.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::resume_unwind;

use super::{Batch, Shared};
use crate::corpus::Pick;
use crate::error::Result;
use crate::sampler::{Sampler, SamplerState};
use crate::tokens::Token;

/// Rows requested from the disk beyond those being read. With 4 batches of 32, `cargo bench -p drpruning-benches --bench
/// cold_cache` reaches the throughput of 32 threads.
const REQUESTED_ROWS: usize = 128;
/// Number of batches requested in advance after a batch that had to wait for the disk. Batches requested in time do not
/// wait, so the absence of a wait alone does not show that all rows are in memory.
pub(super) const REQUESTED_BATCHES: usize = 64;

/// The batches between the last one taken and the last one planned.
#[derive(Debug)]
pub(super) struct Queue<T> {
    /// The sampler after the last planned batch.
    pub(super) sampler: Sampler,
    pub(super) ready: VecDeque<Ready<T>>,
    /// Batches after the ready ones; the thread reads the first.
    pub(super) planned: VecDeque<Planned>,
    /// Number of batches for which rows are still requested in advance.
    pub(super) requesting: usize,
    /// Memory for later batches.
    pub(super) spare: Vec<Vec<T>>,
    /// Number of times that the queue was discarded; a batch whose read began before is discarded too.
    pub(super) discarded: u64,
    /// An error was returned: its batch is read again when the caller requests it, when the file may exist again.
    pub(super) halted: bool,
    /// The thread must end.
    pub(super) stop: bool,
}

#[derive(Debug)]
pub(super) struct Planned {
    pub(super) before: SamplerState,
    pub(super) picks: Vec<Pick>,
    /// Its rows were requested from the system.
    pub(super) requested: bool,
}

#[derive(Debug)]
pub(super) struct Ready<T> {
    pub(super) before: SamplerState,
    pub(super) picks: Vec<Pick>,
    /// The tokens, an error, or a panic, which resumes in the thread that takes the batch.
    pub(super) tokens: std::thread::Result<Result<Vec<T>>>,
}

impl<T: Token> Queue<T> {
    /// An empty queue.
    pub(super) fn new(sampler: Sampler) -> Self {
        Self {
            sampler,
            ready: VecDeque::new(),
            planned: VecDeque::new(),
            requesting: 0,
            spare: Vec::new(),
            discarded: 0,
            halted: false,
            stop: false,
        }
    }

    /// Returns the state after the last batch taken.
    pub(super) fn taken(&self) -> SamplerState {
        let ready = self.ready.front().map(|ready| &ready.before);
        let planned = || self.planned.front().map(|planned| &planned.before);
        ready
            .or_else(planned)
            .cloned()
            .unwrap_or_else(|| self.sampler.state())
    }

    /// Plans one more batch.
    fn plan(&mut self, part: &Range<usize>) {
        let before = self.sampler.state();
        let mut picks = Vec::new();
        self.sampler.next_batch(&mut picks);
        picks.truncate(part.end);
        picks.drain(..part.start);
        self.planned.push_back(Planned {
            before,
            picks,
            requested: false,
        });
    }

    /// Returns the first planned batch; plans one if there is none.
    pub(super) fn first(&mut self, part: &Range<usize>) -> &Planned {
        if self.planned.is_empty() {
            self.plan(part);
        }
        &self.planned[0]
    }

    /// Returns the rows to request from the system before the first planned batch is read: those of the next batches.
    pub(super) fn request(&mut self, part: &Range<usize>) -> Vec<Vec<Pick>> {
        if self.requesting == 0 {
            return Vec::new();
        }
        self.requesting -= 1;
        let beyond = REQUESTED_ROWS / part.len().clamp(1, REQUESTED_ROWS);
        while self.planned.len() <= beyond {
            self.plan(part);
        }
        let new = self
            .planned
            .iter_mut()
            .skip(1)
            .filter(|next| !next.requested);
        new.map(|next| {
            next.requested = true;
            next.picks.clone()
        })
        .collect()
    }

    /// Keeps memory for a later batch, at most `depth` times.
    pub(super) fn keep(&mut self, memory: Vec<T>, depth: usize) {
        if memory.capacity() > 0 && self.spare.len() < depth {
            self.spare.push(memory);
        }
    }

    pub(super) fn take(&mut self, depth: usize) -> Option<Result<Batch<T>>> {
        let ready = self.ready.pop_front()?;
        let step = ready.before.step;
        let tokens = match ready.tokens {
            Ok(Ok(tokens)) => tokens,
            failed => {
                self.sampler.rewind(ready.before);
                self.discard(depth);
                self.halted = true;
                match failed {
                    Ok(failed) => return Some(failed.map(|_| unreachable!("tokens are above"))),
                    Err(panic) => resume_unwind(panic),
                }
            }
        };
        Some(Ok(Batch {
            step,
            picks: ready.picks,
            tokens,
        }))
    }

    pub(super) fn discard(&mut self, depth: usize) {
        for ready in std::mem::take(&mut self.ready) {
            if let Ok(Ok(memory)) = ready.tokens {
                self.keep(memory, depth);
            }
        }
        self.planned.clear();
        self.discarded += 1;
        self.halted = false;
    }

    /// Reads the next batch on the calling thread.
    pub(super) fn read_now(&mut self, shared: &Shared<T>, mut tokens: Vec<T>) -> Result<Batch<T>> {
        let (step, picks) = self.read_by(shared, |picks| {
            let waited = shared.corpus.gather_vec(picks, shared.seq_len, &mut tokens);
            waited.map(drop)
        })?;
        Ok(Batch {
            step,
            picks,
            tokens,
        })
    }

    pub(super) fn read_into(
        &mut self,
        shared: &Shared<T>,
        out: &mut [T],
    ) -> Result<(u64, Vec<Pick>)> {
        self.read_by(shared, |picks| {
            shared.corpus.gather(picks, shared.seq_len, out)
        })
    }

    /// Calls `read` for the next batch and returns its number and rows.
    fn read_by(
        &mut self,
        shared: &Shared<T>,
        read: impl FnOnce(&[Pick]) -> Result<()>,
    ) -> Result<(u64, Vec<Pick>)> {
        // After an error the batch is still planned and is read again.
        read(&self.first(&shared.part).picks)?;
        let done = self.planned.pop_front().expect("a batch is planned");
        Ok((done.before.step, done.picks))
    }
}
