//! Other forms of the base, made by llama-quantize: whole files, and files whose FFN alone differs.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use format::{Matrix, MatrixId, ModelMap};
use ggml::Type;
use ggml::gguf::GgufFile;
use ggml::quant_mix::{FfnMatrix, QuantMix};
use inspect::KvTypes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, memory};

/// What of the base is requantized.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Extent {
    /// The FFN matrices; all other tensors are the base's.
    Ffn,
    /// All that llama-quantize requantizes.
    Whole,
}

/// A form of the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    /// The mixture of types.
    pub mix: QuantMix,
    /// What is requantized.
    pub extent: Extent,
}

impl Variant {
    /// Short name for files: `ffn-Q5_K_M`, `whole-Q5_K_M`.
    #[must_use]
    pub fn key(self) -> String {
        match self.extent {
            Extent::Ffn => format!("ffn-{}", self.mix),
            Extent::Whole => format!("whole-{}", self.mix),
        }
    }

    /// Name for people.
    #[must_use]
    pub fn label(self) -> String {
        match self.extent {
            Extent::Ffn => format!("{} FFN", self.mix),
            Extent::Whole => format!("{} file", self.mix),
        }
    }

    /// Rules for `llama-quantize --tensor-type-file` that make it from the base; empty for a whole file.
    ///
    /// # Errors
    /// [`Error::Input`] if an FFN weight is no matrix.
    pub fn rules(self, base: &GgufFile, n_layers: usize) -> Result<String, Error> {
        let mut rules = String::new();
        if self.extent == Extent::Whole {
            return Ok(rules);
        }
        let types = ffn_types(self.mix, base, n_layers)?;
        for tensor in base.tensors().iter().filter(|t| t.dims().len() > 1) {
            let ty = types.get(tensor.name()).map_or(tensor.ty(), |ffn| ffn.expected);
            let _ = writeln!(rules, "^{}$={}", tensor.name().replace('.', "\\."), ty.name());
        }
        Ok(rules)
    }

    /// Arguments of llama-quantize.
    #[must_use]
    pub fn arguments(
        self,
        base: &Path,
        output: &Path,
        rules: &Path,
        n_threads: usize,
    ) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--allow-requantize".into()];
        if self.extent == Extent::Ffn {
            arguments.extend(["--tensor-type-file".into(), rules.into()]);
        }
        arguments.extend([
            base.into(),
            output.into(),
            self.mix.name().into(),
            n_threads.to_string().into(),
        ]);
        arguments
    }

    /// Checks that the file at `path` is what was asked for, and says where types fell back.
    ///
    /// # Errors
    /// [`Error::Input`] if another tensor changed, or an FFN matrix has another type than its rule says.
    pub fn check(
        self,
        path: &Path,
        base: &GgufFile,
        n_layers: usize,
    ) -> Result<Vec<String>, Error> {
        let made = GgufFile::open(path)?;
        let types = ffn_types(self.mix, base, n_layers)?;
        let mut fallbacks: BTreeMap<String, usize> = BTreeMap::new();
        for tensor in base.tensors() {
            let found = made.require_tensor(tensor.name())?.ty();
            let Some(FfnType { id, expected, wanted }) = types.get(tensor.name()) else {
                if self.extent == Extent::Ffn && found != tensor.ty() {
                    let reason = format!("{} became {found}, not {}", tensor.name(), tensor.ty());
                    return Err(Error::input(path, reason));
                }
                continue;
            };
            if self.extent == Extent::Ffn && found != *expected {
                let reason = format!("{} became {found}, not {expected}", tensor.name());
                return Err(Error::input(path, reason));
            }
            if found != *wanted {
                let d_in = tensor.dims()[0];
                let text =
                    format!("{}: {wanted} fell back to {found} (rows of {d_in})", id.role.part());
                *fallbacks.entry(text).or_default() += 1;
            }
        }
        Ok(fallbacks.into_iter().map(|(text, n)| format!("{text}, {n} matrices")).collect())
    }
}

/// What a mixture makes of a matrix.
struct FfnType {
    id: MatrixId,
    /// The type that it gets.
    expected: Type,
    /// The type before it falls back for the length of its rows.
    wanted: Type,
}

/// The types that `mix` gives the FFN matrices of `base`, by the names of their weights.
fn ffn_types(
    mix: QuantMix,
    base: &GgufFile,
    n_layer: usize,
) -> Result<BTreeMap<String, FfnType>, Error> {
    let architecture = base.architecture()?;
    let map = ModelMap::of(base.tensors().iter().map(|info| (info.name(), info.dims())));
    let typed = |&Matrix { id, shape, n_experts }: &Matrix| {
        let name = id.weight();
        if n_experts.is_some() {
            return Err(Error::input(base.path(), format!("{name} is no matrix")));
        }
        let MatrixId { layer, role } = id;
        let ffn = FfnMatrix { role, layer, n_layer, shape, architecture: &architecture };
        Ok((name, FfnType { id, expected: mix.ffn_type(&ffn), wanted: mix.ffn_wanted(&ffn) }))
    };
    map.matrices().map(typed).collect()
}

/// A variant that was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Made {
    /// SHA-256 of the file.
    pub sha256: String,
    /// Its sizes.
    pub sizes: memory::Sizes,
    /// Where types fell back.
    pub fallbacks: Vec<String>,
}

impl Made {
    /// Looks at the file at `path`, made as `variant` of `base`.
    ///
    /// # Errors
    /// As [`Variant::check`], and those of reading it.
    pub fn of(
        variant: Variant,
        path: &Path,
        base: &GgufFile,
        n_layers: usize,
        types: KvTypes,
    ) -> Result<Self, Error> {
        let fallbacks = variant.check(path, base, n_layers)?;
        Ok(Self {
            sha256: crate::inputs::sha256(path)?,
            sizes: memory::sizes(path, types)?,
            fallbacks,
        })
    }
}

/// Where a variant is made.
pub(crate) fn path(folder: &Path, variant: Variant, identity: &str) -> PathBuf {
    folder.join(format!("{}-{}.gguf", variant.key(), &identity[..16]))
}
