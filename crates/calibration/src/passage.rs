//! Which contexts are fitted to and which are held out.

/// One context in so many is held out.
pub const HOLD_OUT_EVERY: usize = 10;

/// What the inputs of a context are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PassageKind {
    /// To fit to.
    Fitted,
    /// To measure with.
    HeldOut,
}

/// What context number `index` is for: the middle one of every ten is held out, so that eight contexts have
/// one too.
#[must_use]
pub fn passage_kind(index: usize) -> PassageKind {
    match index % HOLD_OUT_EVERY == HOLD_OUT_EVERY / 2 {
        true => PassageKind::HeldOut,
        false => PassageKind::Fitted,
    }
}
