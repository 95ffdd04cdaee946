//! Coded models and their dense twins, made with the codec itself instead of `statecells-build`.

use dictionary::{DictType, GlobalCodec, GlobalParams};
use format::seeddelta::BaseType;
use format::{MatrixId, Role, Scheme, Sidecar, keys};
use numerics::metrics::Metrics;
use numerics::{Codec, EncodeContext, TiledMatMul};
use sections::{SectionsCodec, SectionsParams};
use seeddelta::{Delta, SeedDeltaCodec};

use crate::model_file::{ModelFile, Tensor};

/// A family of schemes with its parameters.
#[derive(Clone, Debug)]
pub enum Method {
    /// One dictionary over the whole input.
    Global(GlobalParams),
    /// One atom of every section for each block of inputs.
    Sections(SectionsParams),
    /// A structured base and a sparse delta.
    SeedDelta(SeedDeltaCodec),
}

impl Method {
    /// The codec.
    #[must_use]
    pub fn codec(&self) -> Box<dyn Codec> {
        match self {
            Self::Global(params) => Box::new(GlobalCodec::new(params.clone())),
            Self::Sections(params) => Box::new(SectionsCodec::new(params.clone())),
            Self::SeedDelta(codec) => Box::new(codec.clone()),
        }
    }
}

/// How the matrices of a model are coded.
#[derive(Clone, Debug)]
pub struct Coding {
    /// Scheme and parameters for all of them.
    pub method: Method,
    /// Layers whose matrices are coded.
    pub layers: Vec<usize>,
    /// Which matrices of a layer.
    pub targets: Vec<Role>,
    /// Whether the dense weights stay in the file.
    pub keep_dense: bool,
}

impl Default for Coding {
    /// All matrices of the first two layers, quickly. The 11 codes of a row do not fill the vectors of a
    /// processor.
    fn default() -> Self {
        Self::global(Scheme::SignRowScale, DictType::F16)
    }
}

impl Coding {
    /// The default with another scheme and dictionary.
    #[must_use]
    pub fn global(scheme: Scheme, dict_type: DictType) -> Self {
        let quick = GlobalParams { m: Some(61), k: 11, iters: 1, refine: 1, ..Default::default() };
        Self::by(Method::Global(GlobalParams { scheme, dict_type, ..quick }))
    }

    /// The default in sections: an odd number of them, so that a byte of codes spans two blocks.
    #[must_use]
    pub fn sections(outlier_share: f64) -> Self {
        let quick = SectionsParams { sections: 5, beam: 2, rounds: 1, ..Default::default() };
        Self::by(Method::Sections(SectionsParams { outlier_share, learn_rounds: 2, ..quick }))
    }

    /// The default as base and delta: 9 residuals per row fill no vector of a processor.
    ///
    /// # Panics
    /// If `base` names none.
    #[must_use]
    pub fn seeddelta(base: &str, row_scale: bool) -> Self {
        let base = base.parse().expect("a base");
        let (base_type, delta) = (BaseType::F16, Delta::Coo { k: 9 });
        Self::by(Method::SeedDelta(SeedDeltaCodec { base, base_type, row_scale, delta }))
    }

    fn by(method: Method) -> Self {
        Self { method, layers: vec![0, 1], targets: Role::PLAIN.to_vec(), keep_dense: false }
    }

    /// One coding for every kind of file: each global scheme with each type of atoms, sections with and
    /// without outliers, and every base with a delta.
    pub fn all() -> impl Iterator<Item = Self> {
        let global = Scheme::ALL.iter().filter(|s| s.is_global());
        let global = global.flat_map(|&s| DictType::ALL.iter().map(move |&t| Self::global(s, t)));
        let bases = ["none", "identity", "diagonal", "lowrank:5", "circulant", "block:7"];
        let seeddelta = bases.into_iter().chain(["circulant+lowrank:3"]);
        let seeddelta = seeddelta.map(|base| Self::seeddelta(base, base == "circulant"));
        global.chain([Self::sections(0.0), Self::sections(0.01)]).chain(seeddelta)
    }
}

/// A coded model beside the dense one that computes the same.
#[derive(Clone, Debug)]
pub struct Twins {
    /// Sidecars in place of (or beside) the dense weights.
    pub coded: ModelFile,
    /// F32 weights with the values that the sidecars stand for.
    pub dense: ModelFile,
}

impl Twins {
    /// Codes the FFN matrices of `base` that `coding` selects.
    ///
    /// # Panics
    /// If the codec refuses one of them, or there is none.
    #[must_use]
    pub fn of(base: &ModelFile, coding: &Coding) -> Self {
        let mut twins = Self { coded: base.clone(), dense: base.clone() };
        twins.coded.set(keys::ENABLED, true);
        twins.coded.set(keys::VERSION, keys::FORMAT_VERSION);
        twins.coded.set(keys::SCHEME, coding.method.codec().scheme());
        let mut n_coded = 0;
        for tensor in &base.tensors {
            let Some((ffn, "weight")) = MatrixId::parse(&tensor.name) else { continue };
            if coding.layers.contains(&ffn.layer) && coding.targets.contains(&ffn.role) {
                twins.code(tensor, ffn, coding);
                n_coded += 1;
            }
        }
        assert!(n_coded > 0, "{coding:?} selects nothing");
        twins
    }

    fn code(&mut self, tensor: &Tensor, ffn: MatrixId, coding: &Coding) {
        let (weights, shape) = (tensor.to_f32(), tensor.shape());
        let codec = coding.method.codec();
        let (sidecars, decoded) = encode(&*codec, &weights, tensor);
        let gap = Metrics::compare(&weights, &decoded, shape, None).gap;
        self.coded.set(&keys::tensor_scheme(ffn), codec.scheme());
        self.coded.set(&keys::tensor_gap(ffn), gap as f32);
        let kept = coding.keep_dense.then(|| tensor.clone());
        let sidecars = sidecars.into_iter().map(|s| Tensor::from_sidecar(&ffn.stem(), s));
        self.coded.replace(&tensor.name, kept.into_iter().chain(sidecars));
        self.dense.replace(&tensor.name, [Tensor::from_f32(&tensor.name, &tensor.dims, &decoded)]);
    }
}

/// Sidecars of `weights`, and the values they stand for.
fn encode(codec: &dyn Codec, weights: &[f32], tensor: &Tensor) -> (Vec<Sidecar>, Vec<f32>) {
    let context = EncodeContext { mul_mat: &TiledMatMul, importance: None, seed: 7, progress: &() };
    let sidecars =
        codec.encode(weights, tensor.shape(), &context).expect("the matrix can be coded");
    let decoded = codec.decode(&sidecars, tensor.shape()).expect("what was encoded can be decoded");
    (sidecars, decoded)
}
