//! What both solvers are made of: the entries still positive, and sums and means that keep their digits.

/// The entries that are still positive, and the mass of those that were dropped.
pub(super) struct Support {
    pub(super) index: Vec<usize>,
    pub(super) p: Vec<f64>,
    pub(super) x: Vec<f64>,
    pub(super) outside: f64,
}

impl Support {
    pub(super) fn all(p: &[f64], x: impl Iterator<Item = f64>) -> Self {
        Self {
            index: (0..p.len()).collect(),
            p: p.to_vec(),
            x: x.collect(),
            outside: 0.0,
        }
    }

    pub(super) fn sum(&self, term: impl Fn(f64, f64) -> f64) -> f64 {
        sum_over(&self.p, &self.x, term)
    }

    /// The mean of `x` with weights `share(p)`, relative to the entry nearest to it and corrected once.
    ///
    /// A light entry far away from a heavy bulk would otherwise cost half the digits of the bulk.
    pub(super) fn mean(&self, share: impl Fn(f64) -> f64) -> Mean {
        let total = self.sum(|p, _| share(p));
        let rough = self.sum(|p, x| share(p) * x) / total;
        let nearer = |a: f64, &b: &f64| {
            if (b - rough).abs() < (a - rough).abs() {
                b
            } else {
                a
            }
        };
        let mut mean = Mean {
            entry: self.x.iter().fold(self.x[0], nearer),
            rest: 0.0,
        };
        for _ in 0..2 {
            mean.rest += self.sum(|p, x| share(p) * mean.deviation(x)) / total;
        }
        mean
    }

    /// Keeps the entries for which `positive` holds; returns whether any was dropped.
    pub(super) fn drop_unless(&mut self, positive: impl Fn(f64, f64) -> bool) -> bool {
        let mut kept = 0;
        let mut dropped = 0.0;
        for i in 0..self.p.len() {
            if positive(self.p[i], self.x[i]) {
                self.index[kept] = self.index[i];
                self.p[kept] = self.p[i];
                self.x[kept] = self.x[i];
                kept += 1;
            } else {
                dropped += self.p[i];
            }
        }
        let any = kept < self.p.len() && kept > 0;
        if any {
            self.index.truncate(kept);
            self.p.truncate(kept);
            self.x.truncate(kept);
            self.outside += dropped;
        }
        any
    }
}

/// A mean in two parts, so that deviations from it keep their digits.
#[derive(Clone, Copy)]
pub(super) struct Mean {
    entry: f64,
    rest: f64,
}

impl Mean {
    pub(super) fn deviation(self, x: f64) -> f64 {
        (x - self.entry) - self.rest
    }

    pub(super) fn value(self) -> f64 {
        self.entry + self.rest
    }

    pub(super) fn shift(&mut self, by: f64) {
        self.rest += by;
    }
}

/// `sum term(p_i, x_i)` in blocks of eight lanes: the compiler vectorises it, and its error hardly grows with n.
pub(super) fn sum_over(p: &[f64], x: &[f64], term: impl Fn(f64, f64) -> f64) -> f64 {
    const LANES: usize = 8;
    const BLOCK: usize = 256 * LANES;
    let mut total = 0.0;
    for (p, x) in p.chunks(BLOCK).zip(x.chunks(BLOCK)) {
        let mut lanes = [0.0; LANES];
        let (whole_p, whole_x) = (p.chunks_exact(LANES), x.chunks_exact(LANES));
        let (rest_p, rest_x) = (whole_p.remainder(), whole_x.remainder());
        for (p, x) in whole_p.zip(whole_x) {
            for lane in 0..LANES {
                lanes[lane] += term(p[lane], x[lane]);
            }
        }
        for (&p, &x) in rest_p.iter().zip(rest_x) {
            lanes[0] += term(p, x);
        }
        total += lanes.iter().sum::<f64>();
    }
    total
}
