//! Which instructions the kernels may use: the one place of detection and dispatch.

use std::fmt;
use std::str::FromStr;

/// A set of instructions that this machine has. Holding a value is the proof: the fast forms of all
/// kernels rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isa(Level);

/// What to match on. Never leaves the crate, so that no [`Isa`] exists without detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Level {
    /// The reference: plain safe Rust.
    Scalar,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The above with AVX-512 F, BW and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// Advanced SIMD, which every 64-bit ARM has.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// Name of the environment variable that [`Isa::from_env`] reads.
const VARIABLE: &str = "STATECELLS_ISA";

/// A name that is no [`Isa`] of this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE}: '{name}' is not available on this machine, which has {available}")]
pub struct IsaError {
    name: String,
    available: String,
}

impl Isa {
    /// The scalar reference, available everywhere.
    pub const SCALAR: Self = Self(Level::Scalar);

    /// The fastest set this machine has.
    #[must_use]
    pub fn detect() -> Self {
        *Self::available().last().expect("the scalar reference is always there")
    }

    /// Every set this machine has, slowest first; begins with [`Isa::SCALAR`].
    #[must_use]
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut)]
        let mut all = vec![Self::SCALAR];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            all.push(Self(Level::Avx2));
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
            {
                all.push(Self(Level::Avx512));
            }
        }
        #[cfg(target_arch = "aarch64")]
        all.push(Self(Level::Neon));
        all
    }

    /// [`Isa::detect`], unless the environment variable `STATECELLS_ISA` names another one
    /// (`scalar`, `avx2`, `avx512`, `neon`).
    ///
    /// # Errors
    /// If the name is unknown or this machine lacks the instructions.
    pub fn from_env() -> Result<Self, IsaError> {
        match std::env::var(VARIABLE) {
            Ok(name) if !name.is_empty() => name.parse(),
            _ => Ok(Self::detect()),
        }
    }

    /// Name as in `STATECELLS_ISA`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Level::Neon => "neon",
        }
    }

    pub(crate) fn level(self) -> Level {
        self.0
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Self, IsaError> {
        let all = Self::available();
        all.iter().copied().find(|isa| isa.name() == name).ok_or_else(|| IsaError {
            name: name.to_owned(),
            available: all.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_sets_have_names_that_parse_back() {
        for isa in Isa::available() {
            assert_eq!(isa.name().parse(), Ok(isa));
        }
        assert_eq!(Isa::available()[0], Isa::SCALAR);
        assert!(Isa::available().contains(&Isa::detect()));
    }

    #[test]
    fn an_unknown_name_is_refused_with_what_there_is() {
        let error = "sse9".parse::<Isa>().unwrap_err().to_string();
        assert!(error.contains("'sse9'") && error.contains("scalar"), "{error}");
    }
}
