//! The domain of each row: balanced draws (earliest deadline first) or independent random draws.

pub(crate) mod balanced;
pub(crate) mod fast_forward;
pub(crate) mod random;

pub use balanced::Balanced;
pub(crate) use fast_forward::fast_forward;
pub(crate) use random::Random;
