//! Mixtures in integer units, so that their arithmetic is exact and the same on every machine.

use crate::error::{Result, StateError, WeightError};

pub(crate) const TOTAL: u64 = Weights::TOTAL;
pub(crate) const MAX_DOMAINS: usize = Weights::MAX_DOMAINS;

/// The weights of a mixture in units of 1 / [`Weights::TOTAL`]; they sum to [`Weights::TOTAL`] exactly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    units: Vec<u64>,
}

impl Weights {
    /// The sum of the units of a mixture. A weight is off by at most one unit: over 10^12 rows that is a quarter of a
    /// row.
    pub const TOTAL: u64 = 1 << 42;

    /// The largest number of domains: with more, credits times domains would not fit 64 bits.
    pub const MAX_DOMAINS: usize = 1 << 14;

    /// Normalises `values`, one for each name, and rounds them to units by largest remainder. A value of 0 stays 0.
    ///
    /// # Errors
    ///
    /// - [`WeightError::Count`]: `values` is not as long as `names`.
    /// - [`WeightError::TooManyDomains`]: there are more than [`Weights::MAX_DOMAINS`].
    /// - [`WeightError::Value`]: a value is negative, infinite or NaN.
    /// - [`WeightError::AllZero`]: no value is positive.
    ///
    /// # Examples
    ///
    /// ```
    /// use drpruning_core::Weights;
    /// let names = ["cc".to_string(), "github".to_string()];
    /// let weights = Weights::new(&names, &[3.0, 1.0])?;
    /// assert_eq!(weights.units(), [3 * Weights::TOTAL / 4, Weights::TOTAL / 4]);
    /// # Ok::<(), drpruning_core::Error>(())
    /// ```
    pub fn new(names: &[String], values: &[f64]) -> Result<Self> {
        if names.len() != values.len() {
            return Err(WeightError::Count {
                weights: values.len(),
                domains: names.len(),
            }
            .into());
        }
        if values.len() > MAX_DOMAINS {
            return Err(WeightError::TooManyDomains {
                domains: values.len(),
                max: MAX_DOMAINS,
            }
            .into());
        }
        for (name, value) in names.iter().zip(values) {
            if !(value.is_finite() && *value >= 0.0) {
                return Err(WeightError::Value {
                    name: name.clone(),
                    value: *value,
                }
                .into());
            }
        }
        let largest = values.iter().copied().fold(0.0, f64::max);
        if largest == 0.0 {
            return Err(WeightError::AllZero.into());
        }
        Ok(Self {
            units: round(values, largest),
        })
    }

    /// Restores weights from saved units.
    ///
    /// # Errors
    ///
    /// [`StateError::Units`] if they do not sum to [`Weights::TOTAL`].
    pub fn from_units(units: Vec<u64>) -> Result<Self> {
        let sum = units
            .iter()
            .try_fold(0u64, |sum, &unit| sum.checked_add(unit));
        if sum != Some(TOTAL) || units.len() > MAX_DOMAINS {
            return Err(StateError::Units { expected: TOTAL }.into());
        }
        Ok(Self { units })
    }

    /// Returns the weights in units of 1 / [`Weights::TOTAL`].
    #[must_use]
    pub fn units(&self) -> &[u64] {
        &self.units
    }

    /// Returns the weights as fractions.
    #[must_use]
    pub fn fractions(&self) -> Vec<f64> {
        self.units
            .iter()
            .map(|&unit| unit as f64 / TOTAL as f64)
            .collect()
    }
}

fn round(values: &[f64], largest: f64) -> Vec<u64> {
    // Divided by the largest first, so that sums of huge values stay finite and sums of tiny ones stay exact.
    let sum: f64 = values.iter().map(|value| value / largest).sum();
    let exact: Vec<f64> = values
        .iter()
        .map(|value| value / largest / sum * TOTAL as f64)
        .collect();
    let mut units: Vec<u64> = exact.iter().map(|value| value.floor() as u64).collect();
    let mut by_remainder: Vec<usize> = (0..values.len()).filter(|&i| values[i] > 0.0).collect();
    by_remainder.sort_by(|&i, &j| {
        exact[j]
            .fract()
            .total_cmp(&exact[i].fract())
            .then(i.cmp(&j))
    });
    let assigned: u64 = units.iter().sum();
    for k in 0..TOTAL.saturating_sub(assigned) as usize {
        units[by_remainder[k % by_remainder.len()]] += 1;
    }
    // The rounding of a sum of very many values can assign a few units too many; the largest weight loses them.
    for _ in TOTAL..assigned {
        if let Some(most) = units.iter_mut().max() {
            *most -= 1;
        }
    }
    units
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("domain-{i}")).collect()
    }

    proptest! {
        #[test]
        fn units_are_within_one_of_exact(values in prop::collection::vec(prop_oneof![Just(0.0), 1e-9..1.0f64], 1..200)) {
            prop_assume!(values.iter().any(|&value| value > 0.0));
            let weights = Weights::new(&names(values.len()), &values).unwrap();
            prop_assert_eq!(weights.units().iter().sum::<u64>(), TOTAL);
            let sum: f64 = values.iter().sum();
            for (unit, value) in weights.units().iter().zip(&values) {
                prop_assert!((*unit as f64 - value / sum * TOTAL as f64).abs() <= 1.001);
                prop_assert!(*value > 0.0 || *unit == 0);
            }
        }
    }

    #[test]
    fn extreme_values_are_fine() {
        for values in [[f64::MAX, f64::MAX], [5e-324, 5e-324], [1e300, 1e300]] {
            assert_eq!(
                Weights::new(&names(2), &values).unwrap().units(),
                [TOTAL / 2, TOTAL / 2]
            );
        }
        let many = Weights::new(&names(MAX_DOMAINS), &vec![0.1; MAX_DOMAINS]).unwrap();
        assert!(many.units().iter().all(|&unit| unit == TOTAL >> 14));
    }

    #[test]
    fn invalid_values_are_named() {
        for (values, expected) in [
            ([f64::NAN, 1.0], "weight of domain \"domain-0\" is NaN"),
            ([1.0, -0.5], "weight of domain \"domain-1\" is -0.5"),
            ([f64::INFINITY, 1.0], "is inf"),
            ([0.0, 0.0], "all weights are 0"),
        ] {
            let message = Weights::new(&names(2), &values).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        assert!(Weights::new(&names(3), &[1.0]).is_err());
        assert!(Weights::new(&[], &[]).is_err());
        assert!(Weights::from_units(vec![TOTAL, 1]).is_err());
        assert!(Weights::from_units(vec![u64::MAX, TOTAL + 1]).is_err());
    }
}
