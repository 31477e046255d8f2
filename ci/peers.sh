#!/usr/bin/env bash
# Other people's allocators: releases with a known bug have to be caught, current ones are hunted for some seconds each.
# Needs the Rust registry, a C compiler, python3, and some minutes the first time; not part of .ci/run.
#
#   ci/peers.sh            both tables
#   ci/peers.sh known-bad  only the releases with a known bug
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${SECONDS_EACH:-10}
seed=${SEED:-7}
target=${CARGO_TARGET_DIR:-$PWD/target/peers}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
fail=0

build() { cargo build --quiet --release --locked --manifest-path "$1/Cargo.toml" --target-dir "$target"; }

# row PROGRAM SUBJECT EXPECTED: one line of the table. EXPECTED is the oracle that has to object, or "clean".
row() {
    local json status=0
    json=$("$target/release/$1" hunt --subject "$2" --seconds "$seconds" --seed "$seed" --json --out "$out" 2>"$out/err") || status=$?
    python3 ci/peers_row.py "$2" "$3" "$status" "$json" || fail=1
}

printf '%-36s %-8s %-18s %8s %12s %8s\n' subject verdict oracle minimal operations seconds
build peers/known-bad
row kmem-peers-known-bad linked_list_allocator@0.10.1 O3Bounds
row kmem-peers-known-bad buddy_system_allocator-frames@0.6.0 O1Overlap
row kmem-peers-known-bad mimalloc@0.1.32 O2Alignment
build peers/known-bad-2
row kmem-peers-known-bad-2 linked_list_allocator@0.10.3 O12Quiescence
[ "${1:-}" = known-bad ] && exit $fail

build peers
for subject in talc rlsf dlmalloc good_memory_allocator linked_list_allocator buddy_system_allocator \
    buddy_system_allocator-frames bitmap-allocator slabmalloc glibc mimalloc; do
    row kmem-peers "$subject" clean
done
exit $fail
