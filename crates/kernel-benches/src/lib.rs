//! Nothing but benchmarks: `cargo bench --package kernel-benches`. They stand apart from the kernels, whose tests are
//! compiled for other processors as well, where criterion's C sources would need a compiler of their own.
#![forbid(unsafe_code)]
