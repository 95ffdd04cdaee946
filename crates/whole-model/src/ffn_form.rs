//! What an FFN computes between its products, found out by looking at one.

use candle_core::Tensor;
use format::{MatrixId, ModelMap, Role};
use ggml::gguf::GgufFile;
use llama::{Carried, Layers, Model, Part, Point, Token};

use crate::TuningError;
use crate::fused::Activation;
use crate::layer::{FfnForm, constant};
use crate::parts;

/// Tokens that are looked at.
const TOKENS: usize = 4;

/// How far what is computed may be from what was seen, as a share of its size: llama.cpp reads GELU from a table.
const TOLERANCE: f64 = 5e-3;

/// Values of one layer as llama.cpp computed them, [any, tokens].
struct Seen {
    up: Vec<f32>,
    gate: Option<Vec<f32>>,
    down_input: Vec<f32>,
}

/// The form of the FFNs of `model`, whose file is `file`: that of the first layer of `map`, which all others are taken to
/// have too. One layer is computed.
///
/// # Errors
/// [`TuningError::Llama`], or [`TuningError::Form`] if the form is none that is known.
pub(crate) fn form_of(
    (model, file, map): (&Model, &GgufFile, &ModelMap),
) -> Result<FfnForm, TuningError> {
    let refuse = |reason: &str| TuningError::Form {
        path: file.path().to_owned(),
        reason: reason.to_owned(),
    };
    let layer = map.sites().first().map_or(0, |site| site.input.layer);
    let has = |role| file.tensor(&MatrixId { layer, role }.weight()).is_some();
    if !has(Role::Up) || !has(Role::Down) {
        return Err(refuse("the first layer to be tuned has no FFN of two or three matrices"));
    }
    let seen = Seen::of((model, file), layer, has(Role::Gate))?;
    let distances = seen.candidates().into_iter().map(|form| Ok((seen.distance(form)?, form)));
    let distances: Vec<(f64, FfnForm)> = distances.collect::<Result<_, TuningError>>()?;
    // The nearest: where all values are small, one activation is much like another.
    let nearest = distances.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
    match nearest {
        Some((distance, form)) if distance < TOLERANCE => Ok(form),
        _ => Err(refuse("what its FFN computes between the products is not known here")),
    }
}

impl Seen {
    /// Runs `layer` on a state of waves, once for each product.
    fn of(
        (model, file): (&Model, &GgufFile),
        layer: usize,
        has_gate: bool,
    ) -> Result<Self, TuningError> {
        let mut layers = Layers::new(model, crate::stream::params(TOKENS, 1))?;
        let n = TOKENS * layers.width(Point::Before(layer + 1))?;
        let mut shared = vec![0; layers.n_shared()?];
        let state: Vec<f32> = (0..n).map(|i| (1.7 * i as f32).sin()).collect();
        let tokens: Vec<Token> = (0..TOKENS as Token).collect();
        let mut look = |role: Role| -> Result<(Vec<f32>, Vec<f32>), TuningError> {
            let weight = MatrixId { layer, role }.weight();
            let part = Part::new(Point::Before(layer), Point::Before(layer + 1));
            let part = Part { watched: Some(&weight), ..part };
            let carried = Carried { state: &state, shared: &mut shared };
            layers.run(&part, &tokens, carried, &mut vec![0.0; n])?;
            Ok((layers.watched().input.clone(), layers.watched().output.clone()))
        };
        let mut product = |role: Role| -> Result<Vec<f32>, TuningError> {
            let mut values = look(role)?.1;
            if let Some(bias) = file.tensor(&parts::bias(layer, role.part())) {
                let bias = file.to_f32(bias)?;
                let both = values.iter_mut().zip(bias.iter().cycle());
                both.for_each(|(v, b)| *v += b);
            }
            Ok(values)
        };
        let up = product(Role::Up)?;
        let gate = has_gate.then(|| product(Role::Gate)).transpose()?;
        Ok(Self { up, gate, down_input: look(Role::Down)?.0 })
    }

    /// Forms with outputs of as many values as were seen.
    fn candidates(&self) -> Vec<FfnForm> {
        let forms: &[fn(Activation) -> FfnForm] = match &self.gate {
            Some(_) => &[FfnForm::Gated],
            None if self.up.len() == 2 * self.down_input.len() => &[FfnForm::GateInUp],
            None => &[FfnForm::Ungated],
        };
        forms.iter().flat_map(|form| Activation::ALL.map(form)).collect()
    }

    /// How far what `form` computes is from what was seen, as a share of its size.
    fn distance(&self, form: FfnForm) -> Result<f64, TuningError> {
        let rows = |values: &[f32]| constant(values.to_vec(), &[TOKENS, values.len() / TOKENS]);
        let outputs: Vec<Tensor> =
            self.gate.iter().chain([&self.up]).map(|v| rows(v)).collect::<Result<_, _>>()?;
        let found = form.apply(&outputs)?.flatten_all()?.to_vec1::<f32>()?;
        if found.len() != self.down_input.len() {
            return Ok(f64::INFINITY);
        }
        let (mut difference, mut size) = (0.0, 0.0);
        for (found, seen) in found.iter().zip(&self.down_input) {
            difference += f64::from(found - seen).powi(2);
            size += f64::from(*seen).powi(2);
        }
        Ok((difference / size).sqrt())
    }
}
