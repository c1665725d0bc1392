//! Balanced draws: which domain comes next, never a whole sample off.
//!
//! They solve the chairman assignment problem: a union of n states, with shares w of the people that sum to 1, picks a
//! chairman each year so that at any time each state has had its share to within one. Tijdeman (*The chairman
//! assignment problem*, Discrete Mathematics 32, 1980) gives a rule whose error never exceeds 1 - 1/(2n - 2), and shows
//! that no rule has a smaller bound. With the credit of a domain = w * draws - its draws,
//!
//! - a domain may be drawn once its credit, with this draw's w earned, is at least 1/(2n - 2): its release;
//! - it must be drawn at the latest when its credit would otherwise pass the bound: its due time;
//! - of those that may be drawn the one with the earliest due time is (of several, the first). It pays 1.
//!
//! Release and due time of a domain's next draw are whole numbers that stay as they are until it is drawn; then both
//! move on by 1 / w, like the error term of Bresenham's line. Domains stand in groups that know their earliest due time
//! and when that may change, so that a draw looks at one or two groups and at what the others know.
//!
//! When the weights change, credits stay: each is a fraction of a sample, so nothing of the past is repaid, and a
//! domain that gets 1% of a mixture that changes with every batch still gets its 1%. Two cases need a rule. A domain
//! whose weight becomes 0 is never drawn again, so its credit is dropped and the others' are shrunk, never grown, until
//! they sum to 0. And under the new weights due times can collide, so that one is missed; then the domain with the
//! largest credit of those due is drawn, which keeps the error within one more sample.

use crate::weights::{MAX_DOMAINS, TOTAL, Weights};

/// Bits of a key below the due time: the number of the domain.
const DOMAIN_BITS: u32 = MAX_DOMAINS.trailing_zeros();

/// Times count from here, so that a due time that was missed before the first draw is no negative number: credits stay
/// within 16 samples, and a sample takes at most [`TOTAL`] draws to earn.
const START: i64 = 1 << 47;

/// Times are moved back to [`START`] here, long before a due time outgrows its bits of a key.
const END: i64 = 1 << 48;

/// A key, or a release time, of a domain that is not drawn.
const NEVER: u64 = u64::MAX;

/// Picks domains in proportion to weights, exactly.
///
/// # Examples
///
/// ```
/// use drpruning_core::{Weights, draw::Balanced};
/// let names = ["cc".to_string(), "github".to_string()];
/// let mut mixture = Balanced::new(Weights::new(&names, &[0.75, 0.25])?);
/// let drawn: Vec<usize> = (0..8).map(|_| mixture.draw()).collect();
/// assert_eq!(drawn, [0, 0, 1, 0, 0, 0, 1, 0]);
/// # Ok::<(), drpruning_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Balanced {
    weights: Weights,
    limits: Limits,
    /// [`START`] and the draws made since.
    time: i64,
    groups: Vec<Group>,
    /// What release and due time were rounded by, for each domain.
    terms: Vec<Terms>,
}

/// Domains that stand together.
const GROUP: usize = 8;

#[derive(Clone, Debug)]
struct Group {
    /// Smallest key of those that may be drawn.
    earliest: u64,
    /// First draw at which another may be.
    next: u64,
    /// First draw at which each domain may be drawn.
    releases: [u64; GROUP],
    /// Due time, shifted, and number of the domain: the smallest key is the earliest due time.
    keys: [u64; GROUP],
}

impl Group {
    const EMPTY: Self = Self {
        earliest: NEVER,
        next: 0,
        releases: [NEVER; GROUP],
        keys: [NEVER; GROUP],
    };

    /// Smallest key of those that may be drawn at `now`.
    fn earliest(&self, now: u64) -> u64 {
        let mut earliest = [NEVER; 4];
        for domain in 0..GROUP {
            let released = self.releases[domain] <= now;
            let key = if released { self.keys[domain] } else { NEVER };
            earliest[domain % 4] = earliest[domain % 4].min(key);
        }
        let [a, b, c, d] = earliest;
        a.min(b).min(c.min(d))
    }

    /// Brings what the group knows up to `now`.
    fn look(&mut self, now: u64) {
        self.earliest = self.earliest(now);
        let waiting = self
            .releases
            .map(|release| if release <= now { NEVER } else { release });
        self.next = waiting.into_iter().fold(NEVER, u64::min);
    }
}

/// Credits between which a domain may be drawn, in units of 1 / [`TOTAL`] samples; they sum to [`TOTAL`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From here on it may be drawn.
    pub(crate) release: i64,
    /// Above this it must be.
    pub(crate) due: i64,
}

impl Limits {
    pub(crate) fn new(units: &[u64]) -> Self {
        let drawn = units.iter().filter(|&&unit| unit > 0).count() as u64;
        let release = TOTAL.div_ceil((2 * drawn).saturating_sub(2).max(1)) as i64;
        Self {
            release,
            due: TOTAL as i64 - release,
        }
    }
}

/// One domain's share of the arithmetic: the next draw's times are 1 / w = `whole` + `part` / unit later.
#[derive(Clone, Copy, Debug, Default)]
struct Terms {
    unit: u64,
    whole: u64,
    part: u64,
    release: u64,
    due: u64,
}

