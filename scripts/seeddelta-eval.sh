#!/usr/bin/env bash
# Harness B: trains the tiny transformer, checks its answers, and tries SeedDelta forms of it.
#
# usage: scripts/seeddelta-eval.sh [--short] [--model FILE --text FILE --calib-text FILE]
#
#   --short             six layers and few forms instead of all runs
#   --model FILE        a GGUF of the llama kind instead of the tiny transformer, measured on plain text,
#   --text FILE         on this one, and
#   --calib-text FILE   foretold from this one
#   --help              this text
#
# Data, weights and checkpoint are kept in models/tiny and made once (the training takes up to an hour
# on 2 cores; a stopped one goes on where it was). Reports appear in models/seeddelta/NAME. Ends with 3
# if the tiny transformer misses its aims or the strict policy collapses. Needs the programs in bin:
# scripts/build-llama.sh and scripts/build-workspace.sh.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

TINY=$MODELS_DIR/tiny
SWEEP=()
MODEL=
TEXT=
CALIB=

train() {
  local resume=()
  if [[ -f $TINY/tiny.gguf ]]; then
    say "   already trained"
    return
  fi
  "$BIN_DIR/tiny-transformer" data -o "$TINY"
  if [[ -f $TINY/tiny.gguf.checkpoint ]]; then resume=(--resume); fi
  "$BIN_DIR/tiny-transformer" train -d "$TINY" -o "$TINY/tiny.gguf" "${resume[@]}"
}

accuracy() { python "$SCRIPTS/tiny_accuracy.py" "$TINY/tiny.gguf" "$TINY/test.jsonl" "$TINY/accuracy.json"; }

sweep_tiny() {
  "$BIN_DIR/seeddelta-eval" -m "$TINY/tiny.gguf" --examples "$TINY" -o "$MODELS_DIR/seeddelta/tiny" "${SWEEP[@]}"
}

sweep_text() {
  local name=${MODEL##*/}
  "$BIN_DIR/seeddelta-eval" -m "$MODEL" --text "$TEXT" --calib-text "$CALIB" \
    -o "$MODELS_DIR/seeddelta/${name%.gguf}" "${SWEEP[@]}"
}

while (($# > 0)); do
  case $1 in
    --short) SWEEP=(--short) ;;
    --model) MODEL=${2:-} && shift ;;
    --text) TEXT=${2:-} && shift ;;
    --calib-text) CALIB=${2:-} && shift ;;
    *) no_options "$@" ;;
  esac
  shift
done
again="mend what the message above names, then run this again: finished work is kept"
if [[ -n $MODEL ]]; then
  [[ -n $TEXT && -n $CALIB ]] || usage_error "--model needs --text and --calib-text"
  step "sweep" "$again" sweep_text
else
  step "tiny transformer" "$again" train
  step "its answers by llama-completion" "$again" accuracy
  step "sweep" "$again" sweep_tiny
fi
