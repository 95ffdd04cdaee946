//! One dictionary over the whole input: `sign`, `sign+row_scale`, `sign+vals`.

use std::collections::BTreeMap;

use dictionary::{GlobalCodec, GlobalParams, complete_row_scale};
use format::{CodecError, Matrix, MatrixId, MatrixShape, Role, Scheme, Sidecar, SidecarSpec, keys};
use ggml::gguf::Value;
use inspect::Settings;
use numerics::{Codec, EncodeContext};

use crate::{Growth, Method, PlanItem};

/// Global dictionaries with parameters for each role.
#[derive(Debug)]
pub struct GlobalMethod {
    scheme: Scheme,
    params: BTreeMap<Role, GlobalParams>,
}

/// Names of the parameters in reports.
const M: &str = "M";
const K: &str = "k";

impl GlobalMethod {
    /// The method with `params` for every role, all of `scheme`.
    #[must_use]
    pub fn new(scheme: Scheme, params: BTreeMap<Role, GlobalParams>) -> Self {
        Self { scheme, params }
    }

    fn params(&self, tensor: MatrixId) -> &GlobalParams {
        &self.params[&tensor.role]
    }

    /// Parameters that do not depend on the role.
    fn common(&self) -> &GlobalParams {
        self.params.values().next().expect("every role has its parameters")
    }
}

impl Method for GlobalMethod {
    fn scheme(&self) -> &'static str {
        self.scheme.as_str()
    }

    fn codec(&self, matrix: &Matrix) -> Box<dyn Codec> {
        Box::new(GlobalCodec::new(self.params(matrix.id).clone()))
    }

    fn smaller(&self, _items: &[&PlanItem]) -> String {
        "use a smaller --dict-M or --dict-k".to_owned()
    }

    fn settings(&self, tensor: MatrixId, shape: MatrixShape) -> Settings {
        let params = self.params(tensor);
        let values = [(M, params.n_atoms(shape)), (K, params.k)];
        values.map(|(name, value)| (name.to_owned(), value as u64)).into()
    }

    fn arguments(&self) -> BTreeMap<String, String> {
        let common = self.common();
        let mut arguments: BTreeMap<String, String> = [
            ("--scheme", self.scheme.to_string()),
            ("--encoder", common.encoder.to_string()),
            ("--dict-eta", common.eta.to_string()),
            ("--dict-iters", common.iters.to_string()),
            ("--dict-refine", common.refine.to_string()),
            ("--dict-max-samples", common.max_samples.to_string()),
            ("--dict-type", common.dict_type.to_string()),
            ("--anti-hebb", common.anti_hebb.to_string()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        for (role, params) in &self.params {
            let m = params.m.map_or_else(|| "auto".to_owned(), |m| m.to_string());
            arguments.insert(format!("--dict-M-{role}"), m);
            arguments.insert(format!("--dict-k-{role}"), params.k.to_string());
        }
        arguments
    }

    fn growth(&self) -> Option<&dyn Growth> {
        Some(self)
    }

    fn metadata(&self, coded: &[&PlanItem]) -> Vec<(String, Value)> {
        let largest = |name| {
            let values = coded.iter().filter_map(|item| item.settings.get(name));
            Value::U32(values.copied().max().unwrap_or(0) as u32)
        };
        let common = self.common();
        vec![
            (keys::DICT_M.to_owned(), largest(M)),
            (keys::DICT_K.to_owned(), largest(K)),
            (keys::DICT_ETA.to_owned(), Value::F32(common.eta)),
            (
                keys::DICT_ITERS.to_owned(),
                Value::U32(u32::try_from(common.iters).unwrap_or(u32::MAX)),
            ),
        ]
    }
}

impl Growth for GlobalMethod {
    /// `sign` grows into `sign+row_scale`: same dictionary and codes, scales added.
    fn may_change(&self, name: &str, recorded: &str, given: &str) -> bool {
        name == "--scheme"
            && recorded == Scheme::Sign.as_str()
            && given == Scheme::SignRowScale.as_str()
    }

    fn complete(
        &self,
        _tensor: MatrixId,
        weights: &[f32],
        shape: MatrixShape,
        mut sidecars: Vec<Sidecar>,
        context: &EncodeContext<'_>,
    ) -> Result<Vec<Sidecar>, CodecError> {
        let row_scale = complete_row_scale(&sidecars, weights, shape, context.importance)?;
        sidecars.push(row_scale);
        Ok(sidecars)
    }

    fn earlier_sidecars(&self, item: &PlanItem, recorded: &str) -> Option<Vec<SidecarSpec>> {
        let earlier: Scheme = recorded.parse().ok()?;
        if !self.may_change("--scheme", recorded, self.scheme()) {
            return None;
        }
        let params = GlobalParams { scheme: earlier, ..self.params(item.tensor).clone() };
        params.sidecars(item.shape).ok()
    }
}
