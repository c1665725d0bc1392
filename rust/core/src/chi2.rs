//! The chi-square ball around a mixture: its worst case for given losses, and the nearest point in it.
//!
//! For a reference mixture `p` (every entry positive, sum one), a radius `rho` and a floor `f` the ball is
//!
//! ```text
//! Q = { q : q_i >= f p_i,  sum q = 1,  D(q, p) <= rho },    D(q, p) = 1/2 sum_i p_i (q_i / p_i - 1)^2
//! ```
//!
//! Mind the half in `D`. Two problems, two functions (and the first with a penalty, see `penalised.rs`):
//!
//! ```text
//! worst_case   maximise  <q, v>              over Q
//! project      minimise  1/2 |q - y|^2       over Q
//! ```
//!
//! # Optimality
//!
//! With multipliers `lambda >= 0` of the ball, `nu` of the sum and `mu_i >= 0` of the floors, `q` is optimal if and
//! only if it lies in `Q`, `lambda (rho - D) = 0`, `mu_i (q_i - f p_i) = 0`, and for every `i`
//!
//! ```text
//! worst_case   v_i - nu - lambda (q_i / p_i - 1) + mu_i = 0
//! project      y_i - q_i - nu - lambda (q_i / p_i - 1) + mu_i = 0
//! ```
//!
//! A [`Solution`] carries these multipliers, so that anyone can check it.
//!
//! # Method
//!
//! The floor is free: with `q = f p + (1 - f) u` both problems become the same problem in `u` with floor 0 and radius
//! `rho / (1 - f)^2`. Write `u_i = p_i (1 + t_i)`; let `S` be the support of `u`, so `t_i = -1` outside `S`.
//!
//! *Worst case.* On `S`, with mass `P`, weighted mean `m` and variance `V` of `v`, the optimality system has the closed
//! form `u_i = (p_i / P) (1 + (v_i - m) / d)`, `d^2 = V / room`, `room = 2 rho P - (1 - P)`, and `S` holds the entries
//! above `m - d`. It is found in expected linear time, see `threshold.rs`. If the ball reaches the face
//! where `v` is largest, `p` restricted to that face and renormalised is the maximiser of least divergence (others
//! exist when several entries tie).
//!
//! *Projection.* The plain projection onto the simplex, if it lies in the ball. Otherwise
//! `t_i = (y_i - p_i - nu) / (p_i + lambda)` on `S`; for a given `lambda`, `nu` is the root of a convex function
//! that is linear between entries, and `D(lambda) = rho` is solved by Newton's method on `D^(-1/2)`, which is
//! nearly linear (the secular equation of trust-region methods), inside a bracket.
//!
//! No step forms `(1 + 2 rho) P - 1` or `u_i - p_i`: these cancel when `rho` is small.

mod lanes;
mod many;
mod penalised;
mod project;
mod threshold;
mod top;
mod worst_case;

pub use many::{Each, Many, project_many_into, worst_case_many_into};
pub use penalised::{penalised_worst_case, penalised_worst_case_into};
pub use project::{project, project_into};
pub use worst_case::{worst_case, worst_case_into};

use crate::error::{Error, Result};
use lanes::plain_sums;

/// How far from one the sum of `p` may be; it is divided by its sum afterwards.
const SUM_TOLERANCE: f64 = 1e-6;

/// Which constraints decide the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The answer is `p`: the radius is zero, or all losses are equal.
    Center,
    /// No inequality binds (projection), or the ball does not and the penalty decides (penalised worst case).
    Interior,
    /// The ball binds: the divergence is `rho`.
    Boundary,
    /// The ball does not bind, the floors do: the answer lies on a face of the simplex above the floor.
    Face,
}

impl Status {
    /// The word for this status in Python, records and reports.
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

/// A point of the ball with its certificate: the multipliers of the module documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct Solution {
    /// The mixture `q`; sums to one up to rounding.
    pub weights: Vec<f64>,
    /// `D(q, p)`, with the half.
    pub divergence: f64,
    /// Which constraints decide.
    pub status: Status,
    /// `lambda`; infinite when the radius is zero and the losses differ.
    pub ball_multiplier: f64,
    /// `nu`.
    pub sum_multiplier: f64,
    /// `mu_i`; zero where the floor does not bind.
    pub floor_multipliers: Vec<f64>,
    /// Whether `q_i` sits on its floor.
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

/// The numbers of a [`Solution`] whose arrays the caller owns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// `D(q, p)`, with the half.
    pub divergence: f64,
    /// Which constraints decide.
    pub status: Status,
    /// `lambda`.
    pub ball_multiplier: f64,
    /// `nu`.
    pub sum_multiplier: f64,
}

/// Where the arrays of a [`Solution`] are written; all of them zero (false) beforehand, because zeros are not written.
#[derive(Debug)]
pub struct Buffers<'a> {
    /// `q`.
    pub weights: &'a mut [f64],
    /// `mu`.
    pub floor_multipliers: &'a mut [f64],
    /// Whether `q_i` sits on its floor.
    pub at_floor: &'a mut [bool],
}

impl Buffers<'_> {
    fn assert_length(&self, n: usize) {
        let lengths = [
            self.weights.len(),
            self.floor_multipliers.len(),
            self.at_floor.len(),
        ];
        assert_eq!(lengths, [n; 3], "a buffer is not as long as the losses");
    }
}

/// A problem; its entries are checked by [`Ball::check_entries`].
struct Ball<'a> {
    p: &'a [f64],
    rho: f64,
    floor: f64,
}

impl<'a> Ball<'a> {
    fn new(values: &[f64], p: &'a [f64], rho: f64, floor: f64) -> Result<Self> {
        if values.len() != p.len() || p.is_empty() {
            return Err(Error::Weight(format!(
                "got {} values and {} reference weights; both must have the same length, at least 1",
                values.len(),
                p.len()
            )));
        }
        if rho.is_nan() || rho < 0.0 {
            return Err(Error::Weight(format!(
                "rho is {rho}; it must be at least 0"
            )));
        }
        if !(0.0..1.0).contains(&floor) {
            return Err(Error::Weight(format!(
                "floor is {floor}; it must be at least 0 and below 1"
            )));
        }
        Ok(Self { p, rho, floor })
    }

    /// The sum of `p`, once every value is known to be finite and every entry of `p` positive.
    fn check_entries(&self, what: &str, values: &[f64]) -> Result<f64> {
        if let Some(i) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::Weight(format!(
                "{what} {i} is {}; it must be finite",
                values[i]
            )));
        }
        if let Some(i) = self.p.iter().position(|p| !(p.is_finite() && *p > 0.0)) {
            return Err(Error::Weight(format!(
                "reference weight {i} is {}; it must be positive and finite",
                self.p[i]
            )));
        }
        let [total] = plain_sums(self.p, self.p, |p, _| [p]);
        if !is_near_one(total) {
            return Err(Error::Weight(format!(
                "reference weights sum to {total}; they must sum to 1"
            )));
        }
        Ok(total)
    }

    /// The radius of the ball of `u`, whose floor is zero.
    fn free_radius(&self) -> f64 {
        self.rho / (1.0 - self.floor) / (1.0 - self.floor)
    }

    /// The answer for a radius of zero: the limit of small ones, whose `lambda` grows without bound.
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
