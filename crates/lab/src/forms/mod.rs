//! Runs many SeedDelta forms of one model and asks what would have foretold their loss.
//!
//! - [`texts`]: what models are measured on: answers of the tiny transformer's tasks, or plain text;
//! - [`trace`]: inputs of every FFN and the size of the hidden state, from one pass of the dense model;
//! - [`cost`]: the error of a coded file by layer, and `stack_cost`, from the file and a trace alone;
//! - [`measure`]: loss, exact answers and greedy pack of a file that llama.cpp runs;
//! - [`stats`]: rank correlation with confidence, thresholds;
//! - [`plan`]: which forms are tried;
//! - [`mod@bench`]: one form from the policy to its measured loss;
//! - [`auto`]: the policy that lets nothing through which costs anything;
//! - [`findings`]: what all runs together say;
//! - [`mod@report`], [`page`]: the report as data and as a page;
//! - [`flags`]: what programs ask their users for.
//!
//! # stack_cost
//! For a coded layer l let `e_l(x) = FFN^_l(x) - FFN_l(x)` on the inputs x that FFN l has in the *dense* model. The
//! residual stream carries it to the end, and errors of different layers are taken to be uncorrelated:
//!
//! `stack_cost = sqrt(sum over coded layers of E|e_l|^2 / E|h_L|^2)`
//!
//! with `h_L` the dense model's hidden state behind the last layer. It is the relative error that this state would
//! have if later layers passed an error on as it is, neither damped nor amplified. Nothing but the file and
//! calibration activations enters, so it can be worked out before the file ever runs.

pub mod auto;
pub mod bench;
pub mod cost;
mod error;
pub mod findings;
pub mod flags;
pub mod measure;
pub mod page;
pub mod plan;
pub mod report;
pub mod stats;
pub mod texts;
pub mod trace;

pub use error::Error;
