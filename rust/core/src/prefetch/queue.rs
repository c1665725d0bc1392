//! What lies between the batches taken and those planned: one thread at a time has it.

use std::collections::VecDeque;
use std::ops::Range;
use std::panic::resume_unwind;

use super::{Batch, Shared};
use crate::corpus::Pick;
use crate::error::Result;
use crate::sampler::{Sampler, SamplerState};
use crate::tokens::Token;

/// Rows that are asked of a disk beyond those being read: `cargo bench -p drpruning-benches --bench cold` reaches with
/// 4 batches of 32 what 32 threads reach.
const ASKED_ROWS: usize = 128;
/// Batches that are asked for after one that had to be waited for. Those that were asked for in time are not waited
/// for, so that this alone does not tell that all is in memory by now.
pub(super) const ASKED_BATCHES: usize = 64;

/// What lies between the batches taken and those planned.
#[derive(Debug)]
pub(super) struct Queue<T> {
    /// Has planned all of `ready` and of `planned`.
    pub(super) sampler: Sampler,
    pub(super) ready: VecDeque<Ready<T>>,
    /// Batches after those, of which the thread reads the first.
    pub(super) planned: VecDeque<Planned>,
    /// For how many batches the system is asked ahead.
    pub(super) asking: usize,
    /// Memory to read into.
    pub(super) spare: Vec<Vec<T>>,
    /// How often what lay ahead was thrown away: a batch that was being read meanwhile is too.
    pub(super) thrown: u64,
    /// An error was taken: its batch is read again when it is asked for, by when a file may be back.
    pub(super) halted: bool,
    /// The thread is to end.
    pub(super) stop: bool,
}

#[derive(Debug)]
pub(super) struct Planned {
    pub(super) before: SamplerState,
    pub(super) picks: Vec<Pick>,
    /// The system was asked for its rows.
    pub(super) asked: bool,
}

#[derive(Debug)]
pub(super) struct Ready<T> {
    pub(super) before: SamplerState,
    pub(super) picks: Vec<Pick>,
    /// What came of reading; a panic is passed on to whoever takes the batch.
    pub(super) tokens: std::thread::Result<Result<Vec<T>>>,
}

impl<T: Token> Queue<T> {
    /// Nothing ahead of `sampler` yet.
    pub(super) fn new(sampler: Sampler) -> Self {
        Self {
            sampler,
            ready: VecDeque::new(),
            planned: VecDeque::new(),
            asking: 0,
            spare: Vec::new(),
            thrown: 0,
            halted: false,
            stop: false,
        }
    }

    /// The state after the last batch taken.
    pub(super) fn taken(&self) -> SamplerState {
        let ready = self.ready.front().map(|ready| &ready.before);
        let planned = || self.planned.front().map(|planned| &planned.before);
        ready
            .or_else(planned)
            .cloned()
            .unwrap_or_else(|| self.sampler.state())
    }

    /// Plans a batch more.
    fn plan(&mut self, part: &Range<usize>) {
        let before = self.sampler.state();
        let mut picks = Vec::new();
        self.sampler.next_batch(&mut picks);
        picks.truncate(part.end);
        picks.drain(..part.start);
        self.planned.push_back(Planned {
            before,
            picks,
            asked: false,
        });
    }

    /// The first of what is planned, which is planned now if nothing is.
    pub(super) fn first(&mut self, part: &Range<usize>) -> &Planned {
        if self.planned.is_empty() {
            self.plan(part);
        }
        &self.planned[0]
    }

    /// What the system should be asked for before the first of what is planned is read: batches beyond it.
    pub(super) fn ask(&mut self, part: &Range<usize>) -> Vec<Vec<Pick>> {
        if self.asking == 0 {
            return Vec::new();
        }
        self.asking -= 1;
        let beyond = ASKED_ROWS / part.len().clamp(1, ASKED_ROWS);
        while self.planned.len() <= beyond {
            self.plan(part);
        }
        let new = self.planned.iter_mut().skip(1).filter(|next| !next.asked);
        new.map(|next| {
            next.asked = true;
            next.picks.clone()
        })
        .collect()
    }

    /// Keeps memory to read into, of which no more than `depth` are needed.
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
                self.sampler.go_back(ready.before);
                self.throw_away(depth);
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

    pub(super) fn throw_away(&mut self, depth: usize) {
        for ready in std::mem::take(&mut self.ready) {
            if let Ok(Ok(memory)) = ready.tokens {
                self.keep(memory, depth);
            }
        }
        self.planned.clear();
        self.thrown += 1;
        self.halted = false;
    }

    /// The next batch, where no thread reads.
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

    /// Number and rows of the next batch, which `read` has read.
    fn read_by(
        &mut self,
        shared: &Shared<T>,
        read: impl FnOnce(&[Pick]) -> Result<()>,
    ) -> Result<(u64, Vec<Pick>)> {
        // After an error it is still planned, and is read again.
        read(&self.first(&shared.part).picks)?;
        let done = self.planned.pop_front().expect("a batch is planned");
        Ok((done.before.step, done.picks))
    }
}
