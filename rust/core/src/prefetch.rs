//! Batches read ahead of their use, on a thread of their own.
//!
//! The thread plans and reads up to `depth` batches more than were taken. Each keeps the state that the sampler had
//! before it, so what is ahead can be taken back: new weights apply to the very next batch, states are those of batches
//! taken, and an error comes with the batch it belongs to.
//!
//! While rows are not in the page cache, the system is asked for those of some batches beyond the one that is read, so
//! that a disk has enough to do at once. Rows that are in it cost no call for this.
//!
//! Memory comes from the thread that takes batches, which also lets it go, and is not set before it is read into.

mod queue;

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::corpus::{Corpus, Pick};
use crate::error::{ArgumentError, Result};
use crate::sampler::{Sampler, SamplerState};
use crate::tokens::Token;
use crate::weights::Weights;
use queue::{ASKED_BATCHES, Planned, Queue, Ready};

/// A part of a batch, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<T> {
    /// Number of the batch in the stream.
    pub step: u64,
    /// Its rows.
    pub picks: Vec<Pick>,
    /// Their tokens, row after row.
    pub tokens: Vec<T>,
}

/// A sampler and the corpus it draws from; batches come out read.
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
    /// Which rows of each batch are read.
    part: Range<usize>,
    depth: usize,
    queue: Mutex<Queue<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Thread {
    handle: JoinHandle<()>,
    /// A forked process inherits the handle, not the thread.
    process: u32,
}

impl Thread {
    fn runs(&self, process: u32) -> bool {
        self.process == process && !self.handle.is_finished()
    }
}

impl<T: Token> Prefetch<T> {
    /// Batches of `sampler`, of which rows `part` are read from `corpus`, up to `depth` batches queue. With 0 each is
    /// read by whoever takes it. The thread starts with the first batch taken.
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
            }),
            worker: Mutex::default(),
        })
    }

    /// The next batch, or `None` if it is not there within `patience`; nothing has changed then. After an error the
    /// next batch is the one that failed, which is read again.
    ///
    /// # Errors
    ///
    /// Those of [`Corpus::gather`].
    pub fn next(&self, patience: Duration) -> Option<Result<Batch<T>>> {
        let memory = Vec::with_capacity(self.shared.tokens());
        self.next_for(memory, patience)
    }

    /// [`next`](Self::next), with `memory` for a batch to come.
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
        drop(queue); // Who is woken needs it.
        self.shared.changed.notify_all();
        batch
    }

    /// Like [`next`](Self::next), with the tokens in `out`. What was read ahead is copied; with a depth of 0 it is read
    /// into `out`, and waited for.
    ///
    /// # Errors
    ///
    /// Those of [`Corpus::gather`].
    ///
    /// # Panics
    ///
    /// If `out` has not a place for each token.
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

    /// What to save: the state after the last batch taken.
    #[must_use]
    pub fn state(&self) -> SamplerState {
        self.shared.lock().taken()
    }

    /// The mixture of the next batch.
    #[must_use]
    pub fn weights(&self) -> Weights {
        self.shared.lock().sampler.weights().clone()
    }

    /// Draws by `weights` from the next batch on. What was read ahead is thrown away.
    ///
    /// # Errors
    ///
    /// Those of [`Sampler::set_weights`]; nothing has changed then.
    pub fn set_weights(&self, weights: Weights) -> Result<()> {
        self.change(|sampler| sampler.set_weights(weights))
    }

    /// Goes on from `state`. What was read ahead is thrown away.
    ///
    /// # Errors
    ///
    /// Those of [`Sampler::restore`]; nothing has changed then.
    pub fn restore(&self, state: SamplerState) -> Result<()> {
        self.change(|sampler| sampler.restore(state))
    }

    /// Passes over `steps` batches. What was read ahead is thrown away.
    ///
    /// # Errors
    ///
    /// Those of [`Sampler::skip`]; nothing has changed then.
    pub fn skip(&self, steps: u64) -> Result<()> {
        self.change(|sampler| sampler.skip(steps))
    }

    /// The sampler's [`peek`](Sampler::peek).
    ///
    /// # Errors
    ///
    /// Those of [`Sampler::peek`].
    pub fn peek(&self, step: u64) -> Result<Vec<Pick>> {
        let sampler = self.shared.lock().sampler.clone();
        let mut batch = Vec::new();
        sampler.peek(step, &mut batch)?;
        Ok(batch)
    }

    /// Ends the thread, once it has read what it is reading, and starts none until [`resume`](Self::resume): for the
    /// moment in which a process forks. What is ahead stays there, in both processes.
    pub fn pause(&self) {
        let mut worker = self.worker();
        worker.paused = true;
        Self::end(&self.shared, &mut worker);
    }

    /// Lets the next batch start a thread again.
    pub fn resume(&self) {
        self.worker().paused = false;
    }

    fn change(&self, change: impl FnOnce(&mut Sampler) -> Result<()>) -> Result<()> {
        let mut queue = self.shared.lock();
        let (taken, planned) = (queue.taken(), queue.sampler.state());
        queue.sampler.go_back(taken);
        if let Err(error) = change(&mut queue.sampler) {
            queue.sampler.go_back(planned);
            return Err(error);
        }
        queue.throw_away(self.shared.depth);
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Whether there is, or will be, a thread that reads ahead; a system may refuse one.
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
                .spawn(move || shared.read_ahead())
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
            // The thread catches what reading may panic with, and has nothing else to say.
            drop(thread.handle.join());
            shared.lock().stop = false;
        }
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        let worker = self
            .worker
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        Self::end(&self.shared, worker);
    }
}

impl<T> Shared<T> {
    /// In the part of a batch that is read.
    fn tokens(&self) -> usize {
        self.part.len() * self.seq_len
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Token> Shared<T> {
    /// What the thread does.
    fn read_ahead(&self) {
        let mut queue = self.lock();
        while !queue.stop {
            // After a batch that failed comes that batch again, once someone asks for it.
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
            let asked = queue.ask(&self.part);
            let picks = queue.first(&self.part).picks.clone();
            let mut memory = queue.spare.pop().unwrap_or_default();
            let thrown = queue.thrown;
            drop(queue);
            let read = catch_unwind(AssertUnwindSafe(|| {
                for picks in asked {
                    self.corpus.will_need(&picks, self.seq_len);
                }
                self.corpus.gather_vec(&picks, self.seq_len, &mut memory)
            }));
            queue = self.lock();
            if matches!(read, Ok(Ok(true))) {
                queue.asking = ASKED_BATCHES;
            }
            if queue.thrown != thrown {
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
