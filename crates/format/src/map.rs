//! Where a model's matrices are: every input, and the matrices that read it.

use std::collections::BTreeMap;

use crate::{InputId, MatrixId, Role};

/// An input of a layer and the matrices that are multiplied with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The input.
    pub input: InputId,
    /// The matrices, in the order in which the layer uses them; at least one.
    pub matrices: Vec<MatrixId>,
}

/// All matrices of a model that may be coded, by layer and then in the order in which the layer uses them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelMap {
    sites: Vec<Site>,
}

impl ModelMap {
    /// The map of a model whose tensors have these names; weights count, whatever their shape.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let weight = |name| match MatrixId::parse(name) {
            Some((matrix, "weight")) => Some(matrix),
            _ => None,
        };
        Self::of_matrices(names.into_iter().filter_map(weight))
    }

    /// The map of these matrices, in any order.
    pub fn of_matrices(matrices: impl IntoIterator<Item = MatrixId>) -> Self {
        let mut sites: BTreeMap<InputId, Vec<MatrixId>> = BTreeMap::new();
        for matrix in matrices {
            sites.entry(matrix.input()).or_default().push(matrix);
        }
        let site = |(input, mut matrices): (InputId, Vec<MatrixId>)| {
            matrices.sort();
            matrices.dedup();
            Site { input, matrices }
        };
        Self { sites: sites.into_iter().map(site).collect() }
    }

    /// All sites.
    #[must_use]
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// All matrices.
    pub fn matrices(&self) -> impl Iterator<Item = MatrixId> + '_ {
        self.sites.iter().flat_map(|site| site.matrices.iter().copied())
    }

    /// Whether the model has the matrix.
    #[must_use]
    pub fn has(&self, matrix: MatrixId) -> bool {
        let site = self.sites.binary_search_by_key(&matrix.input(), |site| site.input);
        site.is_ok_and(|i| self.sites[i].matrices.contains(&matrix))
    }

    /// The first matrix that a layer of the model lacks although every layer with a matrix has one of this role.
    #[must_use]
    pub fn missing(&self) -> Option<MatrixId> {
        let layers = self.sites.iter().map(|site| site.input.layer);
        let needed =
            layers.flat_map(|layer| Role::required().map(move |role| MatrixId { layer, role }));
        needed.into_iter().find(|matrix| !self.has(*matrix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InputRole;

    #[test]
    fn matrices_are_found_under_the_inputs_that_they_read() {
        let names = [
            "blk.1.ffn_down.weight",
            "blk.0.ffn_up.weight",
            "blk.0.ffn_down.weight",
            "blk.0.ffn_gate.weight",
            "blk.0.ffn_gate.bias",
            "blk.0.ffn_gate_inp.weight",
            "blk.0.attn_q.weight",
            "output.weight",
        ];
        let map = ModelMap::of(names);
        let matrix = |layer, role| MatrixId { layer, role };
        let site = |layer, role, matrices: &[Role]| Site {
            input: InputId { layer, role },
            matrices: matrices.iter().map(|role| matrix(layer, *role)).collect(),
        };
        assert_eq!(
            map.sites(),
            [
                site(0, InputRole::FfnIn, &[Role::Gate, Role::Up]),
                site(0, InputRole::FfnDown, &[Role::Down]),
                site(1, InputRole::FfnDown, &[Role::Down]),
            ]
        );
        assert_eq!(map.matrices().count(), 4);
        assert!(map.has(matrix(0, Role::Gate)) && !map.has(matrix(1, Role::Gate)));
        assert_eq!(map.missing(), Some(matrix(1, Role::Up)));
        let whole = ModelMap::of(names[1..4].iter().copied());
        assert_eq!(whole.missing(), None, "a layer without a gate is whole");
    }
}
