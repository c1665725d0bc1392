//! One problem for each row of a matrix.

use crate::error::{Argument, Error, Result};
use crate::{Buffers, Outcome, project_into, worst_case_into};

/// One value for all rows, or one for each row.
#[derive(Clone, Copy, Debug)]
pub enum PerRow<'a> {
    /// One value for all rows.
    All(f64),
    /// One value for each row.
    Each(&'a [f64]),
}

impl PerRow<'_> {
    fn of(self, row: usize) -> f64 {
        match self {
            Self::All(value) => value,
            Self::Each(values) => values[row],
        }
    }

    fn check(self, argument: Argument, rows: usize) -> Result<()> {
        match self {
            Self::Each(values) if values.len() != rows => Err(Error::Length {
                argument,
                found: values.len(),
                expected: rows,
            }),
            _ => Ok(()),
        }
    }
}

/// The `m` problems of a matrix with `n` columns, in row-major order.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Losses, or points to project: `m n` numbers.
    pub values: &'a [f64],
    /// Reference weights: `n` numbers for all rows, or `m n`.
    pub p: &'a [f64],
    /// Radii.
    pub rho: PerRow<'a>,
    /// Floors.
    pub floor: PerRow<'a>,
    /// Entries of a row, `n`.
    pub columns: usize,
}

/// Solves [`worst_case_into`] for each row; the buffers hold `m n` entries.
///
/// # Errors
///
/// [`Error::Length`] or [`Error::Empty`] if an argument does not have the described length, and [`Error::Row`] for the
/// first row that is not usable.
///
/// # Panics
///
/// If a buffer is not as long as `values`.
pub fn worst_case_batch_into(batch: &Batch<'_>, buffers: &mut Buffers<'_>) -> Result<Vec<Outcome>> {
    batch.solve(Argument::Losses, buffers, worst_case_into)
}

/// Solves [`project_into`] for each row; the buffers hold `m n` entries.
///
/// # Errors
///
/// As [`worst_case_batch_into`].
///
/// # Panics
///
/// If a buffer is not as long as `values`.
pub fn project_batch_into(batch: &Batch<'_>, buffers: &mut Buffers<'_>) -> Result<Vec<Outcome>> {
    batch.solve(Argument::Y, buffers, project_into)
}

impl Batch<'_> {
    fn solve(
        &self,
        argument: Argument,
        buffers: &mut Buffers<'_>,
        solver: impl Fn(&[f64], &[f64], f64, f64, &mut Buffers<'_>) -> Result<Outcome>,
    ) -> Result<Vec<Outcome>> {
        let n = self.columns;
        buffers.assert_length(self.values.len());
        self.check(argument)?;
        let weights = buffers.weights.chunks_exact_mut(n);
        let multipliers = buffers.floor_multipliers.chunks_exact_mut(n);
        let at_floor = buffers.at_floor.chunks_exact_mut(n);
        let places = weights.zip(multipliers).zip(at_floor);
        let rows = self.values.chunks_exact(n).zip(places).enumerate();
        rows.map(
            |(row, (values, ((weights, floor_multipliers), at_floor)))| {
                let start = if self.p.len() == n { 0 } else { row * n };
                let mut buffers = Buffers {
                    weights,
                    floor_multipliers,
                    at_floor,
                };
                let p = &self.p[start..start + n];
                let (rho, floor) = (self.rho.of(row), self.floor.of(row));
                solver(values, p, rho, floor, &mut buffers).map_err(|error| Error::Row {
                    row,
                    error: Box::new(error),
                })
            },
        )
        .collect()
    }

    fn check(&self, argument: Argument) -> Result<()> {
        let n = self.columns;
        if n == 0 {
            return Err(Error::Empty { argument });
        }
        let rows = self.values.len() / n;
        for (argument, found, lengths) in [
            (argument, self.values.len(), [rows * n; 2]),
            (Argument::P, self.p.len(), [rows * n, n]),
        ] {
            if !lengths.contains(&found) {
                let expected = lengths[0];
                return Err(Error::Length {
                    argument,
                    found,
                    expected,
                });
            }
        }
        self.rho.check(Argument::Rho, rows)?;
        self.floor.check(Argument::Floor, rows)
    }
}
