//! A build as a program asks for it: the request, what it starts from, the steps, and the way through them.

mod request;
mod run;
mod session;
mod start;

pub use request::Job;
