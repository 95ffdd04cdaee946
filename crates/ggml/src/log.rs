//! ggml's log: kept off stderr, and read back to say why a call failed.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::sync::Once;

thread_local! {
    /// Error lines of the call being captured on this thread; `None` while nothing is captured.
    static LINES: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Sends ggml's messages here instead of to stderr. Only the first call does anything.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    // SAFETY: `receive` is a static function, may be called from any thread and needs no user data.
    INSTALLED.call_once(|| unsafe { ggml_sys::ggml_log_set(Some(receive), std::ptr::null_mut()) });
}

/// Runs `f` and returns what it returned, with the first error line that ggml logged meanwhile on this
/// thread. ggml logs the cause first and then what could not be done because of it.
pub fn capture<R>(f: impl FnOnce() -> R) -> (R, Option<String>) {
    install();
    let outer = LINES.replace(Some(Vec::new()));
    let result = f();
    let lines = LINES.replace(outer).unwrap_or_default();
    (result, lines.first().map(|line| first_sentence(line)))
}

/// The first line without the function's name: `key 'x' is bad` for `gguf_init_from_reader: key 'x' is bad`.
fn first_sentence(message: &str) -> String {
    let line = message.trim().lines().next().unwrap_or_default();
    let is_name = |s: &str| s.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    match line.split_once(": ") {
        Some((name, rest)) if is_name(name) => rest.to_owned(),
        _ => line.to_owned(),
    }
}

/// What ggml calls with every message: the function to hand to `ggml_log_set` or `llama_log_set`.
///
/// # Safety
/// `text` is null or ends in NUL and stays valid during the call.
pub unsafe extern "C" fn receive(
    level: ggml_sys::ggml_log_level,
    text: *const c_char,
    _: *mut c_void,
) {
    if text.is_null() || level != ggml_sys::GGML_LOG_LEVEL_ERROR {
        return;
    }
    // SAFETY: ggml passes a string that ends in NUL and stays valid during the call.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    // Neither a thread that is ending nor a message during a borrow is worth a panic in a C callback.
    let _ = LINES.try_with(|lines| {
        if let Ok(mut lines) = lines.try_borrow_mut()
            && let Some(lines) = lines.as_mut()
        {
            lines.push(text.into_owned());
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(level: ggml_sys::ggml_log_level, text: &CStr) {
        // SAFETY: a valid string, as ggml would pass.
        unsafe { receive(level, text.as_ptr(), std::ptr::null_mut()) };
    }

    #[test]
    fn the_first_error_is_kept_without_the_function_name() {
        let ((), line) = capture(|| {
            log(ggml_sys::GGML_LOG_LEVEL_INFO, c"f: just so you know\n");
            log(ggml_sys::GGML_LOG_LEVEL_ERROR, c"f: cause: bad\nmore\n");
            log(ggml_sys::GGML_LOG_LEVEL_ERROR, c"g: consequence\n");
        });
        assert_eq!(line.as_deref(), Some("cause: bad"));
    }

    #[test]
    fn captures_nest_and_end() {
        let (inner, outer) = capture(|| capture(|| log(ggml_sys::GGML_LOG_LEVEL_ERROR, c"x")).1);
        assert_eq!((inner.as_deref(), outer), (Some("x"), None));
        log(ggml_sys::GGML_LOG_LEVEL_ERROR, c"nobody listens");
        assert_eq!(capture(|| ()).1, None);
    }
}
