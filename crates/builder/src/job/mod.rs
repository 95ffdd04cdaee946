//! A build as a program asks for it: the request, what it starts from, the steps, and the way through them.

mod request;
mod run;
mod session;
mod start;

pub use request::Job;

/// Sets the number of threads of rayon.
pub(crate) fn use_threads(n: usize) {
    // An error means that the pool exists already, as in a test that runs several jobs.
    let _ = rayon::ThreadPoolBuilder::new().num_threads(n).build_global();
}
