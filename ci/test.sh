#!/usr/bin/env bash
# The README's test command: unit tests, property tests, corpus replay.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo test
