//! A quickselect for the threshold of the worst case: expected linear time, no sort.
//!
//! The support of the solution is a top set of the losses, `S = { v > eta }`. For the top set above any cut, its mass `P`,
//! mean `m` and variance `V` decide on which side of the cut `eta` is: with `room = 2 rho P - (mass outside)` and
//! `d = sqrt(V / room)`, the cut is at or below `eta` if and only if `room >= 0` and it is at or below `m - d`.
//!
//! [`narrow`] brackets `eta` with a sample, proves the bracket by these conditions in one pass, and continues with the
//! entries between the cuts; each later round halves them on average. [`drop_below`] ends the search: it starts with all
//! undecided entries in the set, drops those below `m - d`, and repeats. Too large a set only lowers `m - d`, so no
//! member of `S` is ever dropped (Michelot 1986 for the simplex).

use crate::simd::{plain_sums, sums_and_picked};
use crate::top_set::{Between, Radius, Top};

/// Largest number of entries for which dropping from all of them is faster than sampling.
const FEW: usize = 6144;
/// Runs of neighbours in a sample.
const RUNS: usize = 1024;
/// Entries of a run: one cache line of each slice.
const RUN: usize = 8;
/// Half the width of the first bracket, in standard deviations of the support over the root of the number of its
/// members in the sample: about 1 % of normal losses then lie between, and it is rarely missed.
const WIDTH: f64 = 6.0;
/// Largest number of rounds. Each round halves the undecided entries on average; more rounds mean ties at every pivot.
const ROUNDS: usize = 60;
/// Largest distance of the mean from the centre, on the scale of [`Top::is_off_centre`], before sums are taken again
/// about the mean.
const OFF_CENTRE: f64 = 0.5;
/// The same for a set that only decides on which side of a cut the threshold is.
const OFF_CENTRE_TO_DECIDE: f64 = 100.0;
/// Squared deviations between these neither overflow nor vanish.
const SAFE: std::ops::Range<f64> = 1e-200..1e200;

/// The support of the solution, `{ v - centre > cut }`, and its sums.
pub(crate) struct Threshold {
    pub(crate) centre: f64,
    pub(crate) cut: f64,
    pub(crate) top: Top,
    pub(crate) total: f64,
}

/// The result of the search.
pub(crate) enum Found {
    Threshold(Threshold),
    /// The ball reaches the face where the losses are largest.
    Face,
    /// An entry is not usable, or squares leave the range of float64.
    Suspicious,
}

/// Finds the threshold for losses `v` and a positive finite radius.
///
/// `p` and `v` need not be checked: an unusable entry makes the result `Suspicious`.
pub(crate) fn find(p: &[f64], v: &[f64], rho: f64) -> Found {
    let found = if p.len() > FEW {
        narrow(p, v, rho)
    } else {
        None
    };
    found.map_or_else(|| drop_below(p, v, rho), Found::Threshold)
}

/// Drops from all entries, about their own mean; variances outside [`SAFE`] are suspicious.
fn drop_below(p: &[f64], v: &[f64], rho: f64) -> Found {
    let (centre, cut) = (v[0], f64::NEG_INFINITY);
    let top = Top::above(p, v, centre, cut);
    let total = top.mass;
    let radius = Radius {
        rho,
        total,
        dropped: 0.0,
    };
    // Always a second pass: the first entry is a bad centre, even if the sums are small.
    let (centre, cut) = moved(centre, top.mean(), cut);
    let set = Set::above(p, v, centre, cut);
    let mut set = set.centred(p, v, radius);
    let top = &set.top;
    let usable = top.unusable == 0.0 && top.first.is_finite() && SAFE.contains(&top.variance());
    if !usable {
        return Found::Suspicious;
    }
    if is_face(p, v, radius) {
        return Found::Face;
    }
    loop {
        let mean = set.top.mean();
        let below = mean - set.top.spread(radius);
        let (centre, cut) = moved(set.centre, mean, below.max(set.cut));
        let next = Set::above(p, v, centre, cut).centred(p, v, radius);
        // Only rounding can leave an empty set.
        if next.top.count == 0.0 {
            break;
        }
        let dropped = next.top.count < set.top.count;
        set = next;
        if !dropped {
            break;
        }
    }
    // Squares of what is left may vanish on the scale of what was dropped.
    if !SAFE.contains(&set.top.variance()) {
        return Found::Suspicious;
    }
    Found::Threshold(Threshold {
        centre: set.centre,
        cut: set.cut,
        top: set.top,
        total,
    })
}

/// A top set: `{ v - centre > cut }` and its sums.
pub(crate) struct Set {
    pub(crate) centre: f64,
    pub(crate) cut: f64,
    pub(crate) top: Top,
}

