//! A loaded model and its vocabulary.

use std::ffi::{CString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use ggml::gguf::GgufFile;
use ggml::log;
use ggml_sys as sys;

use crate::{Backend, LlamaError, Token};

/// Bytes that a chat template may put around a message; some put a system's message before.
const LONGEST_FRAME: usize = 4096;

/// A metadata value that replaces the file's.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "each holds the type of the same name")]
pub enum Override {
    Int(i64),
    Float(f64),
    Bool(bool),
    String(String),
}

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct ModelParams {
    /// Number of layers to compute on a GPU; 0 keeps all data readable by observers.
    pub n_gpu_layers: i32,
    /// Whether weights are mapped instead of read.
    pub mmap: bool,
    /// Whether weights of some types are stored a second time, in the order in which this machine's products read them:
    /// they take memory then even where they are mapped, and products are faster.
    pub repack: bool,
    /// Whether only the vocabulary is read: such a model tokenizes, and nothing else.
    pub vocab_only: bool,
    /// Metadata to replace, as `--override-kv` does.
    pub overrides: Vec<(String, Override)>,
}

impl Default for ModelParams {
    fn default() -> Self {
        let overrides = Vec::new();
        Self { n_gpu_layers: 0, mmap: true, repack: true, vocab_only: false, overrides }
    }
}

/// A loaded model.
#[derive(Debug)]
pub struct Model {
    raw: NonNull<sys::llama_model>,
    path: PathBuf,
}

// SAFETY: llama.cpp changes nothing in a model that is loaded, and contexts on several threads may share it; a change that
// the hook makes (a coded weight that runs dense from now on) is an atomic flag.
unsafe impl Sync for Model {}

// SAFETY: nothing of a model belongs to the thread that loaded it.
unsafe impl Send for Model {}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: the pointer came from llama_model_load_from_file and is freed only here; contexts borrow
        // the model, so none is left.
        unsafe { sys::llama_model_free(self.raw.as_ptr()) }
    }
}

impl Model {
    /// Loads the model at `path`, after checking the file as [`GgufFile::open`] does.
    ///
    /// # Errors
    /// [`LlamaError::Gguf`], [`LlamaError::Override`], [`LlamaError::Load`] with llama.cpp's message, or
    /// [`LlamaError::NotDecoder`].
    pub fn load(_: Backend, path: &Path, params: &ModelParams) -> Result<Self, LlamaError> {
        drop(GgufFile::open(path)?);
        let overrides = raw_overrides(&params.overrides)?;
        let refuse = |reason| LlamaError::Load { path: path.to_owned(), reason };
        let c_path = CString::new(path.as_os_str().as_bytes())
            .map_err(|_| refuse("the path holds a NUL character".to_owned()))?;
        // SAFETY: no preconditions.
        let mut raw_params = unsafe { sys::llama_model_default_params() };
        raw_params.n_gpu_layers = params.n_gpu_layers;
        raw_params.load_mode =
            if params.mmap { sys::LLAMA_LOAD_MODE_MMAP } else { sys::LLAMA_LOAD_MODE_NONE };
        raw_params.use_extra_bufts = params.repack;
        raw_params.vocab_only = params.vocab_only;
        raw_params.kv_overrides = overrides.as_ptr();
        let (raw, message) = log::capture(|| {
            // SAFETY: the path ends in NUL, the overrides end in an entry without a key, and llama.cpp
            // copies both before it returns.
            unsafe { sys::llama_model_load_from_file(c_path.as_ptr(), raw_params) }
        });
        let reason = || message.unwrap_or_else(|| "llama.cpp cannot load the model".to_owned());
        let raw = NonNull::new(raw).ok_or_else(|| refuse(reason()))?;
        let model = Self { raw, path: path.to_owned() };
        if model.is_decoder_only() {
            Ok(model)
        } else {
            Err(LlamaError::NotDecoder { path: model.path.clone() })
        }
    }

    fn is_decoder_only(&self) -> bool {
        // SAFETY: the model is loaded.
        unsafe {
            sys::llama_model_has_decoder(self.as_ptr())
                && !sys::llama_model_has_encoder(self.as_ptr())
        }
    }

