#!/usr/bin/env bash
# Every planted bug still applies, and its witness passes on the allocator as it is. `hammer bugs` without --check builds
# and hunts each one, which takes minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo run --quiet --release -- bugs --check
