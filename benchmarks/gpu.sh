#!/usr/bin/env bash
# Builds, tests and measures on a machine with a GPU, in one call of under ten minutes; writes
# benchmarks/results/gpu-DATE.json. PYTHON: one that has NumPy, CuPy, Cython, pytest and what
# pyproject.toml lists; nothing is installed here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-/tmp/cupy}

timeout 120 "$PYTHON" setup.py -q build_ext --inplace
"$PYTHON" -m revgrad || true
mkdir -p "$OUT"
failed=
timeout 240 "$PYTHON" -m pytest -q -p no:cacheprovider tests/gpu || failed=yes
timeout 200 "$PYTHON" benchmarks/bench_gpu.py --json "$OUT/gpu-$(date +%F).json" || failed=yes
[ -z "$failed" ]
