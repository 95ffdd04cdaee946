#!/usr/bin/env bash
# Makes docs/results/schemes.md: SmolLM2 coded with every scheme, good and ruinous settings, each evaluated.
#
# usage: scripts/make-results.sh [--calib FILE --text FILE] [--chunks N] [--threads N] [--only NAME] [--speed]
#
#   --calib FILE  by statecells-calib (default: that of the quickstart, which is a quarter of the usual size)
#   --text FILE   to measure on, none of what was calibrated on (default: that of the quickstart)
#   --chunks N    of 512 tokens (default 32)
#   --threads N   default: one per core
#   --only NAME   build and evaluate this one; the page is left alone
#   --speed       measure speeds too, on an idle machine
#   --help        this text
#
# Without --calib and --text it needs ./scripts/quickstart.sh --to calibrate first. Models and reports are kept in
# results/schemes; finished work is used again. Takes about an hour on an idle machine with 2 cores.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Name and what it is built with. CALIBRATION stands for that file.
SCHEMES=(
  "sections-8|--S 8 --calib CALIBRATION"
  "sections-7-tuned|--S 7 --calib CALIBRATION --tune 60"
  "row-scale-layers-0-1|--scheme sign+row_scale --layers 0-1"
  "vals-layers-0-1|--scheme sign+vals --layers 0-1"
  "sign-layers-0-1|--scheme sign --layers 0-1"
  "smoke-M256-k16|--scheme sign+row_scale --dict-M 256 --dict-k 16 --layers 0-1"
)

BASE=$MODELS_DIR/$MODEL_FILE
CALIBRATION=$MODELS_DIR/smollm2-calibration.gguf
TEXT=$MODELS_DIR/text/evaluation.txt
FOLDER=$RESULTS_DIR/schemes
PAGE=$ROOT/docs/results/schemes.md
CHUNKS=32
THREADS=$(nproc)
ONLY=
SKIP=speed,whole

# What FFN matrices of this model can have; where one does not fit a shape, llama-quantize falls back.
AGAINST=Q2_K,Q3_K_M,Q4_0,IQ4_NL,Q4_K_M,Q5_0,Q5_K_M,Q6_K,Q8_0

number_of() { [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || usage_error "$1 needs a number above 0"; }

parse() {
  while (($# > 0)); do
    case $1 in
      --chunks) number_of "$@" && CHUNKS=$2 && shift ;;
      --threads) number_of "$@" && THREADS=$2 && shift ;;
      --calib) [[ -f ${2:-} ]] || usage_error "--calib needs a file" && CALIBRATION=$(realpath "$2") && shift ;;
      --text) [[ -f ${2:-} ]] || usage_error "--text needs a file" && TEXT=$(realpath "$2") && shift ;;
      --only) [[ -n ${2:-} ]] || usage_error "--only needs a name" && ONLY=$2 && shift ;;
      --speed) SKIP=whole ;;
      *) no_options "$1" ;;
    esac
    shift
  done
}

# build NAME FLAG...
build() {
  local name=$1 flags=("${@:2}")
  local stamp=$FOLDER/.$name.stamp wanted
  wanted=$({ say "${flags[*]}" && sha256_of "$BIN_DIR/statecells-build" && sha256_of "$BASE" && sha256_of "$CALIBRATION"; } | sha256_of_stdin)
  if [[ -f $FOLDER/$name.gguf && -f $stamp && $(<"$stamp") == "$wanted" ]]; then
    say "   $name: already built"
    return
  fi
  quietly "$FOLDER/$name.build.log" "$BIN_DIR/statecells-build" -i "$BASE" -o "$FOLDER/$name.gguf" -t "$THREADS" --force "${flags[@]}"
  say "$wanted" | write_file "$stamp"
}

# evaluate NAME: a rule that fails is a result like any other.
evaluate() {
  local code=0
  "$BIN_DIR/statecells-eval" --base "$BASE" --sc "$FOLDER/$1.gguf" --text "$TEXT" --outdir "$FOLDER/$1" \
    --cache "$FOLDER/cache" --keep-variants --against "$AGAINST" --skip "$SKIP" \
    --chunks "$CHUNKS" -t "$THREADS" || code=$?
  ((code == 0 || code == 3)) || die "the evaluation of $1 failed; see above"
}

main() {
  parse "$@"
  local program entry name flags reports=()
  for program in statecells-build statecells-eval llama-perplexity; do
    [[ -x $BIN_DIR/$program ]] || die "bin/$program is missing; run ./scripts/quickstart.sh --to build"
  done
  [[ -f $CALIBRATION && -f $TEXT ]] || die "the calibration is missing; run ./scripts/quickstart.sh --to calibrate"
  mkdir -p "$FOLDER"
  for entry in "${SCHEMES[@]}"; do
    name=${entry%%|*}
    if [[ -n $ONLY && $name != "$ONLY" ]]; then continue; fi
    read -ra flags <<<"${entry#*|}"
    step "$name" "read the message above, then the same command again: finished work is used again" \
      one "$name" "${flags[@]/CALIBRATION/$CALIBRATION}"
    reports+=("$FOLDER/$name/report.json")
  done
  ((${#reports[@]} > 0)) || usage_error "no scheme '$ONLY'"
  if [[ -z $ONLY ]]; then
    python "$SCRIPTS/schemes_page.py" "${SCHEMES[@]//CALIBRATION/${CALIBRATION#"$ROOT/"}}" -- "${reports[@]}" | write_file "$PAGE"
    say "   ${PAGE#"$ROOT/"}"
  fi
}

one() {
  build "$@"
  evaluate "$1"
}

main "$@"
