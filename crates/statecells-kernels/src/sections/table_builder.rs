//! From a dictionary and inputs to lookup tables: the form for the machine is chosen here.

use super::fill;
use super::shape::TableLayout;
use super::tables::{Atoms, TableOutput, Turned};
use crate::isa::Level;
use crate::{Columns, Isa, KernelError};

/// Makes the lookup tables for the matrices coded over one dictionary.
#[derive(Clone, Debug)]
pub struct TableBuilder {
    layout: TableLayout,
    /// Turned around, so that 16 projections grow side by side.
    atoms: Turned,
}

impl TableBuilder {
    /// Takes over a dictionary (a few kilobytes are copied).
    ///
    /// # Shapes
    /// `dict`: [8, 16, n_sections], `n_sections` as in `layout`.
    ///
    /// # Errors
    /// [`KernelError`] if the length does not fit or an atom is not finite.
    pub fn new(layout: TableLayout, dict: Atoms<'_>) -> Result<Self, KernelError> {
        let atoms = dict.turned(layout.n_sections)?;
        Ok(Self { layout, atoms })
    }

    /// Layout of the tables.
    #[must_use]
    pub fn layout(&self) -> &TableLayout {
        &self.layout
    }

    /// Writes this thread's share of the tables for `x`. All forms write the same bytes.
    ///
    /// # Shapes
    /// `x`: [d_in, n_tokens]
    ///
    /// # Errors
    /// [`KernelError`] if `x` or `out` are not of the layout's shape; `out` is then untouched.
    pub fn build(
        &self,
        isa: Isa,
        x: Columns<'_>,
        out: &mut TableOutput<'_>,
    ) -> Result<(), KernelError> {
        if x.n() != self.layout.d_in {
            let reason = "the input has another length than the matrix has inputs";
            return Err(KernelError::Dimension { what: "d_in", value: x.n(), reason });
        }
        if out.layout() != self.layout || out.n_tokens() != x.n_tokens() {
            let reason = "the tables were laid out for another matrix or number of tokens";
            return Err(KernelError::Dimension { what: "n_tokens", value: out.n_tokens(), reason });
        }
        match isa.level() {
            Level::Scalar => fill::scalar(&self.atoms, x, out),
            // SAFETY: a `Level` stands for instructions this machine has.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { fill::avx2(&self.atoms, x, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => unsafe { fill::avx512(&self.atoms, x, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Level::Neon => unsafe { fill::neon(&self.atoms, x, out) },
        }
        Ok(())
    }
}
