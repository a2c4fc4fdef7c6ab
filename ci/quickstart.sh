#!/usr/bin/env bash
# Sets up, builds, and runs the main job into runs/quickstart. Started again, it goes on where it
# was; finished, it says so. Arguments go to `smalltalk launch`: --out DIR, --set section.key=value.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
bash ci/setup.sh
configure
compile --target smalltalk
python3 data/build_corpus.py --cache build/debs --out build/corpus

out=runs/quickstart
arguments=("$@")
for ((i = 0; i < $#; i++)); do
  if [ "${arguments[i]}" = --out ]; then out=${arguments[i + 1]}; fi
done
case " $* " in
  *" --out "*) ;;
  *) arguments+=(--out "$out") ;;
esac

# Waiting ranks yield, as the two may have to share a core.
flags=(--oversubscribe --bind-to none --mca mpi_yield_when_idle 1)
if [ "$(id -u)" = 0 ]; then flags+=(--allow-run-as-root); fi
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} mpirun -n 2 "${flags[@]}" \
  "$build/smalltalk" launch jobs/quickstart.toml "${arguments[@]}"

echo "results: $out/results.json"
echo "report:  $out/report.html"
