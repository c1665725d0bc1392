//! Exact worst cases over the chi-square ball around a probability vector, and projections onto it.
//!
//! # The problem
//!
//! For reference weights `p` (every entry positive, sum 1), a radius `rho >= 0` and a floor `f` in `[0, 1)` the ball is
//!
//! ```text
//! Q = { q : q_i >= f p_i,  sum q = 1,  D(q, p) <= rho },    D(q, p) = 1/2 sum_i p_i (q_i / p_i - 1)^2
//! ```
//!
//! **Convention.** `D` has the factor 1/2 (as in Levy, Carmon, Duchi and Sidford 2020). A radius for the divergence
//! without the factor is twice as large.
//!
//! | function | problem over `Q` | use |
//! |---|---|---|
//! | [`worst_case`] | maximise `<q, losses>` | distributionally robust optimisation (DRO): the inner maximum |
//! | [`penalised_worst_case`] | maximise `<q, losses> - 1/2 sum_i tau_i p_i (q_i / p_i - 1)^2` | losses with noise |
//! | [`project`] | minimise `1/2 \|q - y\|^2` | projected gradient methods |
//!
//! Each has a variant that writes into buffers of the caller (`*_into`) and, except for the penalised one, a variant for
//! the rows of a matrix ([`worst_case_batch_into`], [`project_batch_into`]).
//!
//! ```
//! use chi2_ball::{Status, project, worst_case};
//!
//! let p = [0.5, 0.3, 0.2];
//! let worst = worst_case(&[0.1, 0.4, 0.2], &p, 0.05, 0.0)?;
//! assert_eq!(worst.status, Status::Boundary);
//! assert!((worst.divergence - 0.05).abs() < 1e-15);
//! assert!(worst.weights[1] > p[1]); // the largest loss gains mass
//!
//! let nearest = project(&[0.9, 0.1, 0.0], &p, 0.05, 0.0)?;
//! assert!((nearest.weights.iter().sum::<f64>() - 1.0).abs() < 1e-15);
//! # Ok::<(), chi2_ball::Error>(())
//! ```
//!
//! # Certificate
//!
//! With multipliers `lambda >= 0` of the ball, `nu` of the sum and `mu_i >= 0` of the floors, `q` is optimal if and
//! only if it satisfies the Karush-Kuhn-Tucker (KKT) system: `q` is in `Q`, `lambda (rho - D) = 0`,
//! `mu_i (q_i - f p_i) = 0`, and for every `i`
//!
//! ```text
//! worst_case             v_i - nu - lambda (q_i / p_i - 1) + mu_i = 0              (v: the losses)
//! penalised_worst_case   v_i - nu - (lambda + tau_i) (q_i / p_i - 1) + mu_i = 0
//! project                y_i - q_i - nu - lambda (q_i / p_i - 1) + mu_i = 0
//! ```
//!
//! A [`Solution`] contains these multipliers, so a caller can check it:
//!
//! ```
//! # use chi2_ball::worst_case;
//! let (losses, p, floor) = ([0.1, 0.4, 0.2, -0.3], [0.4, 0.3, 0.2, 0.1], 0.1);
//! let worst = worst_case(&losses, &p, 0.3, floor)?;
//! for i in 0..4 {
//!     let (q, mu) = (worst.weights[i], worst.floor_multipliers[i]);
//!     let pull = worst.ball_multiplier * (q / p[i] - 1.0);
//!     assert!((losses[i] - worst.sum_multiplier - pull + mu).abs() < 1e-15);
//!     assert!(mu * (q - floor * p[i]) < 1e-15);
//! }
//! # Ok::<(), chi2_ball::Error>(())
//! ```
//!
//! # Method
//!
//! *The floor.* With `q = f p + (1 - f) u` all problems become the same problem in `u` with floor 0 and radius
//! `rho / (1 - f)^2`. Write `u_i = p_i (1 + t_i)`; let `S` be the support of `u`, so `t_i = -1` outside `S`.
//!
//! *Worst case.* On `S`, with mass `P`, weighted mean `m` and variance `V` of `v`, the KKT system has the closed form
//! `u_i = (p_i / P) (1 + (v_i - m) / d)`, `d^2 = V / room`, `room = 2 rho P - (1 - P)`, and `S` contains the entries
//! above `m - d`. A quickselect finds the threshold, see `select.rs`. If the ball contains a point of the face where `v`
//! is largest, the answer is `p` restricted to that face and renormalised: the maximiser of least divergence (other
//! maximisers exist when several entries tie).
//!
//! *Projection.* The answer is the projection onto the simplex if that is in the ball. Otherwise
//! `t_i = (y_i - p_i - nu) / (p_i + lambda)` on `S`. For a given `lambda`, `nu` is the root of a convex function that is
//! linear between entries. Newton's method on `D^(-1/2)`, inside a bracket, solves `D(lambda) = rho`: this function is
//! nearly linear (the secular equation of trust-region methods).
//!
//! No step forms `(1 + 2 rho) P - 1` or `u_i - p_i`, which cancel when `rho` is small.
//!
//! # Performance
//!
//! [`worst_case`] takes expected `O(n)` time without a sort. [`project`] and [`penalised_worst_case`] take `O(n)` time for
//! each step of a root search that converges superlinearly. Sums run over packs of four lanes (AVX2 where the processor
//! has it), and every processor returns the same bits. The variants with buffers do not allocate except for extreme
//! inputs ([`worst_case_into`]) or a copy of the entries ([`project_into`], [`penalised_worst_case_into`]).
//!
//! # Errors
//!
//! Every function returns an [`Error`] that names the argument, the entry and its value. No function panics on the
//! values of `losses`, `y`, `p`, `rho`, `floor` or `penalties`. Every solution is checked against its constraints and the
//! KKT system before it is returned, in two passes; one that fails is [`Error::Uncertified`].

