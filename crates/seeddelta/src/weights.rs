//! What an error of single weights costs while a base is fitted.

/// Weights of the squared error: `sum_ri h_i (W - g_r W0)[r, i]^2`.
#[derive(Clone, Copy, Default)]
pub(crate) struct Weights<'a> {
    /// h, `[d_in]`; 1 if absent.
    pub(crate) importance: Option<&'a [f32]>,
    /// g, `[d_out]`; 1 if absent.
    pub(crate) gains: Option<&'a [f32]>,
}

impl<'a> Weights<'a> {
    pub(crate) fn mean(self) -> Mean<'a> {
        Mean { weights: self, weighted: (0.0, 0.0), plain: (0.0, 0.0) }
    }

    fn gain(&self, row: usize) -> f64 {
        self.gains.map_or(1.0, |g| f64::from(g[row]))
    }

    /// 1 / g, or 0 for a row that the gain switches off, where any base is as good.
    pub(crate) fn inverse_gain(&self, row: usize) -> f32 {
        match self.gain(row) {
            0.0 => 0.0,
            gain => gain.recip() as f32,
        }
    }
}

/// The value c that is nearest to many weights at once: `sum g h w / sum g^2 h`.
#[derive(Clone, Copy)]
pub(crate) struct Mean<'a> {
    weights: Weights<'a>,
    weighted: (f64, f64),
    plain: (f64, f64),
}

impl Mean<'_> {
    pub(crate) fn add(&mut self, row: usize, column: usize, w: f32) {
        let (g, w) = (self.weights.gain(row), f64::from(w));
        let h = self.weights.importance.map_or(1.0, |h| f64::from(h[column]));
        self.weighted.0 += g * h * w;
        self.weighted.1 += g * g * h;
        self.plain.0 += g * w;
        self.plain.1 += g * g;
    }

    /// Where no weight counts (h = 0 throughout), the plain mean is as good as any other value.
    pub(crate) fn value(&self) -> f32 {
        let (sum, weight) = if self.weighted.1 > 0.0 { self.weighted } else { self.plain };
        if weight > 0.0 { (sum / weight) as f32 } else { 0.0 }
    }
}
