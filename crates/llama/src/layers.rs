//! Running a part of a model: some of its layers, or what lies before a product.

use std::ffi::{CStr, CString};
use std::ptr::NonNull;

use ggml::Type;
use ggml_sys as sys;

use crate::{Computed, Context, ContextParams, LlamaError, Model, Node, Observer, Outputs, Token};

/// A place in a model where one tensor, with a row per token, carries on all that was computed before, or that is the
/// input of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point<'a> {
    /// The hidden state before this layer; of the number of layers: that behind the last.
    Before(usize),
    /// The hidden state in the layer behind all that comes before the products with the input of `weight`: behind the
    /// attention, where that stands before the FFN.
    Middle {
        /// Number of the layer.
        layer: usize,
        /// Name of the weight in the file.
        weight: &'a str,
    },
    /// The input of the product with `weight`.
    Input {
        /// Number of the layer.
        layer: usize,
        /// Name of the weight in the file.
        weight: &'a str,
    },
}

impl Point<'_> {
    fn layer(self) -> usize {
        match self {
            Self::Before(layer) | Self::Middle { layer, .. } | Self::Input { layer, .. } => layer,
        }
    }

    /// The form in C; `name` keeps its text.
    fn raw(self, name: &mut CString) -> Result<sys::llama_layers_point, LlamaError> {
        let (place, weight) = match self {
            Self::Before(_) => (sys::LLAMA_LAYERS_BEFORE, None),
            Self::Middle { weight, .. } => (sys::LLAMA_LAYERS_MIDDLE, Some(weight)),
            Self::Input { weight, .. } => (sys::LLAMA_LAYERS_INPUT, Some(weight)),
        };
        let refuse = || LlamaError::Part("a number or a name is no layer's".to_owned());
        *name = CString::new(weight.unwrap_or_default()).map_err(|_| refuse())?;
        Ok(sys::llama_layers_point {
            layer: i32::try_from(self.layer()).map_err(|_| refuse())?,
            place,
            weight: if weight.is_some() { name.as_ptr() } else { std::ptr::null() },
        })
    }
}

/// A part of a model.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Where it begins; [`Point::Before`] the first layer: with the tokens.
    pub from: Point<'a>,
    /// Where it ends.
    pub to: Point<'a>,
    /// Weights that take the place of the model's.
    pub stand_ins: &'a [StandIn],
    /// Weight of whose product [`Layers::gain`] tells and [`Layers::watched`] shows.
    pub watched: Option<&'a str>,
    /// Whether that product counts as zero instead of being computed.
    pub omits: bool,
}

impl<'a> Part<'a> {
    /// From `from` to `to` with the model's own weights.
    #[must_use]
    pub fn new(from: Point<'a>, to: Point<'a>) -> Self {
        Self { from, to, stand_ins: &[], watched: None, omits: false }
    }
}

/// What one sequence of tokens has where a part begins.
#[derive(Debug)]
pub struct Carried<'a> {
    /// What is at the point, [width, tokens]; not read where the part begins with the tokens.
    pub state: &'a [f32],
    /// What layers keep that later ones read, [`Layers::n_shared`] bytes: filled where the part has the layer that keeps it,
    /// read where it has only the later one.
    pub shared: &'a mut [u8],
}

impl<'a> Carried<'a> {
    /// In a model whose layers share nothing.
    #[must_use]
    pub fn alone(state: &'a [f32]) -> Self {
        Self { state, shared: &mut [] }
    }
}

/// What a part has to tell when its graph is cut out.
struct Told {
    /// See [`Layers::gain`].
    gain: f32,
    /// Values where the part ends, over all tokens.
    n_state: usize,
    /// Bytes that layers share.
    n_shared: usize,
}

/// A matrix that takes the place of a weight.
#[derive(Debug)]
pub struct StandIn {
    name: CString,
    context: NonNull<sys::ggml_context>,
    buffer: NonNull<sys::ggml_backend_buffer>,
    tensor: *mut sys::ggml_tensor,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        // SAFETY: both are owned by this value and freed only here; no run outlives the call that it is given to.
        unsafe {
            sys::ggml_backend_buffer_free(self.buffer.as_ptr());
            sys::ggml_free(self.context.as_ptr());
        }
    }
}

