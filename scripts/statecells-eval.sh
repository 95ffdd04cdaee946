#!/usr/bin/env bash
# Compares a compressed model with its base: quality, speed, memory, verdict, a report with pictures.
#
# usage: scripts/statecells-eval.sh --base FILE --sc FILE --text FILE [OPTION...]
#
# Runs bin/statecells-eval, whose --help names all options. The report is in --outdir (default
# statecells-eval): report.html, report.json, and the logs of llama.cpp's programs.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [[ ${1:-} == -h || ${1:-} == --help ]]; then show_help && exit 0; fi
PROGRAM=$BIN_DIR/statecells-eval
[[ -x $PROGRAM ]] || die "bin/statecells-eval is missing; run ./scripts/quickstart.sh --to build"
exec "$PROGRAM" "$@"
