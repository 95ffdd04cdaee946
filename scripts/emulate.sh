#!/usr/bin/env bash
# Runs the tests of the kernels on processors that this machine does not have.
#
# usage: scripts/emulate.sh [neon|avx512]...
#
#   neon     64-bit ARM, by QEMU's user mode (seconds)
#   avx512   x86-64 with AVX-512, VNNI and VBMI, by Bochs, which boots a kernel for it (minutes)
#   --help   this text
#
# Default: neon. The emulators come from Debian by apt-get download, checked by apt against the signatures
# of its lists, and are unpacked into .tools/emulators. For neon rustup adds its target
# aarch64-unknown-linux-musl if that is not there. Elsewhere than on Debian 12 it says what is missing and exits with 4.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

EMULATORS=$TOOLS_DIR/emulators
# Exit code for what cannot be had here.
MISSING=4
ARM=aarch64-unknown-linux-musl
X86=x86_64-unknown-linux-gnu
TESTS=(--package statecells-kernels --lib --tests)
LINUX=linux-image-cloud-amd64
# Linux takes all of AVX away from a processor whose sizes of saved states it doubts, as it does for Bochs's compact form. With
# fsrm (fast short moves of strings) the emulated Ice Lake hangs early in the boot.
FEATURES="noxsaves clearcpuid=xsavec,xsaves,pku,ospke,fsrm"
BOCHS=(bochs bochs-term bochsbios vgabios libltdl7 libsamplerate0 isolinux syslinux-common genisoimage busybox-static)

missing() {
  err "error: $*"
  STEP=
  exit $MISSING
}

# unpack NAME: the package, below EMULATORS.
unpack() {
  local part=$EMULATORS/.part
  mkdir -p "$part"
  rm -f "$part"/*.deb
  (cd "$part" && apt-get download --quiet=2 "$1" >"$EMULATORS/apt.log" 2>&1) ||
    missing "apt-get cannot download $1 (see $EMULATORS/apt.log); run apt-get update as root, or use Debian 12"
  dpkg-deb --extract "$part"/*.deb "$EMULATORS"
}

# packages NAME...: each unpacked once.
packages() {
  local name
  for name in apt-get dpkg-deb; do
    command -v "$name" >/dev/null || missing "no $name here; the emulators come from Debian"
  done
  for name in "$@"; do once "$name" "$EMULATORS/.$name" "$name" -- unpack "$name"; done
}

# not_installed NAME...: the packages that installing these would bring, one a line.
not_installed() {
  apt-get install --simulate --no-install-recommends "$@" 2>/dev/null | sed -n 's/^Inst \([^ ]*\).*/\1/p'
}

# add_target TARGET: the standard library for it.
add_target() {
  local log=$EMULATORS/rustup.log
  mkdir -p "$EMULATORS"
  rustup target add "$1" >"$log" 2>&1 || missing "rustup cannot add the target $1 (see $log)"
}

neon() {
  local programs program
  rustup target list --installed 2>/dev/null | grep -qx "$ARM" || add_target "$ARM"
  packages qemu-user-static
  export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER=rust-lld
  programs=$(test_programs --target $ARM "${TESTS[@]}")
  for program in $programs; do "$EMULATORS/usr/bin/qemu-aarch64-static" "$program" --quiet; done
}

# image PROGRAM...: a CD that boots, runs the programs and writes what they say to the serial port.
image() {
  local folder=$EMULATORS/cd init=$EMULATORS/init program
  rm -rf "$folder" "$init"
  mkdir -p "$folder" "$init"/{bin,tests,proc,dev,tmp}
  cp "$EMULATORS"/boot/vmlinuz-* "$folder/vmlinuz"
  cp "$EMULATORS/usr/lib/ISOLINUX/isolinux.bin" "$EMULATORS/usr/lib/syslinux/modules/bios/ldlinux.c32" "$folder"
  cp "$EMULATORS/bin/busybox" "$init/bin"
  for program in "$@"; do strip -o "$init/tests/${program##*/}" "$program"; done
  cat >"$init/init" <<'END'
#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox grep -o -m 1 -E 'avx512_vnni|avx512_vbmi|avx512bw' /proc/cpuinfo | /bin/busybox sort -u
cd /tmp
for t in /tests/*; do $t --test-threads=1 --quiet || failed=yes; done
echo "outcome: ${failed:-all passed}"
/bin/busybox sleep 3
/bin/busybox poweroff -f
END
  chmod +x "$init/init"
  (cd "$init" && find . | "$EMULATORS/bin/busybox" cpio -o -H newc 2>/dev/null | gzip -1) >"$folder/initrd.gz"
  cat >"$folder/isolinux.cfg" <<END
default tests
label tests
 kernel vmlinuz
 append initrd=initrd.gz console=ttyS0 loglevel=3 $FEATURES random.trust_cpu=on mitigations=off panic=-1 rdinit=/init
END
  "$EMULATORS/usr/bin/genisoimage" -quiet -o "$EMULATORS/cd.iso" -b isolinux.bin -c boot.cat -no-emul-boot \
    -boot-load-size 4 -boot-info-table "$folder"
}

avx512() {
  local name programs libraries=$EMULATORS/usr/lib/x86_64-linux-gnu share=$EMULATORS/usr/share/bochs serial=$EMULATORS/serial.txt
  [[ $(uname -m) == x86_64 ]] || missing "the tests for AVX-512 are built on x86-64 only"
  # shellcheck disable=SC2046 # one word for each
  packages "${BOCHS[@]}" $(not_installed libgtk-3-0)
  packages "$(apt-cache depends --important $LINUX | sed -n 's/^ *Depends: //p' | head -n 1)"
  programs=$(RUSTFLAGS="-C target-feature=+crt-static" test_programs --target $X86 "${TESTS[@]}")
  # shellcheck disable=SC2086 # one word for each
  image $programs
  rm -f "$serial"
  cat >"$EMULATORS/bochsrc" <<END
cpu: model=corei7_icelake_u, ips=100000000
megs: 512
romimage: file=$share/BIOS-bochs-latest
vgaromimage: file=$share/VGABIOS-lgpl-latest
ata0-master: type=cdrom, path=$EMULATORS/cd.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=$serial
display_library: rfb, options="timeout=0"
log: $EMULATORS/bochs.log
clock: sync=none
END
  say continue >"$EMULATORS/bochs.commands"
  LD_LIBRARY_PATH=$libraries LTDL_LIBRARY_PATH=$libraries/bochs/plugins BXSHARE=$share \
    timeout 1800 "$EMULATORS/usr/bin/bochs-bin" -q -f "$EMULATORS/bochsrc" -rc "$EMULATORS/bochs.commands" >"$EMULATORS/bochs.out" 2>&1 || true
  [[ -f $serial ]] || die "Bochs did not run; see $EMULATORS/bochs.log"
  tr -d '\r' <"$serial"
  for name in avx512bw avx512_vnni avx512_vbmi; do
    grep -q "^$name" "$serial" || die "the emulated processor has no $name; see $EMULATORS/bochs.log"
  done
  grep -q '^outcome: all passed' "$serial" || die "tests failed, see above"
}

case ${1:-} in -h | --help) show_help && exit 0 ;; esac
for name in "$@"; do [[ $name == neon || $name == avx512 ]] || usage_error "unknown option '$name'"; done
for name in "${@:-neon}"; do step "kernels with $name" "the test that failed is named above" "$name"; done
