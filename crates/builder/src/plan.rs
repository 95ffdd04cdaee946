//! What a build will do, with exact sizes, before anything is encoded.

use std::collections::BTreeMap;

use format::{InputId, Matrix, MatrixId, MatrixShape, Role, SidecarSpec};
use ggml::Type;
use inspect::{Settings, settings_text};
use numerics::Codec;
use program::table::{Align, Table, bits_per_weight, bytes, percent, saved};

use crate::{Error, Method, Source, seed::input_seed, seed::tensor_seed};

/// Everything selected, by layer and role.
pub struct Plan {
    /// The tensors.
    pub items: Vec<PlanItem>,
}

/// One tensor to be coded.
pub struct PlanItem {
    /// Which.
    pub tensor: MatrixId,
    /// Its shape; of experts that of all rows.
    pub shape: MatrixShape,
    /// The matrix, or those of all experts.
    pub matrix: Matrix,
    /// Type in the source.
    pub source_type: Type,
    /// Bytes in the source.
    pub source_bytes: u64,
    /// Type that Q5_K_M gives it.
    pub q5_k_m_type: Type,
    /// Bytes that Q5_K_M needs for it.
    pub q5_k_m_bytes: u64,
    /// Sidecars to be written.
    pub sidecars: Vec<SidecarSpec>,
    /// Their bytes.
    pub coded_bytes: u64,
    /// Parameters by name.
    pub settings: Settings,
    /// Seed of everything random.
    pub seed: u64,
    /// Seed of what all matrices have in common that read its input.
    pub input_seed: u64,
    /// The codec.
    pub codec: Box<dyn Codec>,
}

/// Sums over a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanTotals {
    /// Weights.
    pub n_weights: u64,
    /// Bytes in the source.
    pub source_bytes: u64,
    /// Bytes as Q5_K_M.
    pub q5_k_m_bytes: u64,
    /// Bytes of the sidecars.
    pub coded_bytes: u64,
}

impl Plan {
    /// Plans `tensors` of `source` coded with `method`.
    ///
    /// # Errors
    /// [`Error::Codec`] if the parameters do not fit a tensor.
    pub fn new(
        source: &Source,
        tensors: &[MatrixId],
        method: &dyn Method,
        seed: u64,
    ) -> Result<Self, Error> {
        let items = tensors.iter().map(|&tensor| PlanItem::new(source, tensor, method, seed));
        Ok(Self { items: items.collect::<Result<_, _>>()? })
    }

    /// The tensors that read one input each, in the order of the plan.
    pub fn sites(&self) -> impl Iterator<Item = (InputId, &[PlanItem])> {
        let sites = self.items.chunk_by(|a, b| a.tensor.input() == b.tensor.input());
        sites.map(|items| (items[0].tensor.input(), items))
    }

    /// The tensors alone.
    #[must_use]
    pub fn tensors(&self) -> Vec<MatrixId> {
        self.items.iter().map(|item| item.tensor).collect()
    }

    /// The item for `tensor`.
    #[must_use]
    pub fn item(&self, tensor: MatrixId) -> Option<&PlanItem> {
        self.items.iter().find(|item| item.tensor == tensor)
    }

    /// Sums over all tensors.
    #[must_use]
    pub fn totals(&self) -> PlanTotals {
        let mut totals = PlanTotals::default();
        for item in &self.items {
            totals.n_weights += item.shape.n_weights() as u64;
            totals.source_bytes += item.source_bytes;
            totals.q5_k_m_bytes += item.q5_k_m_bytes;
            totals.coded_bytes += item.coded_bytes;
        }
        totals
    }

