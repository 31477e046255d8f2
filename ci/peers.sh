#!/usr/bin/env bash
# Other people's allocators: releases with a known bug have to be caught, current ones are hunted for a fixed number of cases.
# Needs the Rust registry, a C compiler, and some minutes the first time; not part of .ci/run.
#
#   ci/peers.sh            both tables
#   ci/peers.sh known-bad  only the releases with a known bug
set -euo pipefail
cd "$(dirname "$0")/.."
cases=${CASES:-200}
seed=${SEED:-7}
target=${CARGO_TARGET_DIR:-$PWD/target}/peers
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
fail=0

build() { cargo build --quiet --release --manifest-path "$1/Cargo.toml" --target-dir "$target"; }

# row PROGRAM SUBJECT EXPECTED ENGINES...: one line of the table. EXPECTED is an oracle, or "clean", or "known" for a current
# release of which a finding is kept in corpus/peers/.
row() {
    local program=$target/release/$1 subject=$2 expected=$3 json status=0
    json=$("$program" props --subject "$subject" --cases "$cases" --seed "$seed" --json --out "$out" 2>/dev/null) || status=$?
    python3 - "$subject" "$expected" "$status" "$json" <<'PY' || fail=1
import json, sys
subject, expected, status, text = sys.argv[1:]
answer = json.loads(text.strip().splitlines()[-1]) if text.strip() else {}
found = answer.get("violations", [])
oracles = sorted({v["oracle"] for v in found})
least = min((v["ops"] for v in found), default="-")
ops = answer.get("ops", "-")
ok = (not found and status == "0") if expected == "clean" else expected in oracles
verdict = "caught" if found else ("clean" if status == "0" else "NOT RUN")
print(f"{subject:36} {verdict:8} {','.join(oracles) or '-':22} {least!s:>8} {ops!s:>12}  {'' if ok else 'expected ' + expected}")
sys.exit(0 if ok else 1)
PY
}

printf '%-36s %-8s %-22s %8s %12s\n' subject verdict oracle minimal operations
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
