//! The objective of the fit, with its first and second derivatives.

/// `[u, w, alpha, beta]`.
pub(super) type Theta = [f64; 4];
type Matrix = [[f64; 4]; 4];

pub(super) const SHARE: usize = 1;
pub(super) const ALPHA: usize = 2;
pub(super) const BETA: usize = 3;

/// `F` for given points.
pub(super) struct Objective {
    /// `x` and `t` above their smallest, and `y`.
    points: Vec<(f64, f64, f64)>,
    delta: f64,
}

/// `F` and its derivatives at a point.
pub(super) struct Derivatives {
    pub(super) value: f64,
    pub(super) gradient: Theta,
    /// Hessian of `F`, exact where no residual is at `delta`; lower triangle.
    pub(super) hessian: Matrix,
    /// Hessian of the quadratic that touches `F` here and is above it to first order in the model (reweighted least
    /// squares); lower triangle.
    pub(super) above: Matrix,
}

impl Objective {
    pub(super) fn new(x: &[f64], t: &[f64], y: &[f64], delta: f64) -> Self {
        let least = |values: &[f64]| values.iter().copied().fold(f64::INFINITY, f64::min);
        let (x0, t0) = (least(x), least(t));
        let points = (0..y.len()).map(|i| (x[i] - x0, t[i] - t0, y[i])).collect();
        Self { points, delta }
    }

    /// Returns a start: the highest loss falls to half the lowest.
    pub(super) fn start(&self) -> Theta {
        let highest = self
            .points
            .iter()
            .fold(f64::NEG_INFINITY, |h, p| h.max(p.2));
        let lowest = self.points.iter().fold(f64::INFINITY, |l, p| l.min(p.2));
        [highest, 1.0 - 0.5 * (lowest - highest).exp(), 0.0, 0.0]
    }

    /// Writes `b` at every point, for the exponents of `theta`, into `out`.
    pub(super) fn falls(&self, theta: &Theta, out: &mut Vec<f64>) {
        out.clear();
        out.extend(
            self.points
                .iter()
                .map(|&(x, t, _)| (-theta[ALPHA] * x - theta[BETA] * t).exp()),
        );
    }

    /// Computes `F` and its derivatives at `theta`, whose `b` are `falls`; by the exponents only if `exponents`.
    pub(super) fn derivatives(&self, theta: &Theta, falls: &[f64], exponents: bool) -> Derivatives {
        if exponents {
            self.first::<4>(theta, falls)
        } else {
            self.first::<2>(theta, falls)
        }
    }

    /// `F` and its derivatives by the first `COUNT` coordinates.
    fn first<const COUNT: usize>(&self, theta: &Theta, falls: &[f64]) -> Derivatives {
        let [u, w, ..] = *theta;
        let (mut value, mut gradient) = (0.0, [0.0; 4]);
        let (mut hessian, mut above) = ([[0.0; 4]; 4], [[0.0; 4]; 4]);
        for (&(x, t, y), &b) in self.points.iter().zip(falls) {
            let inside = 1.0 - w + w * b;
            let r = u + inside.ln() - y;
            let size = r.abs();
            let (slope, curvature, weight);
            if size <= self.delta {
                value += 0.5 * r * r;
                (slope, curvature, weight) = (r, 1.0, 1.0);
            } else {
                value += self.delta * (size - 0.5 * self.delta);
                (slope, curvature, weight) = (self.delta.copysign(r), 0.0, self.delta / size);
            }
            // Derivatives of m by u, w, alpha, beta; the part of the loss that still falls is w b / inside.
            let falling = w * b / inside;
            let first = [1.0, (b - 1.0) / inside, -falling * x, -falling * t];
            let mixed = -b / (inside * inside);
            let bend = falling * (1.0 - falling);
            let second = [
                [0.0, 0.0, 0.0, 0.0],
                [0.0, -first[1] * first[1], 0.0, 0.0],
                [0.0, mixed * x, bend * x * x, 0.0],
                [0.0, mixed * t, bend * x * t, bend * t * t],
            ];
            for i in 0..COUNT {
                gradient[i] += slope * first[i];
                for j in 0..=i {
                    let product = first[i] * first[j];
                    hessian[i][j] += curvature * product + slope * second[i][j];
                    above[i][j] += weight * product;
                }
            }
        }
        Derivatives {
            value,
            gradient,
            hessian,
            above,
        }
    }
}
