//! The table of all schemes: which there are, which flag runs them, which tensors they have.
//!
//! What each of them computes is the other half of the table, `schemes` in `crates/statecells-hook`. Everything else
//! that differs from scheme to scheme asks here.

use crate::{Scheme, coo, global, sections, seeddelta};

/// Schemes that share their tensors and run by the same flag.
#[derive(Debug, PartialEq, Eq)]
pub struct Family {
    /// Names of the schemes, as in files.
    pub schemes: &'static [&'static str],
    /// Flag of llama.cpp's programs that runs their matrices from the codes, without its dashes.
    pub flag: &'static str,
    /// Suffixes of all tensors that a matrix may have.
    pub sidecars: &'static [&'static str],
}

/// The flag of the dictionary schemes.
const STATECELLS: &str = "statecells";

/// One dictionary over the whole input.
pub static GLOBAL: Family = Family {
    schemes: &[Scheme::Sign.as_str(), Scheme::SignRowScale.as_str(), Scheme::SignVals.as_str()],
    flag: STATECELLS,
    sidecars: &[global::CODES, global::DICT, global::VALS, global::ROW_SCALE],
};

/// Blocks of inputs, one atom of every section per block.
pub static SECTIONS: Family = Family {
    schemes: &[Scheme::Sections.as_str()],
    flag: STATECELLS,
    sidecars: &[
        sections::CODES,
        sections::DICT,
        sections::ROW_SCALE,
        coo::Layout::Flat.idx_suffix(),
        coo::Layout::Flat.val_suffix(),
    ],
};

/// A structured base and a sparse delta.
pub static SEEDDELTA: Family = Family {
    schemes: &[seeddelta::SCHEME],
    flag: seeddelta::SCHEME,
    sidecars: &seeddelta::SIDECARS,
};

/// All families, in the order in which the loader asks for their tensors.
pub static FAMILIES: [&Family; 3] = [&GLOBAL, &SECTIONS, &SEEDDELTA];

impl Family {
    /// The family that `scheme` belongs to.
    #[must_use]
    pub fn of(scheme: &str) -> Option<&'static Self> {
        FAMILIES.into_iter().find(|family| family.schemes.contains(&scheme))
    }
}

/// The flag, without its dashes, that runs matrices of `scheme`; of a scheme that is unknown here the one under which the
/// loader refuses it by name.
#[must_use]
pub fn flag_of(scheme: &str) -> &'static str {
    Family::of(scheme).map_or(STATECELLS, |family| family.flag)
}

/// The flags of all families, without their dashes, each once.
#[must_use]
pub fn flags() -> Vec<&'static str> {
    once(FAMILIES.into_iter().map(|family| family.flag))
}

/// Metadata key that `flag` (without its dashes) overrides with `true`.
#[must_use]
pub fn enable_key(flag: &str) -> String {
    format!("{flag}.enable")
}

/// Every suffix that a tensor of a coded matrix may have, each once, in the order in which the loader asks for them. The
/// first that a file holds also pins the graph nodes to the CPU.
#[must_use]
pub fn sidecar_suffixes() -> Vec<&'static str> {
    once(FAMILIES.into_iter().flat_map(|family| family.sidecars).copied())
}

fn once(names: impl Iterator<Item = &'static str>) -> Vec<&'static str> {
    let mut list = Vec::new();
    for name in names {
        if !list.contains(&name) {
            list.push(name);
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_scheme_has_one_family() {
        let schemes: Vec<_> = FAMILIES.into_iter().flat_map(|f| f.schemes).copied().collect();
        assert_eq!(once(schemes.iter().copied()), schemes);
        assert!(Scheme::ALL.iter().all(|s| schemes.contains(&s.as_str())));
        for &scheme in Scheme::ALL {
            let is_global = Family::of(scheme.as_str()) == Some(&GLOBAL);
            assert_eq!(is_global, scheme.is_global(), "{scheme}");
        }
    }

    #[test]
    fn unknown_schemes_have_a_flag_and_no_family() {
        assert_eq!((Family::of("magic"), flag_of("magic")), (None, "statecells"));
        assert_eq!(flags(), ["statecells", "seeddelta"]);
        assert_eq!(enable_key(flag_of("seeddelta")), "seeddelta.enable");
    }

    /// The loader pins graph nodes to the first tensor that a file holds: the large one, where there is one.
    #[test]
    fn codes_are_asked_for_first() {
        let suffixes = sidecar_suffixes();
        assert_eq!((suffixes[0], suffixes.len()), ("codes", 14));
    }
}
