#!/usr/bin/env bash
# A room of the core uses only rooms below it, and `unsafe` stays in core/src/raw/, in the hosted platform where it calls the
# host or implements an unsafe trait, and in the harness where it calls allocators of other people.
set -euo pipefail
cd "$(dirname "$0")/.."

fail=0
# forbid ROOM UPPER...: no file of ROOM names one of the rooms above it.
forbid() {
    local room=$1 files
    shift
    files=$(find core/src -path "core/src/$room/*.rs" -o -path "core/src/$room.rs")
    for upper in "$@"; do
        # shellcheck disable=SC2086 # file names of this repository have no spaces
        if grep -nE "use crate::(\{[^}]*)?\b$upper\b" $files; then
            echo "layering: $room uses $upper, which stands above it" >&2
            fail=1
        fi
    done
}
for low in addr order numa mobility gfp error fault geometry sync; do forbid $low page base buddy slab paging vmalloc kmem hosted; done
forbid page base buddy slab paging vmalloc kmem hosted
forbid base buddy slab paging vmalloc kmem hosted
forbid buddy slab paging vmalloc kmem hosted
forbid slab paging vmalloc kmem hosted
forbid paging vmalloc kmem hosted
forbid vmalloc kmem hosted
forbid kmem hosted

if grep -rnE '\bunsafe (fn|impl|trait|\{)|unsafe\(' --include='*.rs' core/src harness/src proptests fuzz/fuzz_targets | grep -vE '^(core/src/raw/|core/src/hosted/(sys|front|global|collections|nofault)\.rs|harness/src/(adapt/(raw|tests)|subjects/hosted/(malloc|touch))\.rs)'; then
    echo "unsafe code outside core/src/raw/, core/src/hosted/{sys,front,global,collections,nofault}.rs, harness/src/adapt/raw.rs and harness/src/subjects/hosted/" >&2
    fail=1
fi
exit $fail
