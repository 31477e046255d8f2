#!/usr/bin/env bash
# Builds the core without the standard library, as a kernel links it.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --release --manifest-path ci/no_std/Cargo.toml --target-dir target/no_std
echo "no_std: kmem links into a crate with its own panic handler"
