//! The table of all schemes: what each computes. Their names, flags and tensors are the other half, `format::Family`.

mod global;
mod sections;
mod seeddelta;

use format::{ExpertStack, Family, MatrixShape};

use crate::error::HookError;
use crate::product::{ExpertProduct, Plan, Product};
use crate::sidecars::Sidecars;

/// A checked matrix, or why there is none.
type Opened = Result<Box<dyn Product>, HookError>;

/// A matrix of one family. Both functions get the scheme's name.
trait Coded: Product + Sized + 'static {
    /// The graph nodes, from types and shapes alone, which are checked.
    fn plan(scheme: &str, shape: MatrixShape, sidecars: &Sidecars) -> Result<Plan, HookError>;

    /// The matrix, its data checked too.
    fn new(scheme: &str, shape: MatrixShape, sidecars: &Sidecars) -> Result<Self, HookError>;
}

/// Matrices of experts, or why there are none. The shape is that of all rows of all experts.
type OpenedExperts = Result<Box<dyn ExpertProduct>, HookError>;

/// What runs the schemes of a family: the functions of a [`Coded`].
struct Entry {
    family: &'static Family,
    plan: fn(&str, MatrixShape, &Sidecars) -> Result<Plan, HookError>,
    open: fn(&str, MatrixShape, &Sidecars) -> Opened,
    experts: Option<fn(&str, MatrixShape, &Sidecars) -> OpenedExperts>,
}

impl Entry {
    const fn of<M: Coded>(family: &'static Family) -> Self {
        let open = |scheme: &str, shape: MatrixShape, sidecars: &Sidecars| -> Opened {
            Ok(Box::new(M::new(scheme, shape, sidecars)?))
        };
        Self { family, plan: M::plan, open, experts: None }
    }

    const fn with_experts<M: Coded + ExpertProduct>(family: &'static Family) -> Self {
        let open = |scheme: &str, shape: MatrixShape, sidecars: &Sidecars| -> OpenedExperts {
            Ok(Box::new(M::new(scheme, shape, sidecars)?))
        };
        Self { experts: Some(open), ..Self::of::<M>(family) }
    }
}

/// One line for each of [`format::FAMILIES`].
static SCHEMES: [Entry; 3] = [
    Entry::of::<global::GlobalMatrix>(&format::GLOBAL),
    Entry::with_experts::<sections::SectionsMatrix>(&format::SECTIONS),
    Entry::of::<seeddelta::SeedDeltaMatrix>(&format::SEEDDELTA),
];

/// The plan for a matrix of `scheme`, from types and shapes alone.
pub fn plan(scheme: &str, shape: MatrixShape, sidecars: &Sidecars) -> Result<Plan, HookError> {
    (find(scheme)?.plan)(scheme, shape, sidecars)
}

/// A matrix of `scheme`, everything checked, data included.
pub fn open(scheme: &str, shape: MatrixShape, sidecars: &Sidecars) -> Opened {
    (find(scheme)?.open)(scheme, shape, sidecars)
}

/// The plan for experts whose matrices are coded by `scheme`, from types and shapes alone; of the tokens and columns of the
/// plan, each is one of x.
pub fn plan_experts(
    scheme: &str,
    stack: ExpertStack,
    sidecars: &Sidecars,
) -> Result<Plan, HookError> {
    let entry = find(scheme)?;
    entry.experts.ok_or(HookError::NoExperts(entry.family.schemes[0]))?;
    (entry.plan)(scheme, stack.stacked(), sidecars)
}

/// The matrices of experts, everything checked, data included.
pub fn open_experts(scheme: &str, stack: ExpertStack, sidecars: &Sidecars) -> OpenedExperts {
    let entry = find(scheme)?;
    let open = entry.experts.ok_or(HookError::NoExperts(entry.family.schemes[0]))?;
    open(scheme, stack.stacked(), sidecars)
}

fn find(scheme: &str) -> Result<&'static Entry, HookError> {
    let entry = SCHEMES.iter().find(|entry| entry.family.schemes.contains(&scheme));
    entry.ok_or_else(|| HookError::unknown_scheme(scheme))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_family_of_the_format() {
        let families: Vec<_> = SCHEMES.iter().map(|entry| entry.family).collect();
        assert_eq!(families, format::FAMILIES);
    }
}
