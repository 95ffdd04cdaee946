//! The types that `llama-quantize` gives the FFN matrices in each of its mixtures.
//!
//! A mixture such as Q5_K_M uses several types: more bits for some `ffn_down`, and other types where the
//! rows are no multiple of 256. Sizes are only compared fairly when this is followed exactly, so the tests
//! compare with `llama-quantize --dry-run`. Source: `llama_tensor_get_type_impl` and
//! `tensor_type_fallback` in llama.cpp's `src/llama-quant.cpp`.

use format::{MatrixShape, Role};

use crate::Type;

/// A mixture that `llama-quantize` can make.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs, reason = "each is the mixture of the same name")]
#[allow(non_camel_case_types, reason = "the names are llama.cpp's")]
pub enum QuantMix {
    Q2_K,
    Q2_K_S,
    Q3_K_S,
    Q3_K_M,
    Q3_K_L,
    Q4_0,
    Q4_1,
    Q4_K_S,
    Q4_K_M,
    Q5_0,
    Q5_1,
    Q5_K_S,
    Q5_K_M,
    Q6_K,
    Q8_0,
    IQ4_NL,
    IQ4_XS,
    IQ2_XXS,
    IQ2_XS,
    IQ2_S,
    IQ2_M,
    IQ3_XXS,
    IQ3_XS,
    IQ3_S,
    IQ3_M,
}

/// What the choice of a type depends on, besides the mixture.
#[derive(Clone, Copy, Debug)]
pub struct FfnMatrix<'a> {
    /// Which of the layer's matrices.
    pub role: Role,
    /// Layer number, from 0.
    pub layer: usize,
    /// Number of layers (`<arch>.block_count`).
    pub n_layer: usize,
    /// Dimensions.
    pub shape: MatrixShape,
    /// The model's architecture (`general.architecture`).
    pub architecture: &'a str,
    /// Whether llama-quantize is given an importance matrix.
    pub has_imatrix: bool,
}

impl QuantMix {
    /// All mixtures that FFNs can have.
    pub const ALL: [Self; 25] = [
        Self::Q2_K,
        Self::Q2_K_S,
        Self::Q3_K_S,
        Self::Q3_K_M,
        Self::Q3_K_L,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q4_K_S,
        Self::Q4_K_M,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q5_K_S,
        Self::Q5_K_M,
        Self::Q6_K,
        Self::Q8_0,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::IQ2_XXS,
        Self::IQ2_XS,
        Self::IQ2_S,
        Self::IQ2_M,
        Self::IQ3_XXS,
        Self::IQ3_XS,
        Self::IQ3_S,
        Self::IQ3_M,
    ];