impl StandIn {
    /// `values` as `ty` in the place of the weight `name`.
    ///
    /// # Shapes
    /// `values`: [d_in, values.len() / d_in].
    ///
    /// # Errors
    /// [`LlamaError::Part`] if the values are no matrix, cannot be had as `ty`, or if there is not enough memory.
    pub fn new(name: &str, values: &[f32], d_in: usize, ty: Type) -> Result<Self, LlamaError> {
        let refuse = |reason: &str| LlamaError::Part(format!("'{name}': {reason}"));
        if values.is_empty() || d_in == 0 || !values.len().is_multiple_of(d_in) {
            return Err(refuse("not a matrix"));
        }
        let c_name = CString::new(name).map_err(|_| refuse("the name holds a NUL character"))?;
        let bytes = ty.quantize(values, d_in, None).map_err(|e| refuse(&e.to_string()))?;
        let (n_in, n_out) = (d_in as i64, (values.len() / d_in) as i64);
        // SAFETY: the context has room for one tensor, whose size does not overflow because the values are in memory; the
        // buffer is made for all tensors of the context, and the tensor takes as many bytes as there are of its type.
        unsafe {
            let context = sys::ggml_init(sys::ggml_init_params {
                mem_size: sys::ggml_tensor_overhead(),
                mem_buffer: std::ptr::null_mut(),
                no_alloc: true,
            });
            let context = NonNull::new(context).ok_or_else(|| refuse("out of memory"))?;
            let tensor = sys::ggml_new_tensor_2d(context.as_ptr(), ty.raw(), n_in, n_out);
            sys::ggml_set_name(tensor, c_name.as_ptr());
            let memory = sys::ggml_backend_cpu_buffer_type();
            let buffer = sys::ggml_backend_alloc_ctx_tensors_from_buft(context.as_ptr(), memory);
            let Some(buffer) = NonNull::new(buffer) else {
                sys::ggml_free(context.as_ptr());
                return Err(refuse("out of memory"));
            };
            sys::ggml_backend_buffer_set_usage(
                buffer.as_ptr(),
                sys::GGML_BACKEND_BUFFER_USAGE_WEIGHTS,
            );
            sys::ggml_backend_tensor_set(tensor, bytes.as_ptr().cast(), 0, bytes.len());
            Ok(Self { name: c_name, context, buffer, tensor })
        }
    }
}

/// A model whose parts are run one by one, each time on one sequence of tokens from its start.
///
/// The graph that llama.cpp builds for the whole model is cut where a single tensor carries on what was computed before
/// (`llama-layers.h`), so every architecture is run as llama.cpp runs it. Layers outside the part are neither computed nor
/// read.
#[derive(Debug)]
pub struct Layers<'m> {
    context: Context<'m, Watched>,
    model: &'m Model,
}

/// Name of the node of a product that counts as zero, without the NUL at its end.
const OMITTED: &[u8] = sys::LLAMA_LAYERS_OMITTED.split_last().expect("ends with NUL").1;

/// A product, as it was computed last.
#[derive(Debug, Default)]
pub struct Watched {
    weight: Option<String>,
    omits: bool,
    /// Its input, one row per token.
    pub input: Vec<f32>,
    /// What came out, one row per token.
    pub output: Vec<f32>,
    error: Option<LlamaError>,
}

impl Watched {
    fn keep(&mut self, node: Computed<'_>) -> Result<(), LlamaError> {
        let copy = |rows: &mut Vec<f32>, row: &[f32]| rows.extend_from_slice(row);
        self.input.clear();
        self.output.clear();
        let input = if self.omits { 0 } else { 1 };
        node.source_rows(input)?.for_each(|row| copy(&mut self.input, row));
        node.rows()?.for_each(|row| copy(&mut self.output, row));
        Ok(())
    }
}

impl Observer for Watched {
    fn wants(&mut self, node: Node<'_>) -> bool {
        match &self.weight {
            None => false,
            Some(_) if self.omits => node.name().as_bytes() == OMITTED,
            Some(weight) => {
                node.op() == "MUL_MAT" && node.source(0).is_some_and(|w| w.name() == weight)
            }
        }
    }

    fn observe(&mut self, node: Computed<'_>) -> bool {
        self.error = self.keep(node).err();
        self.error.is_none()
    }
}

impl<'m> Layers<'m> {
    /// For sequences of at most `params.n_batch` tokens.
    ///
    /// # Errors
    /// As [`Context::new`].
    pub fn new(model: &'m Model, params: ContextParams) -> Result<Self, LlamaError> {
        let context = Context::with_observer(model, params, Watched::default())?;
        Ok(Self { context, model })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &'m Model {
        self.model
    }

    /// Whether the model can be cut at `point`, and has `width` values to a token there. Nothing is computed.
    ///
    /// # Errors
    /// [`LlamaError::Part`] with the reason why not.
    pub fn check(&mut self, point: Point<'_>, width: usize) -> Result<(), LlamaError> {
        match self.width(point)? {
            found if found == width => Ok(()),
            found => Err(LlamaError::Part(format!("{found} values at {point:?}, not {width}"))),
        }
    }

    /// Values to a token at `point`. Nothing is computed.
    ///
    /// # Errors
    /// [`LlamaError::Part`] if the model cannot be cut there.
    pub fn width(&mut self, point: Point<'_>) -> Result<usize, LlamaError> {
        // From the layer itself where the point is in it, and never from the tokens: both ends are looked at.
        let from = match point {
            Point::Before(layer) => Point::Before(layer.saturating_sub(1)),
            Point::Middle { layer, .. } | Point::Input { layer, .. } => Point::Before(layer),
        };
        Ok(self.cut_out(&Part::new(from, point))?.n_state)
    }