    /// The path it was loaded from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of layers.
    #[must_use]
    pub fn n_layer(&self) -> usize {
        // SAFETY: the model is loaded.
        to_usize(unsafe { sys::llama_model_n_layer(self.as_ptr()) })
    }

    /// Width of the hidden state.
    #[must_use]
    pub fn n_embd(&self) -> usize {
        // SAFETY: the model is loaded.
        to_usize(unsafe { sys::llama_model_n_embd(self.as_ptr()) })
    }

    /// Number of positions the model was trained for.
    #[must_use]
    pub fn n_ctx_train(&self) -> usize {
        // SAFETY: the model is loaded.
        to_usize(unsafe { sys::llama_model_n_ctx_train(self.as_ptr()) })
    }

    /// Number of tokens in the vocabulary.
    #[must_use]
    pub fn n_vocab(&self) -> usize {
        // SAFETY: the vocabulary belongs to the model.
        to_usize(unsafe { sys::llama_vocab_n_tokens(self.vocab()) })
    }

    /// The token that starts a text, if the model was trained with one.
    #[must_use]
    pub fn bos(&self) -> Option<Token> {
        if !self.has_vocab() {
            return None;
        }
        // SAFETY: the vocabulary belongs to the model and is not empty.
        let (adds, bos) = unsafe {
            (sys::llama_vocab_get_add_bos(self.vocab()), sys::llama_vocab_bos(self.vocab()))
        };
        (adds && bos != sys::LLAMA_TOKEN_NULL).then_some(bos)
    }

    /// The token that texts of the training were divided by: the one that starts a text, or else the one that ends a text;
    /// also where the model itself puts none in front.
    #[must_use]
    pub fn divider(&self) -> Option<Token> {
        if !self.has_vocab() {
            return None;
        }
        // SAFETY: the vocabulary belongs to the model and is not empty.
        let tokens =
            unsafe { [sys::llama_vocab_bos(self.vocab()), sys::llama_vocab_eos(self.vocab())] };
        tokens.into_iter().find(|token| *token != sys::LLAMA_TOKEN_NULL)
    }

    /// The tokens of `text`.
    ///
    /// `add_special` puts the tokens around it that the model was trained with (such as BOS);
    /// `parse_special` reads control tokens such as `<|im_start|>` in the text. The work of some
    /// vocabularies grows faster than the text: give long texts in pieces of about a megabyte.
    ///
    /// # Errors
    /// [`LlamaError::Tokenize`] if the model has no vocabulary or the text is too long.
    pub fn tokenize(
        &self,
        text: &str,
        add_special: bool,
        parse_special: bool,
    ) -> Result<Vec<Token>, LlamaError> {
        if !self.has_vocab() {
            return Err(LlamaError::Tokenize("the model has no vocabulary"));
        }
        let n_text = i32::try_from(text.len())
            .map_err(|_| LlamaError::Tokenize("the text is longer than 2 GB"))?;
        let mut tokens = vec![0; text.len() / 2 + 16];
        loop {
            let n_max =
                i32::try_from(tokens.len()).expect("fewer than a text has bytes, or asked for");
            let (out, text) = (tokens.as_mut_ptr(), text.as_ptr().cast::<c_char>());
            let vocab = self.vocab();
            // SAFETY: the text has `n_text` bytes, and llama.cpp writes at most `n_max` tokens.
            let n = unsafe {
                sys::llama_tokenize(vocab, text, n_text, out, n_max, add_special, parse_special)
            };
            if let Ok(n) = usize::try_from(n) {
                tokens.truncate(n);
                return Ok(tokens);
            }
            // Too few: the number needed comes back negative; the least number means too many for C.
            let needed = n.checked_neg().ok_or(LlamaError::Tokenize("more than 2^31 tokens"))?;
            tokens.resize(to_usize(needed), 0);
        }
    }

