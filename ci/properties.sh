#!/usr/bin/env bash
# The property-test job: more cases than `cargo test` runs, seeded with the commit, so that each commit explores anew
# and a failure names the seed that repeats it.
set -euo pipefail
cd "$(dirname "$0")/.."
seed=$((16#$(git rev-parse HEAD | cut -c1-8)))
cargo run --quiet --release -- props --cases "${1:-20000}" --seed "$seed"
