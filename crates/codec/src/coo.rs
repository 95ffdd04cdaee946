//! Sparse corrections in coordinate form.
