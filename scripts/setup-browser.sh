#!/usr/bin/env bash
# Puts a headless Chromium into .tools/browser: the tests look at report pages with it.
#
# usage: scripts/setup-browser.sh
#
#   --help   this text
#
# Versions and hashes: tests/browser/package-lock.json. Needs Node.js 20 or newer with npm, and the
# network once. Without it, tests of pages are skipped, and say so.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

BROWSER_DIR=$TOOLS_DIR/browser
WANTED=$ROOT/tests/browser

inputs() { { cat "$WANTED/package.json" "$WANTED/package-lock.json"; say "$BROWSER_DIR"; } | sha256_of_stdin; }

place_browser() {
  rm -rf "$BROWSER_DIR"
  mkdir -p "$BROWSER_DIR"
  cp "$WANTED/package.json" "$WANTED/package-lock.json" "$BROWSER_DIR"
  (cd "$BROWSER_DIR" && quietly "$TOOLS_DIR/browser.log" npm ci --ignore-scripts --no-audit --no-fund --cache "$DOWNLOADS/npm")
  say "   browser: installed"
}

install_browser() {
  local inputs
  inputs=$(inputs)
  once browser "$BROWSER_DIR/.done" "$inputs" -- place_browser
}

no_options "$@"
need node "install Node.js 20 or newer"
need npm "install npm, which comes with Node.js"
with_lock "$TOOLS_DIR/.browser-lock" install_browser
