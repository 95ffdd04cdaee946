//! Memory that a thread keeps from call to call.

/// Working memory of one thread. It grows to what the largest product needs and is then reused, so
/// that evaluating a model does not allocate. What it holds between calls does not matter.
#[derive(Debug, Default)]
pub struct Scratch {
    floats: Vec<f32>,
}

impl Scratch {
    /// Empty; allocates nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { floats: Vec::new() }
    }

    /// At least 64-byte aligned slice of `n` floats with arbitrary contents.
    pub(crate) fn floats(&mut self, n: usize) -> &mut [f32] {
        const LINE: usize = 64 / size_of::<f32>();
        if self.floats.len() < n + LINE {
            self.floats.resize(n + LINE, 0.0);
        }
        // A table row of 16 tokens is then one cache line, not two halves.
        let skip = self.floats.as_ptr().align_offset(64).min(LINE);
        &mut self.floats[skip..skip + n]
    }

    /// 64-byte aligned slice of `n` bytes with arbitrary contents; `n` is a multiple of 4.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    pub(crate) fn bytes(&mut self, n: usize) -> &mut [u8] {
        let floats = self.floats(n / size_of::<f32>());
        // SAFETY: floats are bytes without gaps, any bytes are floats, and the borrow goes over to the result.
        unsafe { std::slice::from_raw_parts_mut(floats.as_mut_ptr().cast(), size_of_val(floats)) }
    }
}