    /// The name that `llama-quantize` takes: `Q5_K_M`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Q2_K => "Q2_K",
            Self::Q2_K_S => "Q2_K_S",
            Self::Q3_K_S => "Q3_K_S",
            Self::Q3_K_M => "Q3_K_M",
            Self::Q3_K_L => "Q3_K_L",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q4_K_S => "Q4_K_S",
            Self::Q4_K_M => "Q4_K_M",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q5_K_S => "Q5_K_S",
            Self::Q5_K_M => "Q5_K_M",
            Self::Q6_K => "Q6_K",
            Self::Q8_0 => "Q8_0",
            Self::IQ4_NL => "IQ4_NL",
            Self::IQ4_XS => "IQ4_XS",
            Self::IQ2_XXS => "IQ2_XXS",
            Self::IQ2_XS => "IQ2_XS",
            Self::IQ2_S => "IQ2_S",
            Self::IQ2_M => "IQ2_M",
            Self::IQ3_XXS => "IQ3_XXS",
            Self::IQ3_XS => "IQ3_XS",
            Self::IQ3_S => "IQ3_S",
            Self::IQ3_M => "IQ3_M",
        }
    }

    /// The mixture called `name`, upper and lower case alike.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mix| mix.name().eq_ignore_ascii_case(name))
    }

    /// Whether llama-quantize refuses to make it without an importance matrix.
    #[must_use]
    pub fn needs_imatrix(self) -> bool {
        // More than ggml does: `tensor_requires_imatrix` in `llama-quant.cpp`.
        let needs =
            [Type::IQ2_XXS, Type::IQ2_XS, Type::IQ2_S, Type::IQ3_XXS].contains(&self.base());
        needs || matches!(self, Self::Q2_K_S | Self::IQ3_XS)
    }

    /// The type that `matrix` gets.
    #[must_use]
    pub fn ffn_type(self, matrix: &FfnMatrix<'_>) -> Type {
        fallback(self.ffn_wanted(matrix), matrix.shape.d_in)
    }

    /// The type that `matrix` would get if its rows were a multiple of every block.
    #[must_use]
    pub fn ffn_wanted(self, matrix: &FfnMatrix<'_>) -> Type {
        let FfnMatrix { layer, n_layer, .. } = *matrix;
        match matrix.role {
            // llama-quantize goes by what the name begins with, experts or not.
            Role::Down | Role::DownExps | Role::DownShexp => self.down_type(matrix),
            _ if self == Self::IQ3_XS && layer >= n_layer / 8 && layer < 7 * n_layer / 8 => {
                Type::IQ3_XXS
            }
            _ => self.base(),
        }
    }

    /// Size in bytes of `matrix` in its type; `None` if it overflows.
    #[must_use]
    pub fn ffn_bytes(self, matrix: &FfnMatrix<'_>) -> Option<usize> {
        self.ffn_type(matrix).tensor_bytes(&[matrix.shape.d_in, matrix.shape.d_out])
    }

    /// The type of everything that is not treated specially.
    fn base(self) -> Type {
        match self {
            Self::Q2_K | Self::Q2_K_S => Type::Q2_K,
            Self::Q3_K_S | Self::Q3_K_M | Self::Q3_K_L => Type::Q3_K,
            Self::Q4_0 => Type::Q4_0,
            Self::Q4_1 => Type::Q4_1,
            Self::Q4_K_S | Self::Q4_K_M => Type::Q4_K,
            Self::Q5_0 => Type::Q5_0,
            Self::Q5_1 => Type::Q5_1,
            Self::Q5_K_S | Self::Q5_K_M => Type::Q5_K,
            Self::Q6_K => Type::Q6_K,
            Self::Q8_0 => Type::Q8_0,
            Self::IQ4_NL => Type::IQ4_NL,
            Self::IQ4_XS => Type::IQ4_XS,
            Self::IQ2_XXS => Type::IQ2_XXS,
            // So it is: IQ2_S is the mixture, and its type for most is IQ2_XS.
            Self::IQ2_XS | Self::IQ2_S => Type::IQ2_XS,
            Self::IQ2_M => Type::IQ2_S,
            Self::IQ3_XXS => Type::IQ3_XXS,
            Self::IQ3_XS | Self::IQ3_S | Self::IQ3_M => Type::IQ3_S,
        }
    }

    /// `ffn_down` before the fallback for its row length.
    fn down_type(self, matrix: &FfnMatrix<'_>) -> Type {
        let FfnMatrix { layer, n_layer, has_imatrix, .. } = *matrix;
        let falcon = matrix.architecture == "falcon";
        let more_bits = use_more_bits(layer, n_layer);
        let is_early = layer < n_layer / 8;
        match self {
            Self::Q2_K => Type::Q3_K,
            Self::Q3_K_M if layer < n_layer / 16 => Type::Q5_K,
            Self::Q3_K_M if !falcon || more_bits => Type::Q4_K,
            Self::Q3_K_L if falcon => Type::Q4_K,
            Self::Q3_K_L => Type::Q5_K,
            Self::Q4_K_M if falcon && layer < n_layer / 16 => Type::Q6_K,
            Self::Q4_K_M if falcon && more_bits => Type::Q5_K,
            Self::Q4_K_M if !falcon && more_bits => Type::Q6_K,
            Self::Q4_K_S if !falcon && is_early => Type::Q5_K,
            Self::IQ4_NL | Self::IQ4_XS if is_early && !has_imatrix => Type::Q5_K,
            Self::IQ3_M | Self::Q2_K_S if is_early => Type::Q4_K,
            Self::IQ3_XXS if !has_imatrix => {
                if is_early {
                    Type::Q4_K
                } else {
                    Type::Q3_K
                }
            }
            Self::IQ2_XXS | Self::IQ2_XS if is_early => Type::Q2_K,
            Self::IQ2_S | Self::IQ2_M if is_early => Type::IQ3_S,
            Self::Q4_0 if is_early && has_imatrix => Type::Q4_1,
            Self::Q5_0 if is_early && has_imatrix => Type::Q5_1,
            Self::Q5_K_M if more_bits => Type::Q6_K,
            _ => self.base(),
        }
    }
}