    /// Bytes that layers keep of one sequence and later layers read, such as keys and values that several layers share.
    ///
    /// # Errors
    /// [`LlamaError::Part`] if the model cannot be cut behind its first layer.
    pub fn n_shared(&mut self) -> Result<usize, LlamaError> {
        Ok(self.cut_out(&Part::new(Point::Before(0), Point::Before(1)))?.n_shared)
    }

    /// The factor with which the product with [`Part::watched`] is added to the result of `part`; 0 where the product gets
    /// there in any other way, through a norm for example. Nothing is computed.
    ///
    /// # Errors
    /// [`LlamaError::Part`] if the part cannot be cut out.
    pub fn gain(&mut self, part: &Part<'_>) -> Result<f32, LlamaError> {
        Ok(self.cut_out(part)?.gain)
    }

    /// Computes `part` for `tokens`; the factor of [`Self::gain`].
    ///
    /// # Shapes
    /// `out`: [width at the point, tokens.len()].
    ///
    /// # Errors
    /// [`LlamaError::Part`] if the part cannot be cut out or a size is wrong, or as [`Context::decode`].
    pub fn run(
        &mut self,
        part: &Part<'_>,
        tokens: &[Token],
        mut carried: Carried<'_>,
        out: &mut [f32],
    ) -> Result<f32, LlamaError> {
        let ran = self.compute(part, tokens, &mut carried, (out.as_mut_ptr(), out.len()));
        match self.context.observer_mut().error.take() {
            Some(error) => Err(error),
            None => Ok(ran?.gain),
        }
    }

    /// Cuts `part` out and computes nothing.
    fn cut_out(&mut self, part: &Part<'_>) -> Result<Told, LlamaError> {
        self.compute(part, &[0], &mut Carried::alone(&[]), (std::ptr::null_mut(), 0))
    }

    /// The product of [`Part::watched`] in the last run.
    #[must_use]
    pub fn watched(&self) -> &Watched {
        self.context.observer()
    }

    /// With a null pointer `out` the part is cut out and not computed.
    fn compute(
        &mut self,
        part: &Part<'_>,
        tokens: &[Token],
        carried: &mut Carried<'_>,
        (out, n_out): (*mut f32, usize),
    ) -> Result<Told, LlamaError> {
        let (mut from, mut to) = (CString::default(), CString::default());
        let added = CString::new(part.watched.unwrap_or_default())
            .map_err(|_| LlamaError::Part("the name of a weight holds NUL".to_owned()))?;
        let observer = self.context.observer_mut();
        (observer.weight, observer.omits) = (part.watched.map(str::to_owned), part.omits);
        let swap =
            |s: &StandIn| sys::llama_layers_swap { weight: s.name.as_ptr(), tensor: s.tensor };
        let swaps: Vec<_> = part.stand_ins.iter().map(swap).collect();
        let mut run = sys::llama_layers_run {
            from: part.from.raw(&mut from)?,
            to: part.to.raw(&mut to)?,
            in_: carried.state.as_ptr(),
            n_in: carried.state.len(),
            out,
            n_out,
            shared: carried.shared.as_mut_ptr().cast(),
            n_shared: carried.shared.len(),
            swaps: swaps.as_ptr(),
            n_swaps: swaps.len(),
            added: if part.watched.is_some() { added.as_ptr() } else { std::ptr::null() },
            omits: part.watched.is_some() && part.omits,
            n_state: 0,
            n_shared_needed: 0,
            gain: 0.0,
            error: [0; 256],
        };
        // SAFETY: names, what is carried and stand-ins live until the end of this function, as does the output.
        unsafe { self.decode(tokens, &mut run) }
    }

    /// # Safety
    /// All that `run` points to must be valid, in the sizes that it says.
    unsafe fn decode(
        &mut self,
        tokens: &[Token],
        run: &mut sys::llama_layers_run,
    ) -> Result<Told, LlamaError> {
        self.context.clear();
        let decoded = self.context.decode_with(tokens, Outputs::All, |raw, batch| {
            // SAFETY: context and batch are valid as for llama_decode, the run as promised; the glue compares the sizes of
            // what goes in and out with the graph before it touches any of it.
            unsafe { sys::llama_layers_decode(raw, batch, run) }
        });
        self.context.clear();
        // SAFETY: the glue ends the text with NUL, and it was zeros before.
        let error = unsafe { CStr::from_ptr(run.error.as_ptr()) }.to_string_lossy();
        match decoded {
            Err(_) if !error.is_empty() => Err(LlamaError::Part(error.into_owned())),
            Err(other) if !run.out.is_null() => Err(other),
            Ok(()) | Err(_) => {
                Ok(Told { gain: run.gain, n_state: run.n_state, n_shared: run.n_shared_needed })
            }
        }
    }

    /// Gives the memory of a mapped model's `layer` back: its weights are read again when they are needed.
    pub fn release(&self, layer: usize) {
        let Ok(layer) = i32::try_from(layer) else { return };
        // SAFETY: the model is loaded, and no evaluation is going on.
        unsafe { sys::llama_layers_release(self.model.as_ptr(), layer) }
    }
}
