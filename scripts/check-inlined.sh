#!/usr/bin/env bash
# Checks that the built hook's kernels hold their vector instructions themselves instead of calling a function for each.
#
# usage: scripts/check-inlined.sh
#
#   --help   this text
#
# A method without inline(always), or a closure on the way, does not inherit the instructions of the function that
# has them: the result is the same, ten times as slow. Needs binutils and scripts/build-llama.sh first.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

no_options "$@"
HOOK=$(cargo_target_dir)/release/libstatecells_hook.a
need objdump "install binutils"
[[ -f $HOOK ]] || die "no hook at $HOOK; run ./scripts/build-llama.sh"
# Calls are relocations in a function's section, which has its name, to a symbol of core::arch. Two instructions ask
# what the machine has; what rustfft does is not the kernels' own.
calls=$(objdump --reloc "$HOOK" | awk '
  /^RELOCATION RECORDS FOR/ { section = $4 }
  section ~ /^\[\.text/ && section !~ /rustfft/ && /core_arch/ && !/cpuid|xgetbv/ { print section, $3 }')
[[ -z $calls ]] || die "functions of the kernels call these instructions one by one:"$'\n'"$calls"
say "   no kernel calls an instruction"
