#!/usr/bin/env bash
# fuzz.sh DURATION: runs every fuzz target of the module for DURATION each,
# and fails when there is none.
set -euo pipefail
duration=$1
count=0
while read -r dir; do
  mapfile -t targets < <(grep -hoE '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | cut -d' ' -f2)
  for target in "${targets[@]}"; do
    echo "== $dir $target for $duration"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$duration" "$dir" </dev/null
    count=$((count + 1))
  done
done < <(grep -rlE '^func Fuzz' --include='*_test.go' --exclude-dir=bin --exclude-dir=build . | xargs -r -n1 dirname | sort -u)
echo "$count fuzz targets ran"
[ "$count" -gt 0 ]