mod batch;
mod certificate;
mod error;
mod penalised;
mod project;
mod rescale;
mod select;
mod simd;
mod top_set;
mod worst_case;

pub use batch::{Batch, PerRow, project_batch_into, worst_case_batch_into};
pub use error::{Argument, Error, Expected, Result};
pub use penalised::{penalised_worst_case, penalised_worst_case_into};
pub use project::{project, project_into};
pub use worst_case::{worst_case, worst_case_into};

use certificate::Objective;
use simd::plain_sums;

/// Largest distance of the sum of `p` from 1: single-precision weights pass. `p` is divided by its sum afterwards.
const SUM_TOLERANCE: f64 = 1e-6;
/// Largest difference between entries of a point to project: the difference of the others from the largest would lose
/// its digits.
const WIDEST: f64 = 1e6;

/// The constraints that determine a solution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The solution is `p`: the radius is zero, or all losses are equal.
    Center,
    /// Projection: no inequality binds. Penalised worst case: the ball does not bind, the penalty determines the
    /// solution.
    Interior,
    /// The ball binds: the divergence is `rho`.
    Boundary,
    /// The ball does not bind, the floors do: the solution is on a face of the simplex above the floor.
    Face,
}

impl Status {
    /// Returns the name in lower case: `center`, `interior`, `boundary` or `face`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Center => "center",
            Self::Interior => "interior",
            Self::Boundary => "boundary",
            Self::Face => "face",
        }
    }
}

/// A point of the ball with its certificate: the multipliers of the [KKT system](crate#certificate).
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// The mixture `q`; sums to one up to rounding.
    pub weights: Vec<f64>,
    /// `D(q, p)`, with the half.
    pub divergence: f64,
    /// The constraints that determine the solution.
    pub status: Status,
    /// `lambda`; infinite when the radius is zero and the losses differ.
    pub ball_multiplier: f64,
    /// `nu`.
    pub sum_multiplier: f64,
    /// `mu_i`; zero where the floor does not bind.
    pub floor_multipliers: Vec<f64>,
    /// Whether `q_i` is at its floor `f p_i`.
    pub at_floor: Vec<bool>,
}

impl Solution {
    fn filled(n: usize, fill: impl FnOnce(&mut Buffers<'_>) -> Result<Outcome>) -> Result<Self> {
        let mut weights = vec![0.0; n];
        let mut floor_multipliers = vec![0.0; n];
        let mut at_floor = vec![false; n];
        let outcome = fill(&mut Buffers {
            weights: &mut weights,
            floor_multipliers: &mut floor_multipliers,
            at_floor: &mut at_floor,
        })?;
        Ok(Self {
            weights,
            divergence: outcome.divergence,
            status: outcome.status,
            ball_multiplier: outcome.ball_multiplier,
            sum_multiplier: outcome.sum_multiplier,
            floor_multipliers,
            at_floor,
        })
    }
}

/// The scalars of a [`Solution`] whose arrays are in the caller's [`Buffers`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// `D(q, p)`, with the half.
    pub divergence: f64,
    /// The constraints that determine the solution.
    pub status: Status,
    /// `lambda`.
    pub ball_multiplier: f64,
    /// `nu`.
    pub sum_multiplier: f64,
}

