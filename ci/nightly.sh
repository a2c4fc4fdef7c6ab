#!/usr/bin/env bash
# What takes long: all tests, the grid of learning rates, the claim with three seeds. About an hour.
set -euo pipefail
cd "$(dirname "$0")/.."
bash ci/test.sh
bash ci/learning_rates.sh
bash ci/claim.sh
