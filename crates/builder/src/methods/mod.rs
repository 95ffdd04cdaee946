//! The schemes as a build sees them: each codec with its parameters as a [`crate::Method`], behind a feature of its own, so
//! that a program compiles what it offers and nothing else.

use format::{CodecError, Family, MatrixShape, Sidecar};

#[cfg(feature = "dictionary")]
pub mod dictionary;
#[cfg(feature = "sections")]
pub mod sections;
#[cfg(feature = "seeddelta")]
pub mod seeddelta;

/// What makes a dense matrix, [d_in, d_out], of its sidecars.
type Decode = fn(&[Sidecar], MatrixShape) -> Result<Vec<f32>, CodecError>;

/// How each family that this program offers is decoded, whatever the parameters of its codec were.
const DECODERS: &[(&Family, Decode)] = &[
    #[cfg(feature = "dictionary")]
    (&format::GLOBAL, |sidecars, shape| {
        Ok(::dictionary::GlobalParts::read(sidecars, shape)?.decode(shape))
    }),
    #[cfg(feature = "sections")]
    (&format::SECTIONS, |sidecars, shape| {
        Ok(::sections::SectionsParts::read(sidecars, shape)?.decode())
    }),
    #[cfg(feature = "seeddelta")]
    (&format::SEEDDELTA, |sidecars, shape| {
        Ok(::seeddelta::SeedDelta::from_sidecars(sidecars, shape)?.to_dense())
    }),
];

fn decoder(scheme: &str) -> Option<Decode> {
    let family = Family::of(scheme)?;
    DECODERS.iter().find(|(known, _)| *known == family).map(|(_, decode)| *decode)
}

/// Whether this program has the codec of `scheme`.
#[must_use]
pub(crate) fn can_decode(scheme: &str) -> bool {
    decoder(scheme).is_some()
}

/// The matrix that `sidecars` of `scheme`, which must be one of [`can_decode`], stand for, [d_in, d_out].
///
/// # Errors
/// [`CodecError`] if they stand for none.
///
/// # Panics
/// If there is no codec for it.
pub(crate) fn decode(
    scheme: &str,
    sidecars: &[Sidecar],
    shape: MatrixShape,
) -> Result<Vec<f32>, CodecError> {
    decoder(scheme).expect("the scheme was checked")(sidecars, shape)
}
