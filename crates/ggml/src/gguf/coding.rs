//! Whether a file is coded: one question, answered by the keys `statecells.<tensor>.scheme` alone.

use std::collections::BTreeMap;

use format::{Family, MatrixId, Sidecar, SidecarSpec, keys};

use super::{GgufFile, TensorInfo, Value};

/// Scheme of a tensor whose key holds no text.
const UNKNOWN: &str = "unknown";

impl GgufFile {
    /// Scheme of `tensor`; `None` if it is dense.
    #[must_use]
    pub fn scheme(&self, tensor: MatrixId) -> Option<String> {
        Some(match self.value(&keys::tensor_scheme(tensor))? {
            Value::String(scheme) => scheme,
            _ => UNKNOWN.to_owned(),
        })
    }

    /// Schemes of all coded FFN matrices.
    #[must_use]
    pub fn schemes(&self) -> BTreeMap<MatrixId, String> {
        let tensors = self.coded_tensors().into_iter();
        let ffn = tensors.filter_map(|name| MatrixId::of_stem(&name));
        ffn.filter_map(|tensor| Some((tensor, self.scheme(tensor)?))).collect()
    }

    /// The sidecars of `tensor` that the file has of those that its scheme knows, in file order; none of a scheme that is
    /// unknown.
    #[must_use]
    pub fn sidecars(&self, tensor: MatrixId) -> Vec<Sidecar> {
        let scheme = self.scheme(tensor);
        let family = scheme.and_then(|scheme| Family::of(&scheme));
        let suffixes = family.map_or(&[][..], |family| family.sidecars);
        let sidecar = |info: &TensorInfo| {
            let (owner, suffix) = MatrixId::parse(info.name())?;
            let suffix = suffixes.iter().find(|known| owner == tensor && **known == suffix)?;
            let spec = SidecarSpec::new(suffix, info.ty().element_type()?, info.dims());
            Some(Sidecar { spec, data: self.data(info).to_vec() })
        };
        self.tensors().iter().filter_map(sidecar).collect()
    }

    /// Names of all coded tensors, without suffix and in file order; none for a plain file.
    #[must_use]
    pub fn coded_tensors(&self) -> Vec<String> {
        let name = |key: &String| keys::coded_tensor(key).map(str::to_owned);
        self.keys().iter().filter_map(name).collect()
    }
}
