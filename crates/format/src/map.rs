//! Where a model's matrices are: every input, and the matrices that read it.

use std::collections::BTreeMap;

use crate::{ExpertStack, InputId, MatrixId, MatrixShape, Role};

/// A matrix of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Which.
    pub id: MatrixId,
    /// Its shape; with experts that of each.
    pub shape: MatrixShape,
    /// Number of experts that have a matrix each under this name, the last dimension of the tensor; `None` for a plain
    /// matrix.
    pub n_experts: Option<usize>,
}

impl Matrix {
    /// Its shape; with experts that of the rows of all of them, which are coded as one matrix.
    ///
    /// # Panics
    /// If that overflows; shapes from files are checked first.
    #[must_use]
    pub fn stacked(&self) -> MatrixShape {
        match self.n_experts {
            Some(n_experts) => ExpertStack { each: self.shape, n_experts }.stacked(),
            None => self.shape,
        }
    }

    /// Dimensions of its tensor, innermost first.
    #[must_use]
    pub fn dims(&self) -> Vec<usize> {
        [self.shape.d_in, self.shape.d_out].into_iter().chain(self.n_experts).collect()
    }

    /// The matrix called `id` in a tensor of these dimensions, innermost first; `None` for more than three.
    #[must_use]
    pub fn of_dims(id: MatrixId, dims: &[usize]) -> Option<Self> {
        let (d_in, d_out, n_experts) = match *dims {
            [d_in] => (d_in, 1, None),
            [d_in, d_out] => (d_in, d_out, None),
            [d_in, d_out, n_experts] => (d_in, d_out, Some(n_experts)),
            _ => return None,
        };
        Some(Self { id, shape: MatrixShape::new(d_in, d_out), n_experts })
    }
}

impl std::fmt::Display for Matrix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.n_experts {
            Some(n_experts) => ExpertStack { each: self.shape, n_experts }.fmt(f),
            None => self.shape.fmt(f),
        }
    }
}

/// An input of a layer and the matrices that are multiplied with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The input.
    pub input: InputId,
    /// The matrices, in the order in which the layer uses them; at least one.
    pub matrices: Vec<Matrix>,
}

impl Site {
    /// Length of the input; `None` if the matrices contradict each other.
    #[must_use]
    pub fn d_in(&self) -> Option<usize> {
        let lengths = || self.matrices.iter().map(|matrix| matrix.shape.d_in);
        let first = lengths().next()?;
        lengths().all(|d_in| d_in == first).then_some(first)
    }
}

/// All matrices of a model that may be coded, by layer and then in the order in which the layer uses them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelMap {
    sites: Vec<Site>,
}

impl ModelMap {
    /// The map of a model whose tensors have these names and dimensions, innermost first. What is no weight of a matrix
    /// is passed over.
    pub fn of<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Self {
        let matrix = |(name, dims)| match MatrixId::parse(name) {
            Some((id, "weight")) => Matrix::of_dims(id, dims),
            _ => None,
        };
        Self::of_matrices(tensors.into_iter().filter_map(matrix))
    }

