//! Balanced draws: earliest deadline first (EDF), never a whole sample off.
//!
//! The problem is chairman assignment: a union of n states, whose shares w of the people sum to 1, picks a chairman each
//! year such that at any time each state has had its share to within one. Tijdeman (*The chairman assignment problem*,
//! Discrete Mathematics 32, 1980) gives a rule whose error never exceeds 1 - 1/(2n - 2), and shows that no rule has a
//! smaller bound. Each domain has a credit counter, as in deficit round robin: credit = w * draws - its draws. In terms
//! of real-time scheduling,
//!
//! - *release*: a domain is eligible once its credit, with this draw's w earned, is at least 1/(2n - 2);
//! - *deadline*: it must be drawn before its credit would exceed the bound;
//! - *EDF*: of the eligible domains the one with the earliest deadline is drawn (ties: the lowest number). It pays 1.
//!
//! Release time and deadline of a domain's next draw are integers that do not change until the domain is drawn; then
//! both advance by 1 / w, like the error term of Bresenham's line. Domains are stored in groups that cache their
//! earliest eligible deadline and the time at which it may change, so a draw examines one or two groups and the cached
//! values of the others.
//!
//! When the weights change, credits are kept: each is a fraction of a sample, so earlier draws are not repaid, and a
//! domain that gets 1% of a mixture that changes with every batch still gets its 1%. Two cases need a rule. A domain
//! whose weight becomes 0 is never drawn again, so its credit is dropped, and the credits of the others are reduced,
//! never increased, until they sum to 0. And under the new weights deadlines can collide, so that one is missed; then
//! the overdue domain with the largest credit is drawn, which keeps the error within one more sample.
//!
//! All arithmetic is on integers, in units of 1 / [`Weights::TOTAL`] of a sample.

use crate::weights::{MAX_DOMAINS, TOTAL, Weights};

/// Bits of a key below the deadline: the number of the domain.
const DOMAIN_BITS: u32 = MAX_DOMAINS.trailing_zeros();

/// Time of the first draw. A deadline missed before the first draw is then not negative: credits stay within 16 samples,
/// and a sample takes at most [`TOTAL`] draws to earn.
const START: i64 = 1 << 47;

/// Time at which all times are reset to [`START`], long before a deadline outgrows its bits of a key.
const END: i64 = 1 << 48;

/// Key and release time of a domain that is not drawn.
const NEVER: u64 = u64::MAX;

/// An endless sequence of domains in exact proportion to weights.
///
/// # Performance
///
/// A draw takes O(n / 8) time for n domains: it reads one or two groups of eight, and one number of each other group.
/// `benches/README.md`: 10 ns for 7 domains, 25 ns for 64.
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
    /// Remainders of release time and deadline, for each domain.
    terms: Vec<Terms>,
}

/// Domains in a group: two cache lines of release times and keys.
const GROUP: usize = 8;

#[derive(Clone, Debug)]
struct Group {
    /// Smallest key of the eligible domains.
    earliest: u64,
    /// First draw at which another domain becomes eligible.
    next: u64,
    /// Release time of each domain.
    releases: [u64; GROUP],
    /// Deadline, shifted, and number of the domain: the smallest key is the earliest deadline.
    keys: [u64; GROUP],
}

impl Group {
    const EMPTY: Self = Self {
        earliest: NEVER,
        next: 0,
        releases: [NEVER; GROUP],
        keys: [NEVER; GROUP],
    };

    /// Returns the smallest key of the domains that are eligible at `now`.
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

    /// Recomputes the cached values for time `now`.
    fn refresh(&mut self, now: u64) {
        self.earliest = self.earliest(now);
        let waiting = self
            .releases
            .map(|release| if release <= now { NEVER } else { release });
        self.next = waiting.into_iter().fold(NEVER, u64::min);
    }
}

/// Credits between which a domain is eligible and not overdue, in units of 1 / [`TOTAL`] samples; they sum to [`TOTAL`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Smallest credit of an eligible domain.
    pub(crate) release: i64,
    /// Largest credit before a domain is overdue.
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

/// The fractions of one domain: its next release and deadline are 1 / w = `whole` + `part` / unit later.
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

    /// Continues from saved credits. They must sum to 0, be 0 for a domain of weight 0, and be within 16 samples.
    pub(crate) fn with_credits(weights: Weights, credits: &[i64]) -> Self {
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

    /// Returns the credits, in units of 1 / [`Weights::TOTAL`] samples.
    #[must_use]
    pub fn credits(&self) -> Vec<i64> {
        (0..self.terms.len())
            .map(|domain| self.credit(domain))
            .collect()
    }

    /// Returns the mixture of the next draw.
    #[must_use]
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    pub(crate) fn limits(&self) -> Limits {
        self.limits
    }

    /// Sets the weights of the next draw.
    pub fn set_weights(&mut self, weights: Weights) {
        let mut credits = self.credits();
        for (credit, &unit) in credits.iter_mut().zip(weights.units()) {
            if unit == 0 {
                *credit = 0;
            }
        }
        cancel_sum(&mut credits);
        *self = Self::with_credits(weights, &credits);
    }

    /// Draws the next domain.
    pub fn draw(&mut self) -> usize {
        self.tick();
        let earliest = self.earliest();
        let domain = if due(earliest) < self.time {
            self.largest_overdue()
        } else {
            number(earliest)
        };
        self.pay(domain);
        domain
    }

    /// Draws by deadline alone, even if a deadline was missed; equal to [`draw`](Self::draw) if none was.
    pub(crate) fn draw_by_deadline(&mut self) -> usize {
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

    /// Returns the smallest key of an eligible domain. There is one: credits sum to one sample once a draw is earned, so
    /// the largest of n is at least 1/n >= 1/(2n - 2), or n is 1.
    fn earliest(&mut self) -> u64 {
        let now = self.time as u64;
        match &mut self.groups[..] {
            [group] => group.earliest(now),
            groups => groups.iter_mut().fold(NEVER, |earliest, group| {
                if group.next <= now {
                    group.refresh(now);
                }
                earliest.min(group.earliest)
            }),
        }
    }

    /// Returns the overdue domain with the largest credit.
    #[cold]
    fn largest_overdue(&self) -> usize {
        let mut best = (i64::MIN, 0);
        for &key in self.groups.iter().flat_map(|group| &group.keys) {
            if key != NEVER && due(key) <= self.time && self.credit(number(key)) > best.0 {
                best = (self.credit(number(key)), number(key));
            }
        }
        best.1
    }

    /// Advances release time and deadline of `domain` to its next draw.
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
            self.groups[domain / GROUP].refresh(self.time as u64 + 1);
        }
    }

    /// Returns samples earned less samples drawn, computed from the time left to the deadline.
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

/// Reduces the credits of the prevailing sign until all sum to 0.
fn cancel_sum(credits: &mut [i64]) {
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
    // Shares are rounded towards 0; the remaining few units are taken from the first credits that have them.
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
        fn cancelling_only_shrinks(before in prop::collection::vec(-(TOTAL as i64)..TOTAL as i64, 1..30)) {
            let mut after = before.clone();
            cancel_sum(&mut after);
            prop_assert_eq!(after.iter().sum::<i64>(), 0);
            for (x, y) in before.iter().zip(&after) {
                prop_assert!(y.abs() <= x.abs() && (*y == 0 || x.signum() == y.signum()));
            }
        }
    }

    /// A domain with 1% of a mixture that changes at every batch of 8 is still drawn once in a hundred.
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
