#!/usr/bin/env bash
# Makes docs/results/schemes.md: SmolLM2 coded with every scheme, good and ruinous settings, each evaluated.
# With --sizes, a model coded at several sizes instead, with pictures of what each size costs.
#
# usage: scripts/make-results.sh [--calib FILE --text FILE] [--chunks N] [--threads N] [--only NAME] [--speed]
#        scripts/make-results.sh --sizes S,S,... [--sequential N] [--tune STEPS] [--model FILE] [--folder DIR] [--ctx N] [as above]
#
#   --sizes LIST    numbers of sections, such as 4,5,6,7,8; ends with statecells-eval --compare over them
#   --sequential N  build each size with that flag of statecells-build
#   --tune STEPS    tune each size for so many steps as well
#   --model FILE    another model, with its own --calib, --text and --folder
#   --folder DIR    for models and reports (default: results/schemes)
#   --ctx N         tokens per chunk (default 512)
#   --against LIST  types to compare with (default: those that SmolLM2's shapes can have)
#   --calib FILE    by statecells-calib (default: that of the quickstart, which is a quarter of the usual size)
#   --text FILE     to measure on, none of what was calibrated on (default: that of the quickstart)
#   --chunks N      of 512 tokens (default 32)
#   --threads N     default: one per core
#   --only NAME     build and evaluate this one; the page is left alone
#   --speed         measure speeds too, on an idle machine
#   --help          this text
#
# Without --calib and --text it needs ./scripts/quickstart.sh --to calibrate first. Models and reports are kept in
# the folder; finished work is used again. Takes about two hours on an idle machine with 2 cores.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Name and what it is built with. CALIBRATION stands for that file.
SCHEMES=(
  "sections-8|--S 8 --calib CALIBRATION"
  "sections-7-tuned|--S 7 --calib CALIBRATION --tune 60"
  "sections-6-tuned|--S 6 --calib CALIBRATION --tune 160 --tune-rate 0.0015"
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
# Divergence by size of the sections among them.
PICTURE=$ROOT/docs/pictures/divergence.svg
CHUNKS=32
CTX=512
THREADS=$(nproc)
ONLY=
SIZES=
TUNE=
SEQUENTIAL=
SKIP=speed,whole

# What FFN matrices of this model can have; where one does not fit a shape, llama-quantize falls back.
AGAINST=Q2_K,Q3_K_M,Q4_0,IQ4_NL,Q4_K_M,Q5_0,Q5_K_M,Q6_K,Q8_0

parse() {
  while (($# > 0)); do
    case $1 in
      --chunks) number_of "$@" && CHUNKS=$2 && shift ;;
      --threads) number_of "$@" && THREADS=$2 && shift ;;
      --calib) [[ -f ${2:-} ]] || usage_error "--calib needs a file" && CALIBRATION=$(realpath "$2") && shift ;;
      --text) [[ -f ${2:-} ]] || usage_error "--text needs a file" && TEXT=$(realpath "$2") && shift ;;
      --only) [[ -n ${2:-} ]] || usage_error "--only needs a name" && ONLY=$2 && shift ;;
      --speed) SKIP=whole ;;
      --sizes) [[ ${2:-} =~ ^[1-9][0-9]?(,[1-9][0-9]?)*$ ]] || usage_error "--sizes needs a list such as 6,7,8" && SIZES=$2 && shift ;;
      --tune) number_of "$@" && TUNE=$2 && shift ;;
      --sequential) number_of "$@" && SEQUENTIAL=$2 && shift ;;
      --ctx) number_of "$@" && CTX=$2 && shift ;;
      --against) [[ -n ${2:-} ]] || usage_error "--against needs a list" && AGAINST=$2 && shift ;;
      --model) [[ -f ${2:-} ]] || usage_error "--model needs a file" && BASE=$(realpath "$2") && shift ;;
      --folder) [[ -n ${2:-} ]] || usage_error "--folder needs a name" && FOLDER=$(realpath -m "$2") && shift ;;
      *) no_options "$1" ;;
    esac
    shift
  done
  if [[ -n $SIZES ]]; then
    list_sizes
  elif [[ -n $TUNE || -n $SEQUENTIAL || $BASE != "$MODELS_DIR/$MODEL_FILE" ]]; then
    usage_error "--sequential, --tune and --model go with --sizes"
  fi
}

list_sizes() {
  local size flags sizes=()
  IFS=, read -ra sizes <<<"$SIZES"
  SCHEMES=()
  for size in "${sizes[@]}"; do
    flags="--S $size --calib CALIBRATION${SEQUENTIAL:+ --sequential $SEQUENTIAL}"
    SCHEMES+=("S-$size|$flags")
    if [[ -n $TUNE ]]; then SCHEMES+=("S-$size-tuned|$flags --tune $TUNE"); fi
  done
}

# build NAME FLAG...
build() {
  local name=$1 flags=("${@:2}") inputs
  inputs=$({ say "${flags[*]}" && sha256_of "$BIN_DIR/statecells-build" && sha256_of "$BASE" && sha256_of "$CALIBRATION"; } | sha256_of_stdin)
  once "$name" "$FOLDER/.$name.stamp" "$inputs" "$FOLDER/$name.gguf" -- \
    quietly "$FOLDER/$name.build.log" "$BIN_DIR/statecells-build" -i "$BASE" -o "$FOLDER/$name.gguf" -t "$THREADS" --force "${flags[@]}"
}

# evaluate NAME: a rule that fails is a result like any other.
evaluate() {
  local code=0
  "$BIN_DIR/statecells-eval" --base "$BASE" --sc "$FOLDER/$1.gguf" --text "$TEXT" --outdir "$FOLDER/$1" \
    --cache "$FOLDER/cache" --keep-variants --against "$AGAINST" --skip "$SKIP" \
    --ctx "$CTX" --chunks "$CHUNKS" -t "$THREADS" || code=$?
  ((code == 0 || code == 3)) || die "the evaluation of $1 failed; see above"
}

main() {
  parse "$@"
  local program entry name flags reports=() sections=()
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
    if [[ ${flags[*]} != *--scheme* ]]; then sections+=("${reports[-1]}"); fi
  done
  ((${#reports[@]} > 0)) || usage_error "no scheme '$ONLY'"
  if [[ -n $SIZES ]]; then
    "$BIN_DIR/statecells-eval" --compare "${reports[@]}" --outdir "$FOLDER/sizes"
  elif [[ -z $ONLY ]]; then
    python "$SCRIPTS/schemes_page.py" "${SCHEMES[@]//CALIBRATION/${CALIBRATION#"$ROOT/"}}" -- "${reports[@]}" | write_file "$PAGE"
    "$BIN_DIR/statecells-eval" --compare "${sections[@]}" --outdir "$FOLDER/sizes"
    write_file "$PICTURE" <"$FOLDER/sizes/divergence.svg"
    say "   ${PAGE#"$ROOT/"} and ${PICTURE#"$ROOT/"}"
  fi
}

one() {
  build "$@"
  evaluate "$1"
}

main "$@"