impl Balanced {
    /// Starts with all credits at 0.
    #[must_use]
    pub fn new(weights: Weights) -> Self {
        let credits = vec![0; weights.units().len()];
        Self::with_credits(weights, &credits)
    }

    /// Continues with credits saved earlier. Their sum must be 0, as must that of a domain without a weight; each must
    /// be within 16 samples.
    #[must_use]
    pub fn with_credits(weights: Weights, credits: &[i64]) -> Self {
        let limits = Limits::new(weights.units());
        let mut balanced = Self {
            limits,
            time: START,
            groups: vec![Group::EMPTY; credits.len().div_ceil(GROUP)],
            terms: vec![Terms::default(); credits.len()],
            weights,
        };
        for (domain, (&credit, &unit)) in credits.iter().zip(balanced.weights.units()).enumerate() {
            if unit == 0 {
                continue;
            }
            // The first times t with credit + t * unit >= limits.release and > limits.due.
            let signed = unit as i64;
            let to_release = limits.release - credit + signed - 1;
            let to_due = limits.due - credit + signed;
            let group = &mut balanced.groups[domain / GROUP];
            group.releases[domain % GROUP] = (START + to_release.div_euclid(signed)) as u64;
            group.keys[domain % GROUP] = key(START + to_due.div_euclid(signed), domain);
            balanced.terms[domain] = Terms {
                unit,
                whole: TOTAL / unit,
                part: TOTAL % unit,
                release: to_release.rem_euclid(signed) as u64,
                due: to_due.rem_euclid(signed) as u64,
            };
        }
        balanced
    }

    /// The credits, in units of 1 / [`TOTAL`] samples.
    #[must_use]
    pub fn credits(&self) -> Vec<i64> {
        (0..self.terms.len())
            .map(|domain| self.credit(domain))
            .collect()
    }

    /// The mixture drawn now.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Draws by `weights` from now on.
    pub fn set_weights(&mut self, weights: Weights) {
        let mut credits = self.credits();
        for (credit, &unit) in credits.iter_mut().zip(weights.units()) {
            if unit == 0 {
                *credit = 0;
            }
        }
        settle(&mut credits);
        *self = Self::with_credits(weights, &credits);
    }

    /// The next domain.
    pub fn draw(&mut self) -> usize {
        self.tick();
        let earliest = self.earliest();
        let domain = if due(earliest) < self.time {
            self.largest_due()
        } else {
            number(earliest)
        };
        self.pay(domain);
        domain
    }

    /// The next domain by due time alone, even if one was missed. The same as [`draw`](Self::draw) where none is.
    pub(crate) fn draw_by_due_time(&mut self) -> usize {
        self.tick();
        let domain = number(self.earliest());
        self.pay(domain);
        domain
    }

    fn tick(&mut self) {
        if self.time == END {
            *self = Self::with_credits(self.weights.clone(), &self.credits());
        }
        self.time += 1;
    }

    /// The smallest key of a domain that may be drawn. There is one: credits sum to one sample once a draw is earned,
    /// so the largest of n is at least 1/n >= 1/(2n - 2), or n is 1.
    fn earliest(&mut self) -> u64 {
        let now = self.time as u64;
        match &mut self.groups[..] {
            [group] => group.earliest(now),
            groups => groups.iter_mut().fold(NEVER, |earliest, group| {
                if group.next <= now {
                    group.look(now);
                }
                earliest.min(group.earliest)
            }),
        }
    }

    /// Of the domains due by now the one with the largest credit.
    #[cold]
    fn largest_due(&self) -> usize {
        let mut best = (i64::MIN, 0);
        for &key in self.groups.iter().flat_map(|group| &group.keys) {
            if key != NEVER && due(key) <= self.time && self.credit(number(key)) > best.0 {
                best = (self.credit(number(key)), number(key));
            }
        }
        best.1
    }

    /// Moves the times of `domain` on to those of its next draw.
    fn pay(&mut self, domain: usize) {
        let terms = &mut self.terms[domain];
        let group = &mut self.groups[domain / GROUP];
        terms.release += terms.part;
        let carry = u64::from(terms.release >= terms.unit);
        terms.release -= carry * terms.unit;
        group.releases[domain % GROUP] += terms.whole + carry;
        terms.due += terms.part;
        let carry = u64::from(terms.due >= terms.unit);
        terms.due -= carry * terms.unit;
        group.keys[domain % GROUP] += (terms.whole + carry) << DOMAIN_BITS;
        if self.groups.len() > 1 {
            self.groups[domain / GROUP].look(self.time as u64 + 1);
        }
    }

    /// Earned less drawn; what remains to the due time says it.
    fn credit(&self, domain: usize) -> i64 {
        let terms = &self.terms[domain];
        if terms.unit == 0 {
            return 0;
        }
        let unit = terms.unit as i64;
        self.limits.due + unit - terms.due as i64
            + (self.time - due(self.groups[domain / GROUP].keys[domain % GROUP])) * unit
    }
}