    /// What a conversation with the model begins with, up to where a user speaks, such as `<|im_start|>user\n`: from the
    /// chat template of the file, if the file has one and llama.cpp knows that form.
    #[must_use]
    pub fn before_user(&self) -> Option<String> {
        // SAFETY: the model is loaded, and without a name its standard template is asked for.
        let template = unsafe { sys::llama_model_chat_template(self.as_ptr(), std::ptr::null()) };
        if template.is_null() {
            return None;
        }
        let (role, content) = (c"user", c"{message}");
        let message = sys::llama_chat_message { role: role.as_ptr(), content: content.as_ptr() };
        let mut text = vec![0u8; LONGEST_FRAME];
        let (out, n_max) = (text.as_mut_ptr().cast::<c_char>(), LONGEST_FRAME as i32);
        // SAFETY: the template ends in NUL and lives as long as the model, so do role and content of the one message, and
        // llama.cpp writes at most `n_max` bytes.
        let n = unsafe {
            sys::llama_chat_apply_template(template, &raw const message, 1, false, out, n_max)
        };
        // Negative for a form that llama.cpp does not know; more than there is room for if the end is missing.
        text.truncate(usize::try_from(n).ok().filter(|n| *n <= LONGEST_FRAME)?);
        let text = String::from_utf8(text).ok()?;
        let (before, _) = text.split_once(content.to_str().ok()?)?;
        (!before.trim().is_empty()).then(|| before.to_owned())
    }

    fn has_vocab(&self) -> bool {
        // SAFETY: the vocabulary belongs to the model.
        unsafe { sys::llama_vocab_type(self.vocab()) != sys::LLAMA_VOCAB_TYPE_NONE }
    }

    fn vocab(&self) -> *const sys::llama_vocab {
        // SAFETY: the model is loaded.
        unsafe { sys::llama_model_get_vocab(self.as_ptr()) }
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::llama_model {
        self.raw.as_ptr()
    }
}

fn to_usize(n: i32) -> usize {
    usize::try_from(n).unwrap_or(0)
}

/// The overrides in C's form, ended by an entry without a key.
fn raw_overrides(
    overrides: &[(String, Override)],
) -> Result<Vec<sys::llama_model_kv_override>, LlamaError> {
    // SAFETY: numbers and arrays of characters, for all of which zeros are valid.
    let end: sys::llama_model_kv_override = unsafe { std::mem::zeroed() };
    let mut list = Vec::with_capacity(overrides.len() + 1);
    for (key, value) in overrides {
        let refuse = |reason| LlamaError::Override { key: key.clone(), reason };
        let mut raw = end;
        copy_text(key, &mut raw.key).map_err(refuse)?;
        if key.is_empty() {
            return Err(refuse("the key is empty"));
        }
        match value {
            Override::Int(v) => {
                raw.tag = sys::LLAMA_KV_OVERRIDE_TYPE_INT;
                raw.__bindgen_anon_1.val_i64 = *v;
            }
            Override::Float(v) => {
                raw.tag = sys::LLAMA_KV_OVERRIDE_TYPE_FLOAT;
                raw.__bindgen_anon_1.val_f64 = *v;
            }
            Override::Bool(v) => {
                raw.tag = sys::LLAMA_KV_OVERRIDE_TYPE_BOOL;
                raw.__bindgen_anon_1.val_bool = *v;
            }
            Override::String(v) => {
                raw.tag = sys::LLAMA_KV_OVERRIDE_TYPE_STR;
                let mut text = [0; 128];
                copy_text(v, &mut text).map_err(refuse)?;
                raw.__bindgen_anon_1.val_str = text;
            }
        }
        list.push(raw);
    }
    list.push(end);
    Ok(list)
}

/// Copies `text` with the NUL that ends it.
fn copy_text(text: &str, out: &mut [c_char; 128]) -> Result<(), &'static str> {
    if text.len() >= out.len() || text.contains('\0') {
        return Err("texts must be shorter than 128 bytes and hold no NUL");
    }
    for (out, &byte) in out.iter_mut().zip(text.as_bytes()) {
        *out = byte as c_char;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_end_with_an_empty_key() {
        let list = raw_overrides(&[("statecells.enable".into(), Override::Bool(true))]).unwrap();
        assert_eq!((list.len(), list[1].key[0]), (2, 0));
        // SAFETY: the tag says that the value is a bool.
        assert!(unsafe { list[0].__bindgen_anon_1.val_bool });
    }

    #[test]
    fn overrides_that_do_not_fit_are_refused() {
        for key in ["", "a\0b", &"k".repeat(128)] {
            assert!(raw_overrides(&[(key.to_owned(), Override::Int(1))]).is_err());
        }
        let long = Override::String("v".repeat(128));
        assert!(raw_overrides(&[("k".to_owned(), long)]).is_err());
    }
}
