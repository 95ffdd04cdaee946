#!/usr/bin/env bash
# From a fresh checkout to a real model with dictionary-coded FFN weights, in seven steps:
#
#   1 tools      cmake, ninja and libclang into .tools
#   2 source     the pinned llama.cpp, checked (or yours: LLAMA_CPP_DIR)
#   3 build      the patched llama.cpp and the workspace; every program into bin
#   4 model      SmolLM2-135M-Instruct and texts into models
#   5 calibrate  bin/statecells-calib: what the FFN matrices see on the calibration text
#   6 encode     bin/statecells-build: models/smollm2-statecells.gguf
#   7 compare    both models and Q5_K_M's FFN side by side: bytes, memory, perplexity, speed, prompts
#
# usage: scripts/quickstart.sh [--threads N] [--to STEP | --only STEP] [--skip-eval]
#
#   --threads N   for steps 5 to 7 (default: one per core)
#   --to STEP     stop after this step, by number or name
#   --only STEP   run this step only
#   --skip-eval   leave out step 7
#   --help        this text
#
# Needs a Rust toolchain, git, a C++ compiler and Python 3.10+ with venv and pip, and no root.
# It can be run again at any time: finished work is skipped. The first run takes about half an hour
# on 2 cores, a third of it for llama.cpp, whose build is kept in $STATECELLS_CACHE_DIR (default
# ~/.cache/statecells).

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

STEPS=(tools source build model calibrate encode compare)
CALIBRATION=$MODELS_DIR/smollm2-calibration.gguf
CODED=$MODELS_DIR/smollm2-statecells.gguf
REPORT=$RESULTS_DIR/quickstart-build.json
COMPARISON=$RESULTS_DIR/quickstart
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
        number_of "$@"
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

# A quarter of what statecells-calib takes by default: enough for this model, and a quarter of the time.
calibrate_options() { printf '%s\n' --tokens 32768; }
encode_options() {
  printf '%s\n' --S 8 --sequential 1 --calib "$CALIBRATION" --report-json "$REPORT"
}

# What the outputs depend on. The number of threads is not among it.
calibrate_inputs() {
  {
    echo "$MODEL_SHA256"
    calibrate_options
    sha256_of "$BIN_DIR/statecells-calib"
    sha256_of "$MODELS_DIR/text/calibration.txt"
  } | sha256_of_stdin
}
encode_inputs() {
  { calibrate_inputs && encode_options && sha256_of "$BIN_DIR/statecells-build"; } | sha256_of_stdin
}

need_program() {
  [[ -x $BIN_DIR/$1 ]] || die "bin/$1 is missing; run ./scripts/quickstart.sh --to build"
}

# make_once FILE INPUTS COMMAND...
make_once() { once "${1#"$ROOT/"}" "$MODELS_DIR/.$(basename "$1" .gguf).stamp" "$2" "$1" -- "${@:3}"; }

run_calib() {
  local options
  mapfile -t options < <(calibrate_options)
  "$BIN_DIR/statecells-calib" -m "$MODELS_DIR/$MODEL_FILE" -f "$MODELS_DIR/text/calibration.txt" \
    -o "$CALIBRATION" -t "$THREADS" --force "${options[@]}"
}

calibrate() {
  local inputs
  need_program statecells-calib
  inputs=$(calibrate_inputs)
  make_once "$CALIBRATION" "$inputs" run_calib
}

# A file of another program or other options is made anew; an interrupted run goes on.
run_build() {
  local options mode=--force
  if [[ -n $GOES_ON ]]; then mode=--resume; fi
  mkdir -p "$RESULTS_DIR"
  mapfile -t options < <(encode_options)
  "$BIN_DIR/statecells-build" -i "$MODELS_DIR/$MODEL_FILE" -o "$CODED" -t "$THREADS" "$mode" "${options[@]}"
}

encode() {
  local inputs
  need_program statecells-build
  [[ -f $CALIBRATION ]] || die "${CALIBRATION#"$ROOT/"} is missing; run ./scripts/quickstart.sh --to calibrate"
  inputs=$(encode_inputs)
  make_once "$CODED" "$inputs" run_build
}

# A rule that fails is a result like any other.
compare() {
  local code=0
  need_program statecells-eval
  [[ -f $CODED ]] || die "${CODED#"$ROOT/"} is missing; run ./scripts/quickstart.sh --to encode"
  "$BIN_DIR/statecells-eval" --base "$MODELS_DIR/$MODEL_FILE" --sc "$CODED" --text "$MODELS_DIR/text/evaluation.txt" \
    --outdir "$COMPARISON" --against Q5_K_M --skip whole --resume -t "$THREADS" || code=$?
  ((code == 0 || code == 3)) || return "$code"
  say "   pictures, figures and commands: ${COMPARISON#"$ROOT/"}/report.html"
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
    calibrate) step "5 calibrate: what the FFN matrices see on the calibration text" \
      "read the message above, $again" calibrate ;;
    encode) step "6 encode: dictionaries and codes for every FFN matrix" \
      "read the message above, $again" encode ;;
    compare) step "7 compare: base and coded model side by side" \
      "read the message above, then ./scripts/quickstart.sh --only compare" compare ;;
  esac
}

parse "$@"
for ((number = FIRST; number <= LAST; number++)); do run_step "$number"; done
say "finished in $(duration $SECONDS)"
