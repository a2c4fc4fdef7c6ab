#!/usr/bin/env bash
# Repeats the quickstart's comparison with three seeds and both dense protocols, checks the claim and
# writes the README's table: runs/claim/results.json. Started again, it goes on where it was.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=()
for seed in 1 2 3; do
  run=runs/claim/seed-$seed
  runs+=("$run")
  bash ci/quickstart.sh --out "$run" --set "seed=$seed" --set baselines.dense_large_batch=true
done
python3 ci/claim_table.py "${runs[@]}" --out runs/claim/results.json --page README.md
