#!/usr/bin/env bash
# Formatting, lints with warnings as errors, documentation, and the layering rule.
set -euo pipefail
cd "$(dirname "$0")/.."

cargo fmt --all --check
cargo fmt --manifest-path fuzz/Cargo.toml --check
cargo fmt --manifest-path ci/no_std/Cargo.toml --check
for peers in peers peers/known-bad peers/known-bad-2; do
    cargo fmt --manifest-path "$peers/Cargo.toml" --check
done
cargo clippy --workspace --all-targets --quiet -- -D warnings
cargo clippy --manifest-path fuzz/Cargo.toml --target-dir target/fuzz-lint --quiet -- -D warnings
RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --workspace --no-deps --document-private-items --quiet
ci/layers.sh
