//! The schemes as a build sees them: each codec with its parameters as a [`crate::Method`], behind a feature of its own, so
//! that a program compiles what it offers and nothing else.

#[cfg(feature = "dictionary")]
pub mod dictionary;
#[cfg(feature = "sections")]
pub mod sections;
#[cfg(feature = "seeddelta")]
pub mod seeddelta;
