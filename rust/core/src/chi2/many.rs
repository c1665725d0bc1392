//! Many problems at once: one per row of a matrix, the answers in the rows of other matrices.

use super::{Buffers, Outcome, project_into, worst_case_into};
use crate::error::{Error, Result};

/// One value for all rows, or one for each.
#[derive(Clone, Copy, Debug)]
pub enum Each<'a> {
    /// For all rows.
    All(f64),
    /// Row by row.
    Row(&'a [f64]),
}

impl Each<'_> {
    fn of(self, row: usize) -> f64 {
        match self {
            Self::All(value) => value,
            Self::Row(values) => values[row],
        }
    }
}

/// `m` problems of `n` entries each, row after row.
#[derive(Clone, Copy, Debug)]
pub struct Many<'a> {
    /// Losses, or points to project: `m n` numbers.
    pub values: &'a [f64],
    /// Reference mixtures: `n` numbers for all rows, or `m n`.
    pub p: &'a [f64],
    /// Radii.
    pub rho: Each<'a>,
    /// Floors.
    pub floor: Each<'a>,
    /// Entries of a row.
    pub n: usize,
}

/// [`worst_case_into`] for each row; the buffers hold `m n` entries.
///
/// # Errors
///
/// As [`worst_case_into`], naming the first row that is wrong.
///
/// # Panics
///
/// If a slice has another length than described.
pub fn worst_case_many_into(many: &Many<'_>, buffers: &mut Buffers<'_>) -> Result<Vec<Outcome>> {
    many.solve(buffers, worst_case_into)
}

/// [`project_into`] for each row; the buffers hold `m n` entries.
///
/// # Errors
///
/// As [`project_into`], naming the first row that is wrong.
///
/// # Panics
///
/// If a slice has another length than described.
pub fn project_many_into(many: &Many<'_>, buffers: &mut Buffers<'_>) -> Result<Vec<Outcome>> {
    many.solve(buffers, project_into)
}

impl Many<'_> {
    fn solve(
        &self,
        buffers: &mut Buffers<'_>,
        solver: impl Fn(&[f64], &[f64], f64, f64, &mut Buffers<'_>) -> Result<Outcome>,
    ) -> Result<Vec<Outcome>> {
        buffers.assert_length(self.values.len());
        let n = self.n;
        if n == 0 {
            return Err(Error::Weight(
                "got rows without entries; a row needs at least 1".into(),
            ));
        }
        let weights = buffers.weights.chunks_exact_mut(n);
        let multipliers = buffers.floor_multipliers.chunks_exact_mut(n);
        let at_floor = buffers.at_floor.chunks_exact_mut(n);
        let places = weights.zip(multipliers).zip(at_floor);
        let rows = self.values.chunks_exact(n).zip(places).enumerate();
        rows.map(
            |(row, (values, ((weights, floor_multipliers), at_floor)))| {
                let own = if self.p.len() == n { 0 } else { row * n };
                let p = &self.p[own..own + n];
                let mut buffers = Buffers {
                    weights,
                    floor_multipliers,
                    at_floor,
                };
                solver(
                    values,
                    p,
                    self.rho.of(row),
                    self.floor.of(row),
                    &mut buffers,
                )
                .map_err(|error| match error {
                    Error::Weight(message) => Error::Weight(format!("row {row}: {message}")),
                    other => other,
                })
            },
        )
        .collect()
    }
}