impl std::fmt::Display for QuantMix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.name())
    }
}

impl std::str::FromStr for QuantMix {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::from_name(name).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|mix| mix.name()).collect();
            format!("unknown mixture '{name}': use one of {}", names.join(", "))
        })
    }
}

/// The first and last eighth of the layers, and every third in between.
fn use_more_bits(layer: usize, n_layer: usize) -> bool {
    let eighth = n_layer / 8;
    layer < eighth || layer >= 7 * n_layer / 8 || (layer - eighth) % 3 == 2
}

/// What replaces a type whose blocks do not divide the rows.
fn fallback(wanted: Type, d_in: usize) -> Type {
    if d_in.is_multiple_of(wanted.block_size()) {
        return wanted;
    }
    let smaller = match wanted {
        Type::IQ2_XXS | Type::IQ2_XS | Type::IQ2_S | Type::IQ3_XXS | Type::IQ3_S | Type::IQ4_XS => {
            Type::IQ4_NL
        }
        Type::Q2_K | Type::Q3_K => Type::Q4_0,
        Type::Q4_K => Type::Q5_0,
        Type::Q5_K => Type::Q5_1,
        Type::Q6_K => Type::Q8_0,
        other => other,
    };
    if d_in.is_multiple_of(smaller.block_size()) { smaller } else { Type::F16 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(role: Role, layer: usize, d_in: usize) -> FfnMatrix<'static> {
        let shape = MatrixShape::new(d_in, 3);
        FfnMatrix { role, layer, n_layer: 32, shape, architecture: "llama", has_imatrix: false }
    }

    #[test]
    fn names_round_trip() {
        for mix in QuantMix::ALL {
            assert_eq!(mix.name().to_lowercase().parse(), Ok(mix));
        }
        assert!("Q9".parse::<QuantMix>().unwrap_err().contains("Q5_K_M"));
    }

    #[test]
    fn the_smallest_mixtures_need_an_importance_matrix() {
        use QuantMix::{IQ2_M, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_XS, IQ3_XXS, Q2_K_S};
        let needs = QuantMix::ALL.into_iter().filter(|mix| mix.needs_imatrix());
        let expected = [Q2_K_S, IQ2_XXS, IQ2_XS, IQ2_S, IQ2_M, IQ3_XXS, IQ3_XS];
        assert_eq!(needs.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn q5_k_m_of_smollm2_is_q5_1_and_q5_k() {
        let mix = QuantMix::Q5_K_M;
        assert_eq!(mix.ffn_type(&matrix(Role::Gate, 0, 576)), Type::Q5_1);
        assert_eq!(mix.ffn_type(&matrix(Role::Down, 4, 1536)), Type::Q5_K);
        assert_eq!(mix.ffn_type(&matrix(Role::Down, 0, 1536)), Type::Q6_K);
        assert_eq!(mix.ffn_type(&matrix(Role::Down, 0, 1536 + 32)), Type::Q8_0);
        assert_eq!(mix.ffn_type(&matrix(Role::Down, 0, 100)), Type::F16);
        assert_eq!(mix.ffn_bytes(&matrix(Role::Down, 4, 512)), Some(2 * 3 * 176));
    }
}
