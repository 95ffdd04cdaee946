//! What every reader has to do with a bad file.

use std::path::Path;

use crate::{Case, memory};

/// Gives every case to `read` as a file in `folder`, after `good`, which must be taken: what a reader prepares the first
/// time it is used does not count. A bad file must be refused with one line that says what the case
/// expects, and with no more memory than the file's size and [`memory::CONSTANT`].
///
/// # Panics
/// With the names of all cases for which that is not so.
pub fn all_refused(
    folder: &Path,
    good: &[u8],
    cases: &[Case],
    read: impl Fn(&Path) -> Result<(), Box<dyn std::error::Error>>,
) {
    assert!(!cases.is_empty());
    let path = folder.join("bad.gguf");
    std::fs::write(&path, good).expect("a writable folder");
    read(&path).expect("the file that the bad ones were made from");
    // Threads that it started may still be about to reserve their stacks and heaps.
    rayon::broadcast(|_| drop(std::hint::black_box(vec![0u8; 64])));
    let mut faults = Vec::new();
    for case in cases {
        println!("{}", case.name);
        std::fs::write(&path, &case.bytes).expect("a writable folder");
        // The file is mapped, and may be copied once.
        let room = 2 * case.bytes.len() as u64 + memory::CONSTANT;
        let said = match memory::limited(room, || read(&path).map_err(|e| e.to_string())) {
            Ok(()) => "nothing".to_owned(),
            Err(said) => said,
        };
        if let Some(fault) = fault(case, &said) {
            faults.push(fault);
        }
    }
    assert!(faults.is_empty(), "{} of {}:\n{}", faults.len(), cases.len(), faults.join("\n"));
}

/// What is wrong with refusing `case` by `said`.
#[must_use]
pub fn fault(case: &Case, said: &str) -> Option<String> {
    let complete = case.says.iter().all(|part| said.contains(part));
    let one_line = said.lines().count() == 1 && !said.contains(char::is_control);
    (!complete || !one_line)
        .then(|| format!("{}: expected one line with {:?}, got: {said:?}", case.name, case.says))
}
