//! Small random models for tests: GGUF files that llama.cpp loads and runs, made in milliseconds.
//!
//! [`Model`] describes one; [`Model::write`] writes it. The same description gives the same bytes.
//! [`write_imatrix`] makes an importance matrix that fits.

mod imatrix;
mod tensors;
mod vocabulary;

use std::io;
use std::path::Path;

use ggml::Type;
use ggml::gguf::{GgufWriter, WriteError};

pub use imatrix::write_imatrix;
use tensors::Tensor;
pub use tensors::{Spectrum, random_matrix};

/// A model of the llama architecture, or of arcee, which differs in having no `ffn_gate`. With layers for
/// multi-token prediction it is of exaone4 or, without `ffn_gate`, of glm4, whose `ffn_up` has twice as many rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Layers that text runs through.
    pub n_layers: usize,
    /// Layers for multi-token prediction behind them.
    pub n_mtp_layers: usize,
    /// Width of the hidden state: a multiple of `2 * n_heads`.
    pub n_embd: usize,
    /// Width of the FFN.
    pub n_ff: usize,
    /// Attention heads.
    pub n_heads: usize,
    /// Tokens, at least 259: three special ones and one per byte.
    pub n_vocab: usize,
    /// Whether there is an `ffn_gate` (llama); without, the architecture is arcee.
    pub has_gate: bool,
    /// Type of the FFN matrices.
    pub ffn_type: Type,
    /// Type of all other matrices.
    pub other_type: Type,
    /// How the singular values of the matrices fall.
    pub spectrum: Spectrum,
    /// Seed of all weights.
    pub seed: u64,
}

impl Default for Model {
    fn default() -> Self {
        Self {
            n_layers: 2,
            n_mtp_layers: 0,
            n_embd: 64,
            n_ff: 192,
            n_heads: 4,
            n_vocab: 288,
            has_gate: true,
            ffn_type: Type::F32,
            other_type: Type::F16,
            spectrum: Spectrum::Flat,
            seed: 1,
        }
    }
}

impl Model {
    /// The architecture's name.
    #[must_use]
    pub fn architecture(&self) -> &'static str {
        match (self.n_mtp_layers > 0, self.has_gate) {
            (false, true) => "llama",
            (false, false) => "arcee",
            (true, true) => "exaone4",
            (true, false) => "glm4",
        }
    }

    /// Writes the model to `path`.
    ///
    /// # Errors
    /// [`WriteError::Io`], or [`WriteError::Dims`] if a type's blocks do not divide the rows.
    pub fn write(&self, path: &Path) -> Result<(), WriteError> {
        self.write_with(path, |_| Ok(()), |_, _| {})
    }

    /// Writes the model as if all its weights were 0, which takes no room on the disk however large the model is.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_hollow(&self, path: &Path) -> Result<(), WriteError> {
        let mut writer = GgufWriter::new();
        self.add_metadata(&mut writer)?;
        for tensor in tensors::all(self) {
            writer.add_tensor(&tensor.name, tensor.ty, &tensor.dims)?;
        }
        let mut file = std::fs::File::create(path)?;
        io::Write::write_all(&mut file, &writer.metadata())?;
        Ok(file.set_len(writer.total_bytes())?)
    }

    /// Writes the model with changes: `metadata` may add and remove keys, `weights` may change the values
    /// of the tensor it is given by name, before they are converted to the tensor's type.
    ///
    /// # Errors
    /// As [`Self::write`], and what `metadata` returns.
    pub fn write_with(
        &self,
        path: &Path,
        metadata: impl FnOnce(&mut GgufWriter) -> Result<(), WriteError>,
        mut weights: impl FnMut(&str, &mut [f32]),
    ) -> Result<(), WriteError> {
        let tensors = tensors::all(self);
        let mut writer = GgufWriter::new();
        self.add_metadata(&mut writer)?;
        metadata(&mut writer)?;
        for tensor in &tensors {
            writer.add_tensor(&tensor.name, tensor.ty, &tensor.dims)?;
        }
        let out = io::BufWriter::new(std::fs::File::create(path)?);
        writer.write(out, |index, out| {
            let tensor = &tensors[index];
            let mut values = tensor.values(self.seed, self.spectrum);
            weights(&tensor.name, &mut values);
            out.write_all(&encode(tensor, &values)?)
        })
    }

    fn add_metadata(&self, writer: &mut GgufWriter) -> Result<(), WriteError> {
        let arch = self.architecture();
        let mut number =
            |key: &str, value: usize| writer.set(&format!("{arch}.{key}"), value as u32);
        number("context_length", 512)?;
        number("embedding_length", self.n_embd)?;
        number("block_count", self.n_layers + self.n_mtp_layers)?;
        if self.n_mtp_layers > 0 {
            number("nextn_predict_layers", self.n_mtp_layers)?;
        }
        number("feed_forward_length", self.n_ff)?;
        number("attention.head_count", self.n_heads)?;
        number("attention.head_count_kv", self.n_heads)?;
        number("rope.dimension_count", self.n_embd / self.n_heads)?;
        number("vocab_size", self.n_vocab)?;
        writer.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), 1e-5f32)?;
        writer.set(&format!("{arch}.rope.freq_base"), 10_000f32)?;
        writer.set("general.architecture", arch)?;
        writer.set("general.name", "random test model")?;
        writer.set("general.file_type", 1u32)?;
        vocabulary::add(writer, self.n_vocab)
    }
}

fn encode(tensor: &Tensor, values: &[f32]) -> io::Result<Vec<u8>> {
    if tensor.ty == Type::F32 {
        // Not through the quantizer, which refuses values that tests of damaged models need.
        return Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }
    tensor.ty.quantize(values, tensor.dims[0], None).map_err(io::Error::other)
}
