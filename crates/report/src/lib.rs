//! Self-contained pages with pictures, for every program that reports on a model.
//!
//! [`Page`] is one HTML file without anything from outside: light and dark as the reader's system is, readable
//! on a phone and on a wide screen. The parts of a page are [`maud`] markup, made by [`elements`]; pictures
//! are made by [`plot`], each in a narrow and a wide form with letters of the same size.
#![forbid(unsafe_code)]

pub mod elements;
mod page;
pub mod plot;

pub use maud;
pub use page::Page;
