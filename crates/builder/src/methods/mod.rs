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
pub(crate) type Decode = fn(&[Sidecar], MatrixShape) -> Result<Vec<f32>, CodecError>;

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

/// How matrices of `family` are decoded; `None` if this program does not have its codec.
pub(crate) fn decoder(family: &Family) -> Option<Decode> {
    DECODERS.iter().find(|(known, _)| *known == family).map(|(_, decode)| *decode)
}
