//! What an observer sees of the graph while it is evaluated.

use std::ffi::{CStr, c_char};
use std::marker::PhantomData;
use std::ops::Deref;

use ggml::Type;
use ggml_sys as sys;

use crate::LlamaError;

/// Watches an evaluation. Methods are called on the thread that decodes.
pub trait Observer {
    /// Whether `node`'s data is wanted once it is computed. Every node wanted costs a break in the
    /// evaluation.
    fn wants(&mut self, node: Node<'_>) -> bool;

    /// Takes what it needs from a wanted node; `false` stops the evaluation.
    fn observe(&mut self, node: Computed<'_>) -> bool;

    /// Whether nothing more of this evaluation is wanted, its outputs neither: asked after every node that was observed. The
    /// rest is not computed then.
    fn has_enough(&self) -> bool {
        false
    }
}

/// Watches nothing.
impl Observer for () {
    fn wants(&mut self, _: Node<'_>) -> bool {
        false
    }

    fn observe(&mut self, _: Computed<'_>) -> bool {
        true
    }
}

/// Name, operation and dimensions of a tensor of the graph, without its data.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    raw: *const sys::ggml_tensor,
    graph: PhantomData<&'a sys::ggml_tensor>,
}

impl<'a> Node<'a> {
    /// # Safety
    /// `raw` must be a valid tensor, as are its sources, during `'a`.
    pub(crate) unsafe fn new(raw: *const sys::ggml_tensor) -> Self {
        Self { raw, graph: PhantomData }
    }

    fn tensor(self) -> &'a sys::ggml_tensor {
        // SAFETY: valid during `'a` as promised to `new`, and ggml does not change it meanwhile.
        unsafe { &*self.raw }
    }

    /// Name of the tensor: that of the file for a weight, `ffn_gate-3` or similar for a result.
    #[must_use]
    pub fn name(self) -> &'a str {
        let name: &[c_char] = &self.tensor().name;
        // SAFETY: the same bytes, and the borrow is the same.
        let bytes = unsafe { std::slice::from_raw_parts(name.as_ptr().cast::<u8>(), name.len()) };
        CStr::from_bytes_until_nul(bytes).ok().and_then(|name| name.to_str().ok()).unwrap_or("")
    }

    /// ggml's name of the operation: `MUL_MAT`, or `NONE` for a weight.
    #[must_use]
    pub fn op(self) -> &'static str {
        // SAFETY: the operation of a valid tensor is one of ggml's, whose names are static.
        let name = unsafe { CStr::from_ptr(sys::ggml_op_name(self.tensor().op)) };
        name.to_str().unwrap_or("")
    }

    /// Element type, if known to this ggml.
    #[must_use]
    pub fn ty(self) -> Option<Type> {
        Type::try_from(self.tensor().type_).ok()
    }

    /// Dimensions, innermost first.
    #[must_use]
    pub fn dims(self) -> [usize; 4] {
        self.tensor().ne.map(|n| usize::try_from(n).unwrap_or(0))
    }

    /// The `index`-th tensor that the operation works on.
    #[must_use]
    pub fn source(self, index: usize) -> Option<Self> {
        let raw = *self.tensor().src.get(index)?;
        // SAFETY: the sources are valid during `'a` as promised to `new`.
        (!raw.is_null()).then(|| unsafe { Self::new(raw) })
    }
}

/// A node that was just computed: its data and that of its sources can be read.
#[derive(Clone, Copy, Debug)]
pub struct Computed<'a>(Node<'a>);

impl<'a> Deref for Computed<'a> {
    type Target = Node<'a>;

    fn deref(&self) -> &Node<'a> {
        &self.0
    }
}

impl<'a> Computed<'a> {
    /// # Safety
    /// As for [`Node::new`]; moreover, no thread may be writing to the data of the node or of its sources
    /// during `'a`.
    pub(crate) unsafe fn new(raw: *const sys::ggml_tensor) -> Self {
        // SAFETY: promised by the caller.
        Self(unsafe { Node::new(raw) })
    }