    /// A warning for each group of matrices, those of one role and one type of the source, that `method` would make
    /// larger than they are.
    #[must_use]
    pub fn growth(&self, method: &dyn Method) -> Vec<String> {
        let mut groups: BTreeMap<(Role, Type), Vec<&PlanItem>> = BTreeMap::new();
        for item in &self.items {
            groups.entry((item.tensor.role, item.source_type)).or_default().push(item);
        }
        let warning = |((role, ty), items): ((Role, Type), Vec<&PlanItem>)| {
            let sum = |of: fn(&PlanItem) -> u64| items.iter().map(|i| of(i)).sum::<u64>();
            let (source, coded) = (sum(|i| i.source_bytes), sum(|i| i.coded_bytes));
            let bits = |n| bits_per_weight(n, sum(|i| i.shape.n_weights() as u64));
            (coded >= source).then(|| {
                format!(
                    "warning: coding makes {} no smaller: {} of {ty}, {:.2} bits per weight, would take {:.2} \
                     ({} bytes instead of {}): {}, or give a source of more bits per weight",
                    role.part(),
                    match items.len() {
                        1 => "1 matrix".to_owned(),
                        n => format!("{n} matrices"),
                    },
                    bits(source),
                    bits(coded),
                    bytes(coded),
                    bytes(source),
                    method.smaller(&items),
                )
            })
        };
        groups.into_iter().filter_map(warning).collect()
    }

    /// The table that `--dry-run` shows.
    #[must_use]
    pub fn table(&self) -> Table {
        let mut table = Table::new(&[
            ("tensor", Align::Left),
            ("shape", Align::Right),
            ("parameters", Align::Left),
            ("bits/weight", Align::Right),
            ("bytes", Align::Right),
            ("source", Align::Left),
            ("bytes", Align::Right),
            ("saved", Align::Right),
            ("Q5_K_M", Align::Left),
            ("bytes", Align::Right),
            ("saved", Align::Right),
        ]);
        for item in &self.items {
            table.row(item.cells());
        }
        let t = self.totals();
        table.total(vec![
            format!("{} tensors", self.items.len()),
            String::new(),
            String::new(),
            format!("{:.2}", bits_per_weight(t.coded_bytes, t.n_weights)),
            bytes(t.coded_bytes),
            String::new(),
            bytes(t.source_bytes),
            percent(saved(t.coded_bytes, t.source_bytes)),
            String::new(),
            bytes(t.q5_k_m_bytes),
            percent(saved(t.coded_bytes, t.q5_k_m_bytes)),
        ]);
        table
    }
}

impl PlanItem {
    fn new(
        source: &Source,
        tensor: MatrixId,
        method: &dyn Method,
        seed: u64,
    ) -> Result<Self, Error> {
        let (info, matrix) = (source.info(tensor), source.matrix(tensor));
        let shape = matrix.stacked();
        if matrix.n_experts.is_some() && !method.codes_experts() {
            let reason = format!(
                "{tensor} has experts, which the scheme {} cannot code: use --scheme sections, or --targets without them",
                method.scheme()
            );
            return Err(Error::Model { path: source.file().path().to_owned(), reason });
        }
        let codec = method.codec(matrix);
        let error = |cause| Error::Codec { tensor: tensor.weight(), cause };
        let sidecars = codec.sidecars(shape).map_err(error)?;
        let too_large = || Error::Model {
            path: source.file().path().to_owned(),
            reason: format!("{}: the sidecars would be larger than any file", tensor.weight()),
        };
        let coded_bytes = format::n_bytes(&sidecars).ok_or_else(too_large)? as u64;
        let q5_k_m_type = source.q5_k_m_type(tensor);
        let q5_k_m_bytes = q5_k_m_type.tensor_bytes(info.dims()).ok_or_else(too_large)? as u64;
        Ok(Self {
            tensor,
            shape,
            matrix: *matrix,
            source_type: info.ty(),
            source_bytes: info.n_bytes() as u64,
            q5_k_m_type,
            q5_k_m_bytes,
            sidecars,
            coded_bytes,
            settings: method.settings(tensor, shape),
            seed: tensor_seed(seed, tensor),
            input_seed: input_seed(seed, tensor.input()),
            codec,
        })
    }

    /// Bits per weight of the sidecars.
    #[must_use]
    pub fn bits_per_weight(&self) -> f64 {
        bits_per_weight(self.coded_bytes, self.shape.n_weights() as u64)
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.tensor.to_string(),
            self.matrix.to_string(),
            settings_text(&self.settings),
            format!("{:.2}", self.bits_per_weight()),
            bytes(self.coded_bytes),
            self.source_type.to_string(),
            bytes(self.source_bytes),
            percent(saved(self.coded_bytes, self.source_bytes)),
            self.q5_k_m_type.to_string(),
            bytes(self.q5_k_m_bytes),
            percent(saved(self.coded_bytes, self.q5_k_m_bytes)),
        ]
    }
}
