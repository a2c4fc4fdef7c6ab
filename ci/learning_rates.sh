#!/usr/bin/env bash
# Trains experts and both dense protocols at each learning rate of one grid (seed 1) and writes the
# table of jobs/results.md; the rates in jobs/quickstart.toml are the best on the validation split. Routers and
# shards do not depend on the experts: the first run's serve all. About 25 minutes on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."
runs=()
for lr in 4e-3 8e-3 1.6e-2 3.2e-2 6.4e-2; do
  run=runs/learning-rates/$lr
  runs+=("$run")
  if [ ! -e "$run" ] && [ "$run" != "${runs[0]}" ]; then
    mkdir -p "$run"
    cp -r "${runs[0]}"/{tokens,routers,rounds,routing.jsonl,sharding.json} "$run"
    cp "${runs[0]}"/{shards,random_shards}.h5 "$run"
  fi
  bash ci/quickstart.sh --out "$run" --set "expert.lr=$lr" \
    --set baselines.dense_lr=0 --set baselines.dense_large_batch_lr=0 \
    --set baselines.dense_large_batch=true --set baselines.random_shards=false
done
python3 ci/learning_rates.py "${runs[@]}" --page jobs/results.md