    /// Rows of the result: `dims()[0]` values each, the second dimension running fastest.
    ///
    /// # Errors
    /// [`LlamaError::Data`] if the result is not F32 in main memory with contiguous rows.
    pub fn rows(self) -> Result<impl Iterator<Item = &'a [f32]>, LlamaError> {
        rows(self.0)
    }

    /// Rows of the `index`-th source, as [`Self::rows`]; for a product, source 1 is the input, one row per
    /// token.
    ///
    /// # Errors
    /// As [`Self::rows`], or if there is no such source.
    pub fn source_rows(self, index: usize) -> Result<impl Iterator<Item = &'a [f32]>, LlamaError> {
        let missing = || data_error(self.0, "has too few sources");
        rows(self.0.source(index).ok_or_else(missing)?)
    }
}

impl<'a> Computed<'a> {
    /// Rows of the `index`-th source, which holds whole numbers: which experts each token uses.
    ///
    /// # Errors
    /// [`LlamaError::Data`] if there is no such source, or it is not I32 in main memory with contiguous rows.
    pub fn source_ids(self, index: usize) -> Result<impl Iterator<Item = &'a [i32]>, LlamaError> {
        let missing = || data_error(self.0, "has too few sources");
        let node = self.0.source(index).ok_or_else(missing)?;
        check_readable(node, sys::GGML_TYPE_I32).map_err(|reason| data_error(node, reason))?;
        let tensor = node.tensor();
        let [n, n1, ..] = node.dims();
        let (data, stride): (*const u8, _) = (tensor.data.cast(), tensor.nb[1]);
        // SAFETY: the rows are within the tensor's data, which is I32, aligned, contiguous within a row and in main memory
        // (checked), and not being written.
        Ok((0..n1).map(move |i| unsafe {
            std::slice::from_raw_parts(data.add(i * stride).cast::<i32>(), n)
        }))
    }
}

/// Must only be called for nodes whose data is readable.
fn rows<'a>(node: Node<'a>) -> Result<impl Iterator<Item = &'a [f32]>, LlamaError> {
    let tensor = node.tensor();
    check_readable(node, sys::GGML_TYPE_F32).map_err(|reason| data_error(node, reason))?;
    let [n, n1, n2, n3] = node.dims();
    let [_, nb1, nb2, nb3] = tensor.nb;
    let data: *const u8 = tensor.data.cast();
    let indices =
        (0..n3).flat_map(move |i3| (0..n2).flat_map(move |i2| (0..n1).map(move |i1| (i1, i2, i3))));
    Ok(indices.map(move |(i1, i2, i3)| {
        // SAFETY: the indices are within the tensor's dimensions, so the row lies in its data, which is
        // F32, aligned, contiguous within a row and in main memory (checked), and not being written.
        unsafe {
            let row = data.add(i1 * nb1 + i2 * nb2 + i3 * nb3);
            std::slice::from_raw_parts(row.cast::<f32>(), n)
        }
    }))
}

/// Both types that are read have four bytes.
fn check_readable(node: Node<'_>, ty: sys::ggml_type) -> Result<(), &'static str> {
    let tensor = node.tensor();
    if tensor.type_ != ty || tensor.nb[0] != size_of::<f32>() {
        return Err("of another type, or without contiguous rows");
    }
    let aligned = tensor.data.cast::<f32>().is_aligned()
        && tensor.nb[1..].iter().all(|nb| nb.is_multiple_of(align_of::<f32>()));
    if tensor.data.is_null() || tensor.buffer.is_null() || !aligned {
        return Err("has no aligned data");
    }
    // SAFETY: the buffer of a valid tensor is valid.
    let in_main_memory = unsafe { sys::ggml_backend_buffer_is_host(tensor.buffer) };
    if in_main_memory { Ok(()) } else { Err("is not in main memory: load with 0 GPU layers") }
}

fn data_error(node: Node<'_>, reason: &'static str) -> LlamaError {
    LlamaError::Data { name: node.name().to_owned(), reason }
}