/// The caller's memory for the arrays of a [`Solution`]. All entries must be zero (false) before a call, because zeros
/// are not written.
#[derive(Debug)]
pub struct Buffers<'a> {
    /// `q`.
    pub weights: &'a mut [f64],
    /// `mu`.
    pub floor_multipliers: &'a mut [f64],
    /// Whether `q_i` is at its floor `f p_i`.
    pub at_floor: &'a mut [bool],
}

impl Buffers<'_> {
    /// Sets all entries to zero (false).
    fn clear(&mut self) {
        self.weights.fill(0.0);
        self.floor_multipliers.fill(0.0);
        self.at_floor.fill(false);
    }

    fn assert_length(&self, n: usize) {
        let lengths = [
            self.weights.len(),
            self.floor_multipliers.len(),
            self.at_floor.len(),
        ];
        assert_eq!(lengths, [n; 3], "a buffer is not as long as the losses");
    }
}

/// The ball of a problem, with checked scalars; [`Ball::check_entries`] checks the entries.
struct Ball<'a> {
    /// The name of the values: losses, or a point.
    argument: Argument,
    p: &'a [f64],
    rho: f64,
    floor: f64,
}

impl<'a> Ball<'a> {
    fn new(argument: Argument, values: &[f64], p: &'a [f64], rho: f64, floor: f64) -> Result<Self> {
        if values.is_empty() {
            return Err(Error::Empty { argument });
        }
        if p.len() != values.len() {
            return Err(Error::Length {
                argument: Argument::P,
                found: p.len(),
                expected: values.len(),
            });
        }
        if rho.is_nan() || rho < 0.0 {
            return Err(Error::Number {
                argument: Argument::Rho,
                value: rho,
                expected: Expected::NonNegative,
            });
        }
        if !(0.0..1.0).contains(&floor) {
            return Err(Error::Number {
                argument: Argument::Floor,
                value: floor,
                expected: Expected::Fraction,
            });
        }
        Ok(Self {
            argument,
            p,
            rho,
            floor,
        })
    }

    /// Checks that every value is finite and every entry of `p` positive, and returns the sum of `p`.
    fn check_entries(&self, values: &[f64]) -> Result<f64> {
        check_each(self.argument, values, Expected::Finite, f64::is_finite)?;
        check_each(Argument::P, self.p, Expected::PositiveNormal, |p| {
            p.is_normal() && p > 0.0
        })?;
        let [total] = plain_sums(self.p, self.p, |p, _| [p]);
        if !is_near_one(total) {
            return Err(Error::Sum { found: total });
        }
        Ok(total)
    }

    /// The radius of the ball of `u`, whose floor is zero.
    fn free_radius(&self) -> f64 {
        self.rho / (1.0 - self.floor) / (1.0 - self.floor)
    }

    /// Returns the outcome if its certificate holds.
    fn certified(
        &self,
        total: f64,
        objective: Objective<'_>,
        outcome: Outcome,
        buffers: &mut Buffers<'_>,
    ) -> Result<Outcome> {
        if certificate::holds(self, total, objective, &outcome, buffers) {
            return Ok(outcome);
        }
        buffers.clear();
        Err(Error::Uncertified {
            divergence: outcome.divergence,
            rho: self.rho,
        })
    }

    /// Writes the solution for a radius of zero: the limit of small radii, whose `lambda` grows without bound.
    fn fill_center(&self, total: f64, sum_multiplier: f64, buffers: &mut Buffers<'_>) -> Outcome {
        for (q, p) in buffers.weights.iter_mut().zip(self.p) {
            *q = p / total;
        }
        Outcome {
            divergence: 0.0,
            status: Status::Center,
            ball_multiplier: f64::INFINITY,
            sum_multiplier,
        }
    }
}

fn is_near_one(total: f64) -> bool {
    (total - 1.0).abs() <= SUM_TOLERANCE
}

fn check_each(
    argument: Argument,
    values: &[f64],
    expected: Expected,
    holds: impl Fn(f64) -> bool,
) -> Result<()> {
    match values.iter().position(|&value| !holds(value)) {
        None => Ok(()),
        Some(index) => Err(Error::Entry {
            argument,
            index,
            value: values[index],
            expected,
        }),
    }
}
