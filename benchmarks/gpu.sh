#!/bin/sh
# Everything that only a GPU can tell, in 8 minutes, and a step's prediction beside its measurement:
#   sh benchmarks/gpu.sh [PYTHON] [FOLDER]
# Correctness first: the tests marked gpu. Each part has a time limit, and what one part finds is kept if a later one
# fails. FOLDER/gpu.json holds all figures with the hardware, FOLDER/gpu.md the tables made of it, for docs/benchmarks.md.
# Not run on a GPU yet. To try it without one: TINY=--tiny sh benchmarks/gpu.sh
set -u
cd "$(dirname "$0")/.." || exit 1
PYTHON=${1:-python}
FOLDER=${2:-runs/gpu}
TINY=${TINY:-}
mkdir -p "$FOLDER"
export PYTORCH_CUDA_ALLOC_CONF="${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}"
failed=""

part() { # SECONDS NAME COMMAND...
	limit=$1
	name=$2
	shift 2
	echo "== $name (at most $limit s)"
	timeout "$limit" "$@" || failed="$failed $name"
}

part 120 tests "$PYTHON" -m pytest -m gpu -n 0 --junit-xml "$FOLDER/tests.xml" tests
for limited in 20:rates 60:losses 30:attention 40:data 180:steps; do
	name=${limited#*:}
	part "${limited%%:*}" "$name" "$PYTHON" benchmarks/gpu.py "$name" --out "$FOLDER/gpu.json" $TINY
done
part 10 tables "$PYTHON" benchmarks/gpu_tables.py "$FOLDER/gpu.json" --out "$FOLDER/gpu.md"
[ -z "$failed" ] && exit 0
echo "failed or out of time:$failed"
exit 1
