//! Which instructions the kernels may use: the one place of detection and dispatch.

use std::fmt;
use std::str::FromStr;

/// A set of instructions that this machine has. Holding a value is the proof: the fast forms of all
/// kernels rely on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Isa {
    name: &'static str,
    level: Level,
    lookup: Lookup,
    dot: Dot,
}

/// What most kernels match on. Never leaves the crate, so that no [`Isa`] exists without detection.
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

/// What the lookups of matrices in sections match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Lookup {
    /// The reference.
    Scalar,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// The above with AVX-512 F, BW and VL.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The above with VNNI and VBMI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vbmi,
    /// Advanced SIMD.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

/// What the products that decode match on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dot {
    /// The reference; sets without dot products of bytes have nothing else.
    Scalar,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX2 and AVX-VNNI.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// AVX2 and AVX-512 F, BW, VL and VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// Advanced SIMD with `dotprod`.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Advanced SIMD with `i8mm`.
    #[cfg(target_arch = "aarch64")]
    NeonI8mm,
}

/// Name of the environment variable that [`Isa::from_env`] reads.
const VARIABLE: &str = "STATECELLS_ISA";

/// A name that is no [`Isa`] of this machine, or no `Route` of an [`Isa`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: '{name}' is not available {place}, which has {available}")]
pub struct IsaError {
    pub(crate) variable: &'static str,
    pub(crate) name: String,
    pub(crate) place: String,
    pub(crate) available: String,
}

impl Isa {
    /// The scalar reference, available everywhere.
    pub const SCALAR: Self =
        Self { name: "scalar", level: Level::Scalar, lookup: Lookup::Scalar, dot: Dot::Scalar };

    /// The fastest set this machine has.
    #[must_use]
    pub fn detect() -> Self {
        *Self::available().last().expect("the scalar reference is always there")
    }

    /// Every set this machine has, slowest first; begins with [`Isa::SCALAR`].
    ///
    /// The order is that of measurements, not of names (Zen 4, docs/results/speed.md): the kernels of `avx512` are
    /// slower than those of `avx2` from 8 tokens on. So `avx512vnni` has the kernels of `avx2` and AVX-512 for the dot
    /// products of bytes alone; `avx512vbmi` has besides lookups of its own for two tokens and more.
    #[must_use]
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::SCALAR];
        all.extend(Self::fast());
        all
    }

    #[cfg(target_arch = "x86_64")]
    fn fast() -> Vec<Self> {
        let has_avx2 = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        let has_avx512 = has_avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl");
        let has_avx_vnni = has_avx2 && is_x86_feature_detected!("avxvnni");
        let has_avx512_vnni = has_avx512 && is_x86_feature_detected!("avx512vnni");
        let has_vbmi = has_avx512_vnni && is_x86_feature_detected!("avx512vbmi");
        let set = |name, level, lookup, dot| Self { name, level, lookup, dot };
        let all = [
            (has_avx512, set("avx512", Level::Avx512, Lookup::Avx512, Dot::Avx2)),
            (has_avx2, set("avx2", Level::Avx2, Lookup::Avx2, Dot::Avx2)),
            (has_avx_vnni, set("avxvnni", Level::Avx2, Lookup::Avx2, Dot::AvxVnni)),
            (has_avx512_vnni, set("avx512vnni", Level::Avx2, Lookup::Avx2, Dot::Avx512Vnni)),
            (has_vbmi, set("avx512vbmi", Level::Avx2, Lookup::Avx512Vbmi, Dot::Avx512Vnni)),
        ];
        all.into_iter().filter(|(has, _)| *has).map(|(_, set)| set).collect()
    }

    #[cfg(target_arch = "aarch64")]
    fn fast() -> Vec<Self> {
        let set = |name, dot| Self { name, level: Level::Neon, lookup: Lookup::Neon, dot };
        let mut all = vec![set("neon", Dot::Scalar)];
        if std::arch::is_aarch64_feature_detected!("dotprod") {
            all.push(set("neondot", Dot::Neon));
        }
        if std::arch::is_aarch64_feature_detected!("i8mm") {
            all.push(set("neoni8mm", Dot::NeonI8mm));
        }
        all
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn fast() -> Vec<Self> {
        vec![]
    }

    /// [`Isa::detect`], unless the environment variable `STATECELLS_ISA` names another one
    /// (`scalar`, `avx2`, `avxvnni`, `avx512`, `avx512vnni`, `avx512vbmi`, `neon`, `neondot`,
    /// `neoni8mm`).
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
        self.name
    }

    pub(crate) fn level(self) -> Level {
        self.level
    }

    pub(crate) fn lookup(self) -> Lookup {
        self.lookup
    }

    pub(crate) fn dot(self) -> Dot {
        self.dot
    }

    /// Whether products that decode have a form of this set's own.
    pub(crate) fn decodes(self) -> bool {
        self.dot != Dot::Scalar || self.level == Level::Scalar
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
            variable: VARIABLE,
            name: name.to_owned(),
            place: "on this machine".to_owned(),
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
