//! Prefetching: a background thread reads batches before they are used.
//!
//! The thread plans and reads up to `depth` batches beyond the last batch taken. Each prefetched batch keeps the state
//! that the sampler had before it, so prefetching is transparent: new weights take effect on the next batch, a saved
//! state is that of the last batch taken, and an error is returned with the batch that it belongs to.
//!
//! While rows are not in the page cache, the thread also requests the rows of some later batches from the operating
//! system (`posix_fadvise`), so that the disk has a full queue. Rows in the page cache cost no call.
//!
//! The thread that takes batches allocates and frees their memory, which is not initialised before it is read into.

mod queue;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::corpus::{Corpus, Pick, reserve};
use crate::error::{ArgumentError, Result};
use crate::interrupt::interruptible;
use crate::sampler::{Sampler, SamplerState};
use crate::tokens::Token;
use crate::weights::Weights;
use queue::{Planned, Queue, REQUESTED_BATCHES, Ready};

/// The rows of one rank in a batch, with their tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<T> {
    /// Number of the batch in the stream, from 0.
    pub step: u64,
    /// The rows.
    pub picks: Vec<Pick>,
    /// Their tokens, row after row.
    pub tokens: Vec<T>,
}

/// A sampler with the corpus that it draws from, and the batches that a thread has read in advance.
///
/// # Performance
///
/// [`next`](Self::next) passes a prefetched batch on without a copy; [`next_into`](Self::next_into) copies it. Memory is
/// that of `depth` batches. `docs/sampler.md` has figures.
///
/// # Examples
///
/// ```
/// # use drpruning_core::{Corpus, Domain, Draw, Dtype, Prefetch, Sampler, Shard, Weights};
/// # use std::time::Duration;
/// # let folder = tempfile::TempDir::new()?;
/// # let path = folder.path().join("web");
/// # std::fs::write(&path, [7u8; 1_000])?;
/// # let domain = Domain::new("web".into(), vec![Shard::new(path, Dtype::U8, 1_000)])?;
/// # let corpus = std::sync::Arc::new(Corpus::new(vec![domain], None));
/// # let names = vec!["web".to_string()];
/// # let weights = Weights::new(&names, &[1.0])?;
/// let (seq_len, batch_size, depth) = (10, 8, 2);
/// let sampler = Sampler::new(names, &corpus.rows(seq_len), &weights, batch_size, 17, Draw::Balanced)?;
/// let batches = Prefetch::<i32>::new(corpus, sampler, seq_len, 0..batch_size, depth)?;
/// let batch = loop {
///     if let Some(batch) = batches.next(Duration::from_secs(1)) {
///         break batch?;
///     }
/// };
/// assert_eq!(batch.tokens, [7; 80]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Prefetch<T> {
    shared: Arc<Shared<T>>,
    worker: Mutex<Worker>,
}

#[derive(Debug, Default)]
struct Worker {
    thread: Option<Thread>,
    paused: bool,
}

#[derive(Debug)]
struct Shared<T> {
    corpus: Arc<Corpus>,
    seq_len: usize,
    /// The rows of each batch that are read.
    part: Range<usize>,
    depth: usize,
    queue: Mutex<Queue<T>>,
    changed: Condvar,
    /// Nothing takes batches any more: the thread ends within its read.
    dropped: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Thread {
    handle: JoinHandle<()>,
    /// The process that started the thread: a forked process inherits the handle, not the thread.
    process: u32,
}

impl Thread {
    fn runs(&self, process: u32) -> bool {
        self.process == process && !self.handle.is_finished()
    }
}

impl<T: Token> Prefetch<T> {
    /// Reads rows `part` of each batch of `sampler` from `corpus`, up to `depth` batches in advance. With a depth of 0
    /// the caller of [`next`](Self::next) reads each batch. The thread starts when the first batch is taken.
    ///
    /// # Errors
    ///
    /// - [`ArgumentError::Zero`]: `seq_len` is 0.
    /// - [`ArgumentError::Part`]: `part` is not inside a batch.
    /// - [`ArgumentError::OtherRows`]: `sampler` does not draw the rows of `seq_len` tokens of `corpus`.
    pub fn new(
        corpus: Arc<Corpus>,
        sampler: Sampler,
        seq_len: usize,
        part: Range<usize>,
        depth: usize,
    ) -> Result<Self> {
        if seq_len == 0 {
            return Err(ArgumentError::Zero { name: "seq_len" }.into());
        }
        if part.start > part.end || part.end > sampler.batch_size() {
            return Err(ArgumentError::Part {
                start: part.start,
                end: part.end,
                batch_size: sampler.batch_size(),
            }
            .into());
        }
        let (drawn, rows) = (sampler.rows(), corpus.rows(seq_len));
        if drawn != rows {
            return Err(ArgumentError::OtherRows {
                sampler: drawn,
                corpus: rows,
            }
            .into());
        }
        Ok(Self {
            shared: Arc::new(Shared {
                corpus,
                seq_len,
                part,
                depth,
                queue: Mutex::new(Queue::new(sampler)),
                changed: Condvar::new(),
                dropped: Arc::default(),
            }),
            worker: Mutex::default(),
        })
    }

