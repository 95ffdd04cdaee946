//! The two products of a matrix coded in sections: the form for the machine is chosen here.

use super::decoder::Decoder;
use super::inputs::Inputs;
use super::matrix::SectionMatrix;
use super::shape::BLOCK;
use super::tables::Tables;
use super::{decode, lookup};
use crate::isa::{Dot, Lookup};
use crate::{Columns, Isa, KernelError, Output, Scratch};

impl SectionMatrix<'_> {
    /// Computes this thread's rows of `y` from finished tables. `x` is read only where the matrix has
    /// outliers.
    ///
    /// # Shapes
    /// `tables`: those of `x`: [d_in, n_tokens] -> `y`: [d_out, n_tokens]
    ///
    /// # Errors
    /// [`KernelError`] if a shape does not agree with the matrix; `y` is then untouched.
    pub fn product(
        &self,
        isa: Isa,
        tables: Tables<'_>,
        x: Columns<'_>,
        y: &mut Output<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        let layout = tables.layout();
        let reason = "the tables were laid out for another matrix";
        if layout.d_in.div_ceil(BLOCK) != self.shape.n_blocks() {
            return Err(KernelError::Dimension { what: "d_in", value: layout.d_in, reason });
        }
        if layout.n_sections != self.shape.n_sections {
            let value = layout.n_sections;
            return Err(KernelError::Dimension { what: "n_sections", value, reason });
        }
        self.check_columns(x, tables.n_tokens(), y)?;
        match isa.lookup() {
            Lookup::Scalar => lookup::scalar(self, tables, y),
            // SAFETY: a `Lookup` stands for instructions this machine has.
            #[cfg(target_arch = "x86_64")]
            Lookup::Avx2 => unsafe { lookup::avx2(self, tables, y) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Lookup::Avx512 => unsafe { lookup::avx512(self, tables, y) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Lookup::Avx512Vbmi => unsafe { lookup::avx512_vbmi(self, tables, y) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Lookup::Neon => unsafe { lookup::neon(self, tables, y) },
        }
        self.add_outliers(isa, x, y, scratch)
    }

    /// Computes this thread's rows of `y` from rounded inputs, by decoding the rows to bytes. `x` is read
    /// only where the matrix has outliers.
    ///
    /// An [`Isa`] without dot products of bytes computes the scalar reference; [`crate::Dispatch::route`] says when
    /// this product is the faster one.
    ///
    /// # Shapes
    /// `inputs`: those of `x`: [d_in, n_tokens] -> `y`: [d_out, n_tokens]
    ///
    /// # Errors
    /// [`KernelError`] if a shape does not agree with the matrix; `y` is then untouched.
    pub fn decoded_product(
        &self,
        isa: Isa,
        decoder: &Decoder,
        inputs: Inputs<'_>,
        x: Columns<'_>,
        y: &mut Output<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        if inputs.layout().d_in != self.shape.d_in {
            let (value, reason) = (inputs.layout().d_in, "the inputs are for another matrix");
            return Err(KernelError::Dimension { what: "d_in", value, reason });
        }
        if decoder.n_sections() != self.shape.n_sections {
            let (value, reason) = (decoder.n_sections(), "the dictionary is for another matrix");
            return Err(KernelError::Dimension { what: "n_sections", value, reason });
        }
        self.check_columns(x, inputs.n_tokens(), y)?;
        match isa.dot() {
            Dot::Scalar => decode::scalar(self, decoder, inputs, y),
            // SAFETY: a `Dot` stands for instructions this machine has.
            #[cfg(target_arch = "x86_64")]
            Dot::Avx2 => unsafe { decode::avx2(self, decoder, inputs, y, scratch) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Dot::AvxVnni => unsafe { decode::avx_vnni(self, decoder, inputs, y, scratch) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Dot::Avx512Vnni => unsafe { decode::avx512_vnni(self, decoder, inputs, y, scratch) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Dot::Neon => unsafe { decode::neon_dot(self, decoder, inputs, y, scratch) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Dot::NeonI8mm => unsafe { decode::neon_i8mm(self, decoder, inputs, y, scratch) },
        }
        self.add_outliers(isa, x, y, scratch)
    }

    /// Checks the shapes of input and result of a product with what was prepared for `n_tokens` tokens.
    fn check_columns(
        &self,
        x: Columns<'_>,
        n_tokens: usize,
        y: &Output<'_>,
    ) -> Result<(), KernelError> {
        y.check_shape(self.shape.d_out, n_tokens)?;
        if x.n() != self.shape.d_in || x.n_tokens() != n_tokens {
            let reason = "the input has another shape than what was prepared from it";
            return Err(KernelError::Dimension { what: "x", value: x.n(), reason });
        }
        Ok(())
    }

    fn add_outliers(
        &self,
        isa: Isa,
        x: Columns<'_>,
        y: &mut Output<'_>,
        scratch: &mut Scratch,
    ) -> Result<(), KernelError> {
        match &self.outliers {
            Some(outliers) => outliers.add_product(isa, x, y, scratch),
            None => Ok(()),
        }
    }
}
