#!/usr/bin/env bash
# From a fresh checkout to a real model with dictionary-coded FFN weights, in six steps:
#
#   1 tools    cmake, ninja and libclang into .tools
#   2 source   the pinned llama.cpp, checked (or yours: LLAMA_CPP_DIR)
#   3 build    the patched llama.cpp and the workspace; every program into bin
#   4 model    SmolLM2-135M-Instruct and texts into models
#   5 encode   bin/statecells-build: models/smollm2-statecells.gguf
#   6 compare  both models side by side: bytes, memory, perplexity, speed, text
#
# usage: scripts/quickstart.sh [--threads N] [--to STEP | --only STEP] [--skip-eval]
#
#   --threads N   for steps 5 and 6 (default: one per core)
#   --to STEP     stop after this step, by number or name
#   --only STEP   run this step only
#   --skip-eval   leave out step 6
#   --help        this text
#
# Needs a Rust toolchain, git, a C++ compiler and Python 3.10+ with venv and pip, and no root.
# It can be run again at any time: finished work is skipped. The first run takes about 25 minutes
# on 2 cores, most of it for llama.cpp, whose build is kept in $STATECELLS_CACHE_DIR (default
# ~/.cache/statecells).

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

STEPS=(tools source build model encode compare)
CODED=$MODELS_DIR/smollm2-statecells.gguf
REPORT=$RESULTS_DIR/quickstart-build.json
COMPARISON=$RESULTS_DIR/quickstart-compare.json
THREADS=$(nproc)
FIRST=1
LAST=${#STEPS[@]}

# The number of a step given by number or name.
step_number() {
  local i
  for i in "${!STEPS[@]}"; do
    if [[ $1 == "${STEPS[i]}" || $1 == $((i + 1)) ]]; then
      echo $((i + 1))
      return
    fi
  done
  usage_error "no step '$1': use 1 to ${#STEPS[@]} or one of ${STEPS[*]}"
}

parse() {
  while (($# > 0)); do
    case $1 in
      --threads)
        [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || usage_error "--threads needs a number above 0"
        THREADS=$2
        shift
        ;;
      --to)
        LAST=$(step_number "${2:-}")
        shift
        ;;
      --only)
        FIRST=$(step_number "${2:-}")
        LAST=$FIRST
        shift
        ;;
      --skip-eval) if ((LAST == ${#STEPS[@]})); then LAST=$((LAST - 1)); fi ;;
      *) no_options "$1" ;;
    esac
    shift
  done
}

build_all() {
  "$SCRIPTS/build-llama.sh"
  "$SCRIPTS/build-workspace.sh"
}

encode_options() { printf '%s\n' --scheme sections --S 8 --outliers 0.001 --report-json "$REPORT"; }

# What the coded file depends on. The number of threads is not among it.
encode_stamp() {
  { echo "$MODEL_SHA256"; encode_options; sha256_of "$BIN_DIR/statecells-build"; } | sha256_of_stdin
}

# A file of another program or other options is made anew; an interrupted run goes on.
encode() {
  local stamp_file=$MODELS_DIR/.smollm2-statecells.stamp state=() stamp options mode=--force
  [[ -x $BIN_DIR/statecells-build ]] || die "bin/statecells-build is missing; run ./scripts/quickstart.sh --to build"
  stamp=$(encode_stamp)
  if [[ -f $stamp_file ]]; then read -ra state <"$stamp_file"; fi
  if [[ ${state[*]:-} == "done $stamp" && -f $CODED ]]; then
    say "   ${CODED#"$ROOT/"}: already made by this program"
    return
  fi
  if [[ ${state[*]:-} == "begun $stamp" ]]; then mode=--resume; fi
  mkdir -p "$RESULTS_DIR"
  say "begun $stamp" | write_file "$stamp_file"
  mapfile -t options < <(encode_options)
  "$BIN_DIR/statecells-build" -i "$MODELS_DIR/$MODEL_FILE" -o "$CODED" -t "$THREADS" "$mode" "${options[@]}"
  say "done $stamp" | write_file "$stamp_file"
}

compare() {
  [[ -f $CODED ]] || die "${CODED#"$ROOT/"} is missing; run ./scripts/quickstart.sh --to encode"
  python "$SCRIPTS/compare.py" --base "$MODELS_DIR/$MODEL_FILE" --coded "$CODED" \
    --text "$MODELS_DIR/text/evaluation.txt" --threads "$THREADS" --json "$COMPARISON"
  say "   figures and commands: ${COMPARISON#"$ROOT/"}"
}

run_step() {
  local again="then ./scripts/quickstart.sh again: finished work is skipped"
  case ${STEPS[$1 - 1]} in
    tools) step "1 tools: cmake, ninja, libclang into .tools" \
      "read the message above (the network is needed once), $again" "$SCRIPTS/setup-tools.sh" ;;
    source) step "2 source: pinned llama.cpp, checked by sha256" \
      "read the message above (the network is needed once), $again" "$SCRIPTS/fetch-llama.sh" ;;
    build) step "3 build: patched llama.cpp and workspace into bin" \
      "mend what the message above names, $again" build_all ;;
    model) step "4 model: SmolLM2-135M-Instruct and texts into models" \
      "read the message above (the network is needed once), $again" "$SCRIPTS/fetch-model.sh" ;;
    encode) step "5 encode: dictionaries and codes for every FFN matrix" \
      "read the message above, $again" encode ;;
    compare) step "6 compare: base and coded model side by side" \
      "read the message above, then ./scripts/quickstart.sh --only compare" compare ;;
  esac
}

parse "$@"
for ((number = FIRST; number <= LAST; number++)); do run_step "$number"; done
say "finished in $(duration $SECONDS)"
