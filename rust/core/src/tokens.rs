//! Token ids as they lie in a file, and how they become `i32` or `i64`.

/// Integer types that token files use, all little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// `uint8`
    U8,
    /// `int8`
    I8,
    /// `uint16`
    U16,
    /// `int16`
    I16,
    /// `uint32`
    U32,
    /// `int32`
    I32,
    /// `int64`
    I64,
}

impl Dtype {
    const ALL: [Self; 7] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::I64,
    ];

    /// Bytes for one token.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }

    /// `NumPy`'s name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "uint8",
            Self::I8 => "int8",
            Self::U16 => "uint16",
            Self::I16 => "int16",
            Self::U32 => "uint32",
            Self::I32 => "int32",
            Self::I64 => "int64",
        }
    }

    /// The type with `NumPy`'s name `name`.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// Widens `bytes` into `out`, one id for each place; both must hold the same number of tokens. Returns the largest
    /// id, negative ones counting as larger than all others. What does not fit `T` is cut; the largest id tells.
    pub(crate) fn widen<T: Token>(self, bytes: &[u8], out: &mut [T]) -> u64 {
        match self {
            Self::U8 => each(bytes, out, |b| i64::from(u8::from_le_bytes(b))),
            Self::I8 => each(bytes, out, |b| i64::from(i8::from_le_bytes(b))),
            Self::U16 => each(bytes, out, |b| i64::from(u16::from_le_bytes(b))),
            Self::I16 => each(bytes, out, |b| i64::from(i16::from_le_bytes(b))),
            Self::U32 => each(bytes, out, |b| i64::from(u32::from_le_bytes(b))),
            Self::I32 => each(bytes, out, |b| i64::from(i32::from_le_bytes(b))),
            Self::I64 => each(bytes, out, i64::from_le_bytes),
        }
    }
}

/// Integers that ids are delivered as: `i32` and `i64`.
pub trait Token: Copy + Default + Eq + Send + Sync + 'static {
    /// Ids are below this.
    const LIMIT: u64;

    /// The low bits of `id`.
    #[must_use]
    fn cut(id: i64) -> Self;
}

impl Token for i32 {
    const LIMIT: u64 = 1 << 31;

    fn cut(id: i64) -> Self {
        id as Self
    }
}

impl Token for i64 {
    const LIMIT: u64 = 1 << 63;

    fn cut(id: i64) -> Self {
        id
    }
}

fn each<T: Token, const N: usize>(
    bytes: &[u8],
    out: &mut [T],
    decode: impl Fn([u8; N]) -> i64,
) -> u64 {
    debug_assert_eq!(bytes.len(), out.len() * N);
    let mut largest = 0;
    for (token, chunk) in out.iter_mut().zip(bytes.chunks_exact(N)) {
        let mut word = [0; N];
        word.copy_from_slice(chunk);
        let id = decode(word);
        largest = largest.max(id as u64);
        *token = T::cut(id);
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_widens_its_extremes() {
        let cases: [(Dtype, &[u8], &[i64]); 7] = [
            (Dtype::U8, &[0, 255], &[0, 255]),
            (Dtype::I8, &[127, 255], &[127, -1]),
            (Dtype::U16, &[1, 0, 255, 255], &[1, 65_535]),
            (Dtype::I16, &[1, 0, 255, 255], &[1, -1]),
            (
                Dtype::U32,
                &[0, 0, 1, 0, 255, 255, 255, 255],
                &[65_536, 4_294_967_295],
            ),
            (Dtype::I32, &[0, 0, 1, 0, 255, 255, 255, 255], &[65_536, -1]),
            (Dtype::I64, &[0, 0, 0, 0, 1, 0, 0, 0], &[1 << 32]),
        ];
        for (dtype, bytes, expected) in cases {
            let mut out = vec![0i64; expected.len()];
            dtype.widen(bytes, &mut out);
            assert_eq!(out, expected, "{dtype:?}");
            assert_eq!(bytes.len(), dtype.size() * expected.len());
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_name("float32"), None);
    }
}
