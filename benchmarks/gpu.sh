#!/usr/bin/env bash
# Builds, tests and measures on a machine with a GPU, in one call of under ten minutes; writes
# benchmarks/results/gpu-DATE.json, and beside it what was printed. PYTHON: one that has NumPy,
# CuPy 14, Cython, pytest and what pyproject.toml lists; JAX with its CUDA plugin and PyTorch join
# where they are installed. Nothing is installed here.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} CUPY_CACHE_DIR=${CUPY_CACHE_DIR:-/tmp/cupy}
export CUBLAS_WORKSPACE_CONFIG=${CUBLAS_WORKSPACE_CONFIG:-:4096:8} PYTHONUNBUFFERED=1
BEGAN=$SECONDS
left() { echo $((580 - (SECONDS - BEGAN) < 20 ? 20 : 580 - (SECONDS - BEGAN))); }

mkdir -p "$OUT"
NAME=$OUT/gpu-$(date +%F)
failed=
timeout 120 "$PYTHON" setup.py -q build_ext --inplace || exit 1
"$PYTHON" -m revgrad || true
timeout 200 "$PYTHON" -m pytest -q -p no:cacheprovider tests/gpu 2>&1 | tee "$NAME-tests.txt" || failed=yes
timeout "$(left)" "$PYTHON" benchmarks/bench_gpu.py --seconds "$(($(left) - 60))" \
  --json "$NAME.json" 2>&1 | tee "$NAME.txt" || failed=yes
[ -z "$failed" ]
