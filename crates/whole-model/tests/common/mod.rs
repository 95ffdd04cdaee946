//! What tests of tuning share.

use std::collections::BTreeMap;

use format::{MatrixId, ModelMap};
use ggml::gguf::GgufFile;
use numerics::{Codec, EncodeContext, ReferenceMatMul};
use sections::{SectionsCodec, SectionsParams, SectionsParts};

/// Every FFN matrix of a model with two sections: far from exact.
pub fn coded(file: &GgufFile) -> BTreeMap<MatrixId, SectionsParts> {
    let params = SectionsParams { sections: 2, outlier_share: 0.01, ..SectionsParams::default() };
    let codec = SectionsCodec::new(params);
    let code = |tensor: MatrixId| {
        let info = file.require_tensor(&tensor.weight()).unwrap();
        let shape = info.matrix_shape().unwrap();
        let context =
            EncodeContext { mul_mat: &ReferenceMatMul, importance: None, seed: 1, progress: &() };
        let sidecars = codec.encode(&file.to_f32(info).unwrap(), shape, &context).unwrap();
        (tensor, SectionsParts::read(&sidecars, shape).unwrap())
    };
    let map = ModelMap::of(file.tensors().iter().map(|t| (t.name(), t.dims())));
    map.matrices().map(|matrix| code(matrix.id)).collect()
}