impl Set {
    pub(crate) fn above(p: &[f64], v: &[f64], centre: f64, cut: f64) -> Self {
        let top = Top::above(p, v, centre, cut);
        Self { centre, cut, top }
    }

    /// Returns the same set, with a centre close enough to its mean.
    pub(crate) fn centred(mut self, p: &[f64], v: &[f64], radius: Radius) -> Self {
        for attempt in 0..5 {
            if self.top.count == 0.0 || !self.top.is_off_centre(OFF_CENTRE, radius) {
                break;
            }
            let mut centre = self.centre + self.top.mean();
            if attempt == 4 {
                // One light entry far above a bulk within rounding of the mean: centre on the bulk itself.
                centre = nearest(v, centre);
            }
            let cut = self.cut_about(centre, v);
            self = Self::above(p, v, centre, cut);
        }
        self
    }

    /// Returns the cut relative to a distant centre, where distances are rounded differently: half-way between the
    /// entries inside and outside.
    fn cut_about(&self, centre: f64, v: &[f64]) -> f64 {
        let (mut least, mut most) = (f64::INFINITY, f64::NEG_INFINITY);
        for &v in v {
            if v - self.centre > self.cut {
                least = if v < least { v } else { least };
            } else {
                most = if v > most { v } else { most };
            }
        }
        0.5 * ((most - centre) + (least - centre))
    }
}

fn nearest(v: &[f64], to: f64) -> f64 {
    let nearer = |a: f64, &b: &f64| {
        if (b - to).abs() < (a - to).abs() {
            b
        } else {
            a
        }
    };
    v.iter().fold(v[0], nearer)
}

/// Returns the mean of `v` with weights `p`.
pub(crate) fn mean(p: &[f64], v: &[f64]) -> f64 {
    let mut centre = v[0];
    for _ in 0..3 {
        centre += Top::above(p, v, centre, f64::NEG_INFINITY).mean();
    }
    centre
}

/// Returns the same cut relative to a centre that is moved to the mean.
pub(crate) fn moved(centre: f64, mean: f64, cut: f64) -> (f64, f64) {
    let next = centre + mean;
    (next, cut + (centre - next))
}

/// Returns whether the ball reaches the face where the losses are largest: the mass outside the face is at most `2 rho`
/// times its mass.
pub(crate) fn is_face(p: &[f64], v: &[f64], radius: Radius) -> bool {
    let (best, rest) = mass_at_largest(p, v);
    rest <= 2.0 * radius.rho * best
}

/// Returns the mass of the entries with the largest loss, and of the others.
#[allow(clippy::float_cmp)] // only exactly equal losses tie
pub(crate) fn mass_at_largest(p: &[f64], v: &[f64]) -> (f64, f64) {
    let largest = largest(v);
    let [best, rest] = plain_sums(p, v, |p, v| if v == largest { [p, 0.0] } else { [0.0, p] });
    (best, rest)
}

