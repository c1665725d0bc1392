//! One error type for the crate; its variants carry the values that a message needs.

use std::fmt;

use crate::{SUM_TOLERANCE, WIDEST};

/// An argument of this crate's functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Argument {
    /// The losses of a worst case.
    Losses,
    /// The point of a projection.
    Y,
    /// The reference weights.
    P,
    /// The radius, or one radius for each row.
    Rho,
    /// The floor, or one floor for each row.
    Floor,
    /// The penalties of a penalised worst case.
    Penalties,
}

impl Argument {
    /// Returns the name in the signatures of this crate.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Losses => "losses",
            Self::Y => "y",
            Self::P => "p",
            Self::Rho => "rho",
            Self::Floor => "floor",
            Self::Penalties => "penalties",
        }
    }
}

/// A condition on a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Neither NaN nor infinite.
    Finite,
    /// Above 0, finite and not subnormal.
    PositiveNormal,
    /// At least 0 and finite.
    NonNegativeFinite,
    /// At least 0; infinity is allowed.
    NonNegative,
    /// At least 0 and below 1.
    Fraction,
}

impl fmt::Display for Expected {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Finite => "finite",
            Self::PositiveNormal => "positive (at least 2.3e-308) and finite",
            Self::NonNegativeFinite => "finite and at least 0",
            Self::NonNegative => "at least 0",
            Self::Fraction => "at least 0 and below 1",
        })
    }
}

/// An argument that is not usable.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// An argument is not as long as the first argument of the function, or as there are rows.
    #[error("{}", self.message(Argument::name))]
    Length {
        /// The argument.
        argument: Argument,
        /// Its length.
        found: usize,
        /// The length that it must have.
        expected: usize,
    },
    /// An argument has no entries.
    #[error("{}", self.message(Argument::name))]
    Empty {
        /// The argument.
        argument: Argument,
    },
    /// An entry of a vector is out of range.
    #[error("{}", self.message(Argument::name))]
    Entry {
        /// The vector.
        argument: Argument,
        /// The index of the entry.
        index: usize,
        /// Its value.
        value: f64,
        /// The condition that it must satisfy.
        expected: Expected,
    },
    /// A number is out of range.
    #[error("{}", self.message(Argument::name))]
    Number {
        /// The argument.
        argument: Argument,
        /// Its value.
        value: f64,
        /// The condition that it must satisfy.
        expected: Expected,
    },
    /// The reference weights do not sum to 1 within 1e-6.
    #[error("{}", self.message(Argument::name))]
    Sum {
        /// The sum.
        found: f64,
    },
    /// The entries of a point to project differ by more than 1e6.
    #[error("{}", self.message(Argument::name))]
    Spread {
        /// The smallest entry.
        least: f64,
        /// The largest entry.
        most: f64,
    },
    /// The solution found does not satisfy the constraints and the KKT system up to rounding: the arguments use more of
    /// the range of float64 than the solver can bridge.
    #[error("{}", self.message(Argument::name))]
    Uncertified {
        /// Divergence of the point that was found.
        divergence: f64,
        /// The radius.
        rho: f64,
    },
    /// A row of a batch is not usable.
    #[error("{}", self.message(Argument::name))]
    Row {
        /// The index of the row.
        row: usize,
        /// The error of its problem.
        error: Box<Error>,
    },
}

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// Writes the message with other names for the arguments, for instance those of a caller's signature.
    ///
    /// # Examples
    ///
    /// ```
    /// use chi2_ball::{Argument, worst_case};
    ///
    /// let error = worst_case(&[0.1, f64::NAN], &[0.5, 0.5], 0.1, 0.0).unwrap_err();
    /// assert_eq!(error.to_string(), "losses[1] is NaN; it must be finite");
    /// let name = |argument: Argument| if argument == Argument::Losses { "excess_loss" } else { argument.name() };
    /// assert_eq!(error.message(name), "excess_loss[1] is NaN; it must be finite");
    /// ```
    pub fn message(&self, name: impl Fn(Argument) -> &'static str) -> String {
        self.message_with(&name)
    }

    fn message_with(&self, name: &dyn Fn(Argument) -> &'static str) -> String {
        match self {
            Self::Length {
                argument,
                found,
                expected,
            } => format!(
                "{} has length {found}; expected {expected}",
                name(*argument)
            ),
            Self::Empty { argument } => {
                format!("{} is empty; expected at least 1 entry", name(*argument))
            }
            Self::Entry {
                argument,
                index,
                value,
                expected,
            } => format!(
                "{}[{index}] is {value:?}; it must be {expected}",
                name(*argument)
            ),
            Self::Number {
                argument,
                value,
                expected,
            } => format!("{} is {value:?}; it must be {expected}", name(*argument)),
            Self::Sum { found } => {
                let p = name(Argument::P);
                format!("{p} sums to {found:?}; it must sum to 1 within {SUM_TOLERANCE:e}")
            }
            Self::Spread { least, most } => {
                let y = name(Argument::Y);
                format!(
                    "{y} has entries from {least:e} to {most:e}; expected a mixture, or nearly one: entries within \
                     {WIDEST:e} of each other"
                )
            }
            Self::Uncertified { divergence, rho } => {
                let (rho_name, p) = (name(Argument::Rho), name(Argument::P));
                format!(
                    "no certified solution in float64: found divergence {divergence:e}, expected at most {rho_name} = \
                     {rho:e}; use a larger {rho_name} or entries of {p} of more similar size"
                )
            }
            Self::Row { row, error } => format!("row {row}: {}", error.message_with(name)),
        }
    }
}
