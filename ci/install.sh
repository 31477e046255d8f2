#!/usr/bin/env bash
# Installs what the jobs need and is missing: a C++ compiler (libFuzzer's runtime), valgrind (instruction counts), and a
# browser (the test of the page, which is skipped where no package has one).
# The Rust toolchain is the machine's own; nothing of it is downloaded.
set -euo pipefail

command -v cargo >/dev/null || { echo "install a Rust toolchain first" >&2; exit 2; }

missing=()
command -v c++ >/dev/null || missing+=(g++)
command -v valgrind >/dev/null || missing+=(valgrind)
if [ "${#missing[@]}" -gt 0 ]; then
    if command -v apt-get >/dev/null; then
        sudo=$([ "$(id -u)" = 0 ] || echo sudo)
        $sudo apt-get update -q
        $sudo apt-get install -y -q --no-install-recommends "${missing[@]}"
    else
        echo "install these with your package manager: ${missing[*]}" >&2
        exit 2
    fi
fi

if ! command -v chromium >/dev/null && ! command -v chromium-browser >/dev/null && ! command -v google-chrome >/dev/null; then
    sudo=$([ "$(id -u)" = 0 ] || echo sudo)
    if ! { command -v apt-get >/dev/null && $sudo apt-get update -q && $sudo apt-get install -y -q --no-install-recommends chromium; }; then
        echo "NO BROWSER: the tests of the page (report_page::*) will be skipped" >&2
    fi
fi
