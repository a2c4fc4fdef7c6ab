#!/usr/bin/env bash
# Sets up, builds, and measures the training engine beside PyTorch in the same run. Arguments go to
# ci/bench_engine.py: --cases, --contenders, --repetitions, --seconds, --threads, --llm-c FOLDER,
# --memory, --out FILE (JSON).
set -euo pipefail
source "$(dirname "$0")/environment.sh"
bash ci/setup.sh
configure
compile --target smalltalk
"${SMALLTALK_VENV:-build/venv}/bin/python3" -B ci/bench_engine.py "$@"
