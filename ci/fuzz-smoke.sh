#!/usr/bin/env bash
# Twenty seconds of coverage-guided fuzzing, on stable Rust, without cargo-fuzz.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo run --quiet --release -- fuzz trace --seconds "${1:-20}"
