//! How the atoms of a row are chosen.

use format::Scheme;

use crate::Encoder;

/// How many atoms are chosen, how, and which coefficients they may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Selection {
    pub(crate) scheme: Scheme,
    pub(crate) encoder: Encoder,
    pub(crate) k: usize,
}