    /// Returns the next batch, or `None` if it is not read within `patience`; the call can then be repeated. After an
    /// error the next call reads the failed batch again.
    ///
    /// # Errors
    ///
    /// As [`Corpus::gather`], or [`Error::Memory`](crate::Error::Memory).
    pub fn next(&self, patience: Duration) -> Option<Result<Batch<T>>> {
        let mut memory = Vec::new();
        if let Err(error) = reserve(&mut memory, self.shared.tokens()) {
            return Some(Err(error));
        }
        self.next_for(memory, patience)
    }

    /// [`next`](Self::next), with `memory` for a later batch.
    fn next_for(&self, memory: Vec<T>, patience: Duration) -> Option<Result<Batch<T>>> {
        let threaded = self.shared.depth > 0 && self.start();
        let mut queue = self.shared.lock();
        if queue.ready.is_empty() && !threaded {
            return Some(queue.read_now(&self.shared, memory));
        }
        queue.keep(memory, self.shared.depth);
        if queue.ready.is_empty() {
            if std::mem::take(&mut queue.halted) {
                self.shared.changed.notify_all();
            }
            queue = self
                .shared
                .changed
                .wait_timeout_while(queue, patience, |queue| queue.ready.is_empty())
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        let batch = queue.take(self.shared.depth);
        drop(queue); // The thread that wakes up needs the lock.
        self.shared.changed.notify_all();
        batch
    }

    /// Like [`next`](Self::next), with the tokens in `out`. A prefetched batch is copied; with a depth of 0 the batch is
    /// read into `out`, without a time limit.
    ///
    /// # Errors
    ///
    /// As [`Corpus::gather`].
    ///
    /// # Panics
    ///
    /// If `out` is not as long as the part of a batch.
    pub fn next_into(&self, out: &mut [T], patience: Duration) -> Option<Result<(u64, Vec<Pick>)>> {
        assert_eq!(out.len(), self.shared.tokens());
        if self.shared.depth == 0 {
            let mut queue = self.shared.lock();
            if queue.ready.is_empty() {
                return Some(queue.read_into(&self.shared, out));
            }
        }
        let batch = self.next_for(Vec::new(), patience)?;
        Some(batch.map(|batch| {
            out.copy_from_slice(&batch.tokens);
            self.shared.lock().keep(batch.tokens, self.shared.depth);
            (batch.step, batch.picks)
        }))
    }

    /// Returns the state to save: the state after the last batch taken.
    #[must_use]
    pub fn state(&self) -> SamplerState {
        self.shared.lock().taken()
    }

    /// Returns the mixture of the next batch.
    #[must_use]
    pub fn weights(&self) -> Weights {
        self.shared.lock().sampler.weights().clone()
    }

    /// Sets the weights of the next batch and discards prefetched batches.
    ///
    /// # Errors
    ///
    /// As [`Sampler::set_weights`]; nothing is changed or discarded then.
    pub fn set_weights(&self, weights: Weights) -> Result<()> {
        self.change(|sampler| sampler.set_weights(weights))
    }

    /// Resumes from `state` and discards prefetched batches.
    ///
    /// # Errors
    ///
    /// As [`Sampler::restore`]; nothing is changed or discarded then.
    pub fn restore(&self, state: SamplerState) -> Result<()> {
        self.change(|sampler| sampler.restore(state))
    }

    /// Skips `steps` batches and discards prefetched batches.
    ///
    /// # Errors
    ///
    /// As [`Sampler::skip`]; nothing is changed or discarded then.
    pub fn skip(&self, steps: u64) -> Result<()> {
        self.change(|sampler| sampler.skip(steps))
    }

    /// Returns batch number `step`, see [`Sampler::peek`].
    ///
    /// # Errors
    ///
    /// As [`Sampler::peek`].
    pub fn peek(&self, step: u64) -> Result<Vec<Pick>> {
        let sampler = self.shared.lock().sampler.clone();
        let mut batch = Vec::new();
        sampler.peek(step, &mut batch)?;
        Ok(batch)
    }

    /// Stops the thread after its current read, and starts none until [`resume`](Self::resume). For use around a fork:
    /// prefetched batches remain available in both processes.
    pub fn pause(&self) {
        let mut worker = self.worker();
        worker.paused = true;
        Self::end(&self.shared, &mut worker);
    }

    /// Allows the next call of [`next`](Self::next) to start a thread again.
    pub fn resume(&self) {
        self.worker().paused = false;
    }

    fn change(&self, change: impl FnOnce(&mut Sampler) -> Result<()>) -> Result<()> {
        let mut queue = self.shared.lock();
        let (taken, planned) = (queue.taken(), queue.sampler.state());
        queue.sampler.rewind(taken);
        if let Err(error) = change(&mut queue.sampler) {
            queue.sampler.rewind(planned);
            return Err(error);
        }
        queue.discard(self.shared.depth);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Starts the thread if none runs. Returns false if the system refuses one.
    fn start(&self) -> bool {
        let mut worker = self.worker();
        let process = std::process::id();
        if !worker.paused
            && worker
                .thread
                .as_ref()
                .is_none_or(|thread| !thread.runs(process))
        {
            let shared = Arc::clone(&self.shared);
            let builder = Builder::new().name("drpruning-prefetch".into());
            worker.thread = builder
                .spawn(move || {
                    let dropped = Arc::clone(&shared.dropped);
                    interruptible(
                        move || dropped.load(Ordering::Relaxed),
                        || shared.prefetch(),
                    );
                })
                .ok()
                .map(|handle| Thread { handle, process });
        }
        worker.paused || worker.thread.is_some()
    }

    fn worker(&self) -> MutexGuard<'_, Worker> {
        self.worker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Prefetch<T> {
    fn end(shared: &Shared<T>, worker: &mut Worker) {
        let process = std::process::id();
        let thread = worker.thread.take();
        if let Some(thread) = thread.filter(|thread| thread.process == process) {
            shared.lock().stop = true;
            shared.changed.notify_all();
            // The thread catches panics of reads and stores them with the batch.
            drop(thread.handle.join());
            shared.lock().stop = false;
        }
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        self.shared.dropped.store(true, Ordering::Relaxed);
        let worker = self
            .worker
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        Self::end(&self.shared, worker);
    }
}

impl<T> Shared<T> {
    /// Returns the number of tokens in the part of a batch.
    fn tokens(&self) -> usize {
        self.part.len() * self.seq_len
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Token> Shared<T> {
    /// Runs on the thread: plans, requests and reads batches until the thread must stop.
    fn prefetch(&self) {
        let mut queue = self.lock();
        while !queue.stop {
            // A failed batch is read again only when it is requested again.
            let failed = |ready: &Ready<T>| !matches!(ready.tokens, Ok(Ok(_)));
            if queue.halted
                || queue.ready.len() >= self.depth
                || queue.ready.back().is_some_and(failed)
            {
                queue = self
                    .changed
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let requested = queue.request(&self.part);
            let picks = queue.first(&self.part).picks.clone();
            let mut memory = queue.spare.pop().unwrap_or_default();
            let discarded = queue.discarded;
            drop(queue);
            let read = catch_unwind(AssertUnwindSafe(|| {
                for picks in requested {
                    self.corpus.will_need(&picks, self.seq_len);
                }
                self.corpus.gather_vec(&picks, self.seq_len, &mut memory)
            }));
            queue = self.lock();
            if matches!(read, Ok(Ok(true))) {
                queue.requesting = REQUESTED_BATCHES;
            }
            if queue.discarded != discarded {
                queue.keep(memory, self.depth);
                continue;
            }
            if let Some(Planned { before, picks, .. }) = queue.planned.pop_front() {
                queue.ready.push_back(Ready {
                    before,
                    picks,
                    tokens: read.map(|read| read.map(|_| memory)),
                });
                drop(queue);
                self.changed.notify_all();
                queue = self.lock();
            }
        }
    }
}