fn key(due: i64, domain: usize) -> u64 {
    (due as u64) << DOMAIN_BITS | domain as u64
}

fn due(key: u64) -> i64 {
    (key >> DOMAIN_BITS) as i64
}

fn number(key: u64) -> usize {
    (key & (MAX_DOMAINS as u64 - 1)) as usize
}

/// Shrinks the credits of the sign that prevails until all sum to 0.
fn settle(credits: &mut [i64]) {
    let sum: i64 = credits.iter().sum();
    let prevails = |credit: i64| credit.signum() == sum.signum();
    let size: i64 = credits
        .iter()
        .copied()
        .filter(|&credit| prevails(credit))
        .sum();
    let mut excess = sum;
    for credit in credits.iter_mut().filter(|credit| prevails(**credit)) {
        if sum == 0 {
            return;
        }
        let share = (i128::from(*credit) * i128::from(sum) / i128::from(size)) as i64;
        *credit -= share;
        excess -= share;
    }
    // Shares are rounded towards 0; the few units left come off whatever can give them.
    for credit in credits.iter_mut() {
        if excess.signum() == credit.signum() {
            let share = if excess > 0 {
                excess.min(*credit)
            } else {
                excess.max(*credit)
            };
            *credit -= share;
            excess -= share;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn weights(values: &[f64]) -> Weights {
        let names: Vec<String> = (0..values.len()).map(|i| i.to_string()).collect();
        Weights::new(&names, values).unwrap()
    }

    /// Weights as skewed as real mixtures, some of them 0.
    pub(crate) fn mixture(n: usize) -> impl Strategy<Value = Vec<f64>> {
        prop::collection::vec(
            prop_oneof![1 => Just(0.0), 6 => (0.0..6.0f64).prop_map(|x| (-x).exp())],
            n,
        )
        .prop_filter("one weight is positive", |w| w.iter().any(|&x| x > 0.0))
    }

    /// 1 - 1/(2n - 2) samples; 0 for one domain.
    fn bound(weights: &Weights) -> i64 {
        let n = weights.units().iter().filter(|&&unit| unit > 0).count() as i64;
        TOTAL as i64 * i64::from(n > 1) * (2 * n - 3) / (2 * n - 2).max(1)
    }

    proptest! {
        /// At constant weights every prefix is within 1 - 1/(2n - 2) samples of the mixture.
        #[test]
        fn every_prefix_is_within_the_bound(values in (1usize..40).prop_flat_map(mixture)) {
            let weights = weights(&values);
            let bound = bound(&weights);
            let mut mixture = Balanced::new(weights);
            for _ in 0..2_000 {
                let domain = mixture.draw();
                prop_assert!(values[domain] > 0.0);
                prop_assert!(mixture.credits().iter().all(|credit| credit.abs() <= bound));
                prop_assert_eq!(mixture.credits().iter().sum::<i64>(), 0);
            }
        }

        /// Changes of weights cost at most one sample per domain each, and the sum of credits stays 0.
        #[test]
        fn a_change_costs_at_most_one_sample(
            changes in (2usize..20).prop_flat_map(|n| prop::collection::vec((mixture(n), 0usize..60), 1..20)),
        ) {
            let n = changes[0].0.len();
            let mut mixture = Balanced::new(weights(&changes[0].0));
            let mut owed = vec![0i128; n];
            for (change, (values, draws)) in changes.iter().enumerate() {
                mixture.set_weights(weights(values));
                for _ in 0..*draws {
                    let domain = mixture.draw();
                    prop_assert!(values[domain] > 0.0);
                    for (owed, &unit) in owed.iter_mut().zip(mixture.weights().units()) {
                        *owed += i128::from(unit);
                    }
                    owed[domain] -= i128::from(TOTAL);
                    prop_assert_eq!(mixture.credits().iter().sum::<i64>(), 0);
                    let most = owed.iter().map(|x| x.unsigned_abs()).max().unwrap();
                    prop_assert!(most <= u128::from(TOTAL) * (change as u128 + 1));
                }
            }
        }

        #[test]
        fn settling_only_shrinks(before in prop::collection::vec(-(TOTAL as i64)..TOTAL as i64, 1..30)) {
            let mut after = before.clone();
            settle(&mut after);
            prop_assert_eq!(after.iter().sum::<i64>(), 0);
            for (x, y) in before.iter().zip(&after) {
                prop_assert!(y.abs() <= x.abs() && (*y == 0 || x.signum() == y.signum()));
            }
        }
    }

    /// A domain with 1% of a mixture that changes at every batch of 8 is drawn once in a hundred all the same.
    #[test]
    fn a_small_share_survives_constant_change() {
        let mut mixture = Balanced::new(weights(&[0.5, 0.49, 0.01]));
        let mut count = 0;
        for batch in 0..1_000 {
            mixture.set_weights(weights(&[
                0.5 + f64::from(batch % 2) * 0.1,
                0.49 - f64::from(batch % 2) * 0.1,
                0.01,
            ]));
            count += (0..8).filter(|_| mixture.draw() == 2).count();
        }
        assert!((79..=81).contains(&count), "{count}");
    }
}