pub(crate) fn largest(v: &[f64]) -> f64 {
    v.iter()
        .fold(f64::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

/// A search with entries that are known to be inside, known to be outside, or undecided.
struct Search {
    rho: f64,
    total: f64,
    inside: Top,
    outside: f64,
    /// Deviations above `high` are inside, at or below `low` outside.
    low: f64,
    high: f64,
}

/// Undecided entries: `p`, and losses minus the centre.
#[derive(Default)]
struct Block {
    p: Vec<f64>,
    v: Vec<f64>,
}

impl Block {
    fn with(p: &[f64], v: &[f64], centre: f64, picked: impl Fn(f64) -> bool) -> Self {
        let mut block = Self::default();
        for (&p, &v) in p.iter().zip(v) {
            if picked(v - centre) {
                block.push(p, v - centre);
            }
        }
        block
    }

    fn push(&mut self, p: f64, deviation: f64) {
        self.p.push(p);
        self.v.push(deviation);
    }

    fn top(&self, cut: f64) -> Top {
        Top::above(&self.p, &self.v, 0.0, cut)
    }
}

impl Search {
    fn radius(&self) -> Radius {
        Radius {
            rho: self.rho,
            total: self.total,
            dropped: 0.0,
        }
    }

    /// Splits undecided entries by two cuts in one pass and returns the part that contains the threshold.
    ///
    /// `None` if an entry is not usable, or the centre is too far from the threshold to decide.
    fn split(&mut self, p: &[f64], v: &[f64], centre: f64, low: f64, high: f64) -> Option<Block> {
        let mut between = Block::default();
        let cuts = Between { centre, low, high };
        let pick = |p, v| between.push(p, v - centre);
        let mut above = Top::from(sums_and_picked(p, v, &cuts, pick));
        let below = above.outside;
        let middle = between.top(f64::NEG_INFINITY);
        above.outside = below + middle.mass;
        self.total = self.inside.mass + above.mass + middle.mass + below + self.outside;
        // NaN and infinity end up in these sums, on whichever side of the cuts they are.
        if above.unusable > 0.0 || !(above.first + middle.first + self.total).is_finite() {
            return None;
        }
        let over_high = self.inside.joined(above, self.outside + above.outside);
        let over_low = over_high.joined(middle, self.outside + below);
        let radius = self.radius();
        let blurred = |top: &Top| top.is_off_centre(OFF_CENTRE_TO_DECIDE, radius);
        if blurred(&over_high) || blurred(&over_low) {
            return None;
        }
        if over_high.reaches(high, self.radius()) {
            (self.low, self.outside) = (high, self.outside + above.outside);
            return Some(Block::with(p, v, centre, |deviation| deviation > high));
        }
        if over_low.reaches(low, self.radius()) {
            (self.low, self.high) = (low, high);
            (self.inside, self.outside) = (over_high, self.outside + below);
            return Some(between);
        }
        (self.high, self.inside) = (low, over_low);
        Some(Block::with(p, v, centre, |deviation| deviation <= low))
    }

    /// Finds the support by dropping from few undecided entries.
    fn finish(&self, block: &Block) -> (f64, Top) {
        let with = |cut: f64| {
            let part = block.top(cut);
            self.inside.joined(part, self.outside + part.outside)
        };
        let mut cut = self.low;
        let mut top = with(cut);
        loop {
            cut = (top.mean() - top.spread(self.radius()))
                .max(cut)
                .min(self.high);
            let next = with(cut);
            let dropped = next.count < top.count;
            top = next;
            if !dropped {
                return (cut, top);
            }
        }
    }
}

/// Brackets the threshold with a sample, then halves the undecided entries. `None` if dropping from all is better.
fn narrow(p: &[f64], v: &[f64], rho: f64) -> Option<Threshold> {
    let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
    let (centre, low, high) = bracket(p, v, rho, &mut random)?;
    let mut search = Search {
        rho,
        total: 0.0,
        inside: Top::from([0.0; 6]),
        outside: 0.0,
        low: f64::NEG_INFINITY,
        high: f64::INFINITY,
    };
    let mut block = search.split(p, v, centre, low, high)?;
    for _ in 0..ROUNDS {
        if block.p.len() <= FEW {
            break;
        }
        let pivot = block.v[random.below(block.v.len())];
        block = search.split(&block.p, &block.v, 0.0, pivot, pivot)?;
    }
    // Without a known member the solution may be a face; with ties at every pivot the block stays large.
    if search.inside.count == 0.0 || block.p.len() > FEW {
        return None;
    }
    let radius = search.radius();
    let (cut, top) = search.finish(&block);
    let set = Set { centre, cut, top }.centred(p, v, radius);
    let total = search.total;
    SAFE.contains(&set.top.variance()).then_some(Threshold {
        centre: set.centre,
        cut: set.cut,
        top: set.top,
        total,
    })
}

/// Returns a centre near the mean of the support, and cuts about it between which the threshold probably is.
fn bracket(p: &[f64], v: &[f64], rho: f64, random: &mut Xorshift) -> Option<(f64, f64, f64)> {
    let stride = p.len() / RUNS;
    let mut sample_p = Vec::with_capacity(RUNS * RUN);
    let mut sample_v = Vec::with_capacity(RUNS * RUN);
    for run in 0..RUNS {
        // At a random place in its stride: a fixed place could coincide with a period of the losses.
        let start = run * stride + random.below(stride.saturating_sub(RUN) + 1);
        let end = (start + RUN).min(p.len());
        sample_p.extend_from_slice(&p[start..end]);
        sample_v.extend_from_slice(&v[start..end]);
    }
    let Found::Threshold(found) = drop_below(&sample_p, &sample_v, rho) else {
        return None;
    };
    let radius = Radius {
        rho,
        total: found.total,
        dropped: 0.0,
    };
    let (mean, spread) = (found.top.mean(), found.top.spread(radius));
    let centre = found.centre + mean;
    let width = WIDTH * found.top.variance().sqrt() / found.top.count.sqrt();
    (spread.is_finite() && centre.is_finite()).then_some((centre, -spread - width, width - spread))
}

/// Random pivots (xorshift, Marsaglia 2003). They affect the time of the search, not its result.
struct Xorshift(u64);

impl Xorshift {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}
