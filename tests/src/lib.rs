//! What the end-to-end tests share: where the programs and models are, and how to run them.
