//! Other forms of the base, made by llama-quantize: whole files, and files whose FFN alone differs.

use std::collections::{BTreeMap, BTreeSet};
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
    /// The FFN matrices that the compressed file codes; all other tensors are the base's.
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
    /// Whether an importance matrix helps.
    pub has_imatrix: bool,
}

/// The base, and which of its FFN matrices are coded in the compressed file: no others change in a variant.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The base.
    pub base: &'a GgufFile,
    /// Its number of layers.
    pub n_layers: usize,
    /// What the compressed file codes.
    pub coded: &'a BTreeSet<MatrixId>,
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
        let imatrix = if self.has_imatrix { ", imatrix" } else { "" };
        match self.extent {
            Extent::Ffn => format!("{} FFN{imatrix}", self.mix),
            Extent::Whole => format!("{} file{imatrix}", self.mix),
        }
    }

    /// Rules for `llama-quantize --tensor-type-file` that make it from the base; empty for a whole file.
    ///
    /// # Errors
    /// [`Error::Input`] if an FFN weight is no matrix.
    pub fn rules(self, source: Source<'_>) -> Result<String, Error> {
        let mut rules = String::new();
        if self.extent == Extent::Whole {
            return Ok(rules);
        }
        let types = self.ffn_types(source)?;
        for tensor in source.base.tensors().iter().filter(|t| t.dims().len() > 1) {
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
        (imatrix, n_threads): (Option<&Path>, usize),
    ) -> Vec<OsString> {
        let mut arguments: Vec<OsString> = vec!["--allow-requantize".into()];
        if let Some(imatrix) = imatrix.filter(|_| self.has_imatrix) {
            arguments.extend(["--imatrix".into(), imatrix.into()]);
        }
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
    pub fn check(self, path: &Path, source: Source<'_>) -> Result<Vec<String>, Error> {
        let made = GgufFile::open(path)?;
        let types = self.ffn_types(source)?;
        let mut fallbacks: BTreeMap<String, usize> = BTreeMap::new();
        for tensor in source.base.tensors() {
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

    /// The types of the FFN matrices that change, by the names of their weights: all of them in a whole file.
    fn ffn_types(self, source: Source<'_>) -> Result<BTreeMap<String, FfnType>, Error> {
        let Source { base, n_layers, coded } = source;
        let architecture = base.architecture()?;
        let map = ModelMap::of(base.tensors().iter().map(|info| (info.name(), info.dims())));
        let typed = |&Matrix { id, shape, .. }: &Matrix| {
            let name = id.weight();
            let ffn = FfnMatrix {
                role: id.role,
                layer: id.layer,
                n_layer: n_layers,
                shape,
                architecture: &architecture,
                has_imatrix: self.has_imatrix,
            };
            let (expected, wanted) = (self.mix.ffn_type(&ffn), self.mix.ffn_wanted(&ffn));
            (name, FfnType { id, expected, wanted })
        };
        let changes = |m: &&Matrix| self.extent == Extent::Whole || coded.contains(&m.id);
        Ok(map.matrices().filter(changes).map(typed).collect())
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
    /// Looks at the file at `path`, made as `variant` of `source`.
    ///
    /// # Errors
    /// As [`Variant::check`], and those of reading it.
    pub fn of(
        variant: Variant,
        path: &Path,
        source: Source<'_>,
        types: KvTypes,
    ) -> Result<Self, Error> {
        let fallbacks = variant.check(path, source)?;
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