    /// The tensors that belong to matrices, each by the last part of its name: `weight`, or what a sidecar is called. The
    /// map has only matrices with a weight, here are all.
    pub fn parts<'a, T>(
        tensors: impl IntoIterator<Item = (&'a str, T)>,
    ) -> BTreeMap<MatrixId, BTreeMap<&'a str, T>> {
        let mut parts: BTreeMap<MatrixId, BTreeMap<&str, T>> = BTreeMap::new();
        for (name, tensor) in tensors {
            if let Some((id, part)) = MatrixId::parse(name) {
                parts.entry(id).or_default().insert(part, tensor);
            }
        }
        parts
    }

    /// The map of these matrices, in any order; of two with the same name the last.
    fn of_matrices(matrices: impl IntoIterator<Item = Matrix>) -> Self {
        let mut sites: BTreeMap<InputId, BTreeMap<MatrixId, Matrix>> = BTreeMap::new();
        for matrix in matrices {
            sites.entry(matrix.id.input()).or_default().insert(matrix.id, matrix);
        }
        let site = |(input, matrices): (InputId, BTreeMap<MatrixId, Matrix>)| Site {
            input,
            matrices: matrices.into_values().collect(),
        };
        Self { sites: sites.into_iter().map(site).collect() }
    }

    /// The part of the map that `wanted` says, without sites of which nothing is left.
    #[must_use]
    pub fn restricted(&self, mut wanted: impl FnMut(MatrixId) -> bool) -> Self {
        Self::of_matrices(self.matrices().filter(|matrix| wanted(matrix.id)).copied())
    }

    /// All sites.
    #[must_use]
    pub fn sites(&self) -> &[Site] {
        &self.sites
    }

    /// All matrices.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> + '_ {
        self.sites.iter().flat_map(|site| &site.matrices)
    }

    /// The matrix called `id`, if the model has it.
    #[must_use]
    pub fn matrix(&self, id: MatrixId) -> Option<&Matrix> {
        let site = self.sites.binary_search_by_key(&id.input(), |site| site.input).ok()?;
        self.sites[site].matrices.iter().find(|matrix| matrix.id == id)
    }

    /// The first matrix that a layer of the model lacks although every layer with a matrix of the same branch has one of this
    /// role.
    #[must_use]
    pub fn missing(&self) -> Option<MatrixId> {
        let branches = self.matrices().map(|matrix| (matrix.id.layer, matrix.id.role.branch()));
        let mut needed = branches.flat_map(|(layer, branch)| {
            Role::required(branch).map(move |role| MatrixId { layer, role })
        });
        needed.find(|id| self.matrix(*id).is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::InputRole;

    fn matrix(layer: usize, role: Role) -> MatrixId {
        MatrixId { layer, role }
    }

    fn map(tensors: &[(&str, &[usize])]) -> ModelMap {
        ModelMap::of(tensors.iter().copied())
    }

    #[test]
    fn matrices_are_found_under_the_inputs_that_they_read() {
        let tensors: [(&str, &[usize]); 8] = [
            ("blk.1.ffn_down.weight", &[6, 4]),
            ("blk.0.ffn_up.weight", &[4, 6]),
            ("blk.0.ffn_down.weight", &[6, 4]),
            ("blk.0.ffn_gate.weight", &[4, 6]),
            ("blk.0.ffn_gate.bias", &[6]),
            ("blk.0.ffn_gate_inp.weight", &[4, 2]),
            ("blk.0.attn_q.weight", &[4, 4]),
            ("output.weight", &[4, 9]),
        ];
        let map = map(&tensors);
        let found: Vec<(InputId, Vec<MatrixId>)> = map
            .sites()
            .iter()
            .map(|site| (site.input, site.matrices.iter().map(|m| m.id).collect()))
            .collect();
        let site = |layer, role, roles: &[Role]| {
            let matrices = roles.iter().map(|role| matrix(layer, *role)).collect::<Vec<_>>();
            (InputId { layer, role }, matrices)
        };
        let expected = [
            site(0, InputRole::FfnIn, &[Role::Gate, Role::Up]),
            site(0, InputRole::FfnDown, &[Role::Down]),
            site(1, InputRole::FfnDown, &[Role::Down]),
        ];
        assert_eq!(found, expected);
        assert_eq!(map.matrices().count(), 4);
        let gate = map.matrix(matrix(0, Role::Gate)).unwrap();
        assert_eq!((gate.shape, gate.n_experts), (MatrixShape::new(4, 6), None));
        assert!(map.matrix(matrix(1, Role::Gate)).is_none());
        assert_eq!(map.missing(), Some(matrix(1, Role::Up)));
        let whole = map.restricted(|id| id.layer == 0 && id.role != Role::Gate);
        assert_eq!((whole.sites().len(), whole.missing()), (2, None), "a layer without a gate");
    }

    #[test]
    fn parts_are_grouped_by_their_matrix() {
        let names =
            ["blk.0.ffn_up.dict", "output.weight", "blk.0.ffn_up.codes", "blk.1.ffn_up.weight"];
        let parts = ModelMap::parts(names.into_iter().zip(0..));
        let up = |layer| &parts[&matrix(layer, Role::Up)];
        assert_eq!((parts.len(), up(0).len(), up(1).len()), (2, 2, 1));
        assert_eq!((up(0)["dict"], up(0)["codes"], up(1)["weight"]), (0, 2, 3));
    }

    #[test]
    fn dimensions_tell_shapes_experts_and_contradictions() {
        let id = matrix(0, Role::Up);
        let of = |dims: &[usize]| Matrix::of_dims(id, dims).map(|m| (m.shape, m.n_experts));
        assert_eq!(of(&[4]), Some((MatrixShape::new(4, 1), None)));
        assert_eq!(of(&[4, 6, 8]), Some((MatrixShape::new(4, 6), Some(8))));
        assert_eq!((of(&[]), of(&[4, 6, 8, 1])), (None, None));
        let site = |gate: &[usize]| {
            let map = map(&[("blk.0.ffn_gate.weight", gate), ("blk.0.ffn_up.weight", &[4, 6])]);
            map.sites()[0].d_in()
        };
        assert_eq!((site(&[4, 6]), site(&[5, 6])), (Some(4), None));
    }
}
