//! What every program shares: files that appear when they are complete, tables, progress, requests to stop, messages.
//!
//! Nothing here knows models, codes or builds, apart from the names by which users select matrices.

mod bus_error;
mod error;
pub mod files;
pub mod flags;
mod interrupt;
pub mod machine;
pub mod outputs;
mod printable;
pub mod progress;
mod schema;
mod selection;
pub mod table;

pub use bus_error::explain_bus_errors;
pub use error::{Error, hint, io};
pub use interrupt::{EXIT_INTERRUPTED, Interrupt, conclude};
pub use machine::{keep_freed_memory, memory_bytes};
pub use printable::printable;
pub use progress::Reporter;
pub use schema::check_schema;
pub use selection::{LayerList, Selection};
