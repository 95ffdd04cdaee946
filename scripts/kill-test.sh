#!/usr/bin/env bash
# Kills builds of a small model at random moments (SIGKILL), resumes them and compares the bytes.
#
# usage: scripts/kill-test.sh [KILLS [SEED]]
#
#   KILLS    how often in total, over all schemes and settings of the checkpoints (default 200)
#   SEED     of the moments (default 1)
#   --help   this text
#
# Prints a table. Fails when a build ends with other bytes than an uninterrupted one, or leaves an
# incomplete file under the final name. Needs the programs in bin.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in
  -h | --help) show_help && exit 0 ;;
  -*) usage_error "unknown option '$1'" ;;
esac
for value in "$@"; do [[ $value =~ ^[1-9][0-9]*$ ]] || usage_error "'$value' is no number above 0"; done
cd "$ROOT"
STATECELLS_KILLS=${1:-200} STATECELLS_KILL_SEED=${2:-1} STATECELLS_BIN_DIR=$BIN_DIR \
  cargo test --release --locked --workspace --test kill -- --nocapture
