#!/usr/bin/env bash
# Checks that the built kernels and the search of the codec hold their vector instructions themselves instead of calling a
# function for each.
#
# usage: scripts/check-inlined.sh
#
#   --help   this text
#
# A method without inline(always), or a closure on the way, does not inherit the instructions of the function that
# has them: the result is the same, ten times as slow. Needs binutils, and scripts/build-llama.sh and
# scripts/build-workspace.sh first.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

no_options "$@"
RELEASE=$(cargo_target_dir)/release
HOOK=$RELEASE/libstatecells_hook.a
need objdump "install binutils"
[[ -f $HOOK ]] || die "no hook at $HOOK; run ./scripts/build-llama.sh"
# The last one built: there is one for every set of features.
CODEC=$(find "$RELEASE/deps" -name 'libsections-*.rlib' -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2-)
[[ -n $CODEC ]] || die "no codec in $RELEASE/deps; run ./scripts/build-workspace.sh"
for library in "$HOOK" "$CODEC"; do
  # Calls are relocations in a function's section, which has its name, to a symbol of core::arch. Two instructions ask
  # what the machine has; what rustfft does is not the kernels' own.
  calls=$(objdump --reloc "$library" 2>/dev/null | awk '
    /^RELOCATION RECORDS FOR/ { section = $4 }
    section ~ /^\[\.text/ && section !~ /rustfft/ && /core_arch/ && !/cpuid|xgetbv/ { print section, $3 }')
  [[ -z $calls ]] || die "functions of $(basename "$library") call these instructions one by one:"$'\n'"$calls"
done
say "   no kernel calls an instruction"
