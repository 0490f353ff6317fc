"""The adjoints on one problem: time, memory, bits; the paper's MLP on random data, float32.

    python benchmarks/bench_adjoints.py [--quick] [--json PATH]

Every run has a process of its own, so that its peak memory is its own: the growth of the resident
set above what the process held before training. `plain` trains without a pull-back.
"""

import argparse
import json
import resource
import subprocess
import sys
from itertools import pairwise
from time import perf_counter

import numpy as np

import revgrad as rg
from revgrad.nn import softmax_cross_entropy

SIZES = (784, 50, 50, 50, 10)
ADJOINTS = {"Reversible": rg.Reversible, "Stored": rg.Stored, "Unrolled": rg.Unrolled}


def loss(params, l2, batch):
    x, y = batch
    penalty = sum(np.sum(w * w) for w, _ in params)
    for w, b in params[:-1]:
        x = np.tanh(x @ w + b)
    return softmax_cross_entropy(x @ params[-1][0] + params[-1][1], y) + l2 * penalty


def problem(batch=200, dtype=np.float32):
    rng = np.random.default_rng(0)
    params = [(0.1 * rng.standard_normal((n, m)), np.zeros(m)) for n, m in pairwise(SIZES)]
    params = [(w.astype(dtype), b.astype(dtype)) for w, b in params]
    x = rng.random((1000, SIZES[0])).astype(dtype)
    y = np.eye(SIZES[-1], dtype=dtype)[rng.integers(0, SIZES[-1], 1000)]
    batches = rg.minibatches((x, y), batch, seed=0)
    return params, batches, (x, y)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(name, steps):
    """One hypergradient, or one plain run, in this process; prints what it took."""
    params, batches, everything = problem()
    report = rg.Report()
    adjoint = ADJOINTS.get(name, rg.Reversible)()

    def hyperloss(rate):
        optimizer = rg.Momentum(rate, 0.9)
        trained = rg.train(
            loss,
            params,
            optimizer,
            batches,
            steps=steps,
            hyper=1e-4,
            adjoint=adjoint,
            report=report,
        )
        return loss(trained, 0.0, everything)

    rg.grad(lambda p: loss(p, 0.0, everything))(params)  # what everyone needs at the end
    before, began = peak(), perf_counter()
    slope = hyperloss(0.5) if name == "plain" else rg.grad(hyperloss)(0.5)
    row = {"adjoint": name, "steps": steps, "seconds": perf_counter() - began}
    row |= {"peak_mb": (peak() - before) / 2**20, "kept_mb": report.bytes_kept / 2**20}
    row |= {"bits": report.bits_per_weight_step, "result": float(slope).hex()}
    print(json.dumps(row))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("--run", nargs=2)
    options = parser.parse_args()
    if options.run:
        run(options.run[0], int(options.run[1]))
        return
    rows, plain = [], None
    print("| adjoint | steps | seconds | / plain | peak MB above start | MB kept | bits |")
    print("|---|---|---|---|---|---|---|")
    for steps in (20, 50) if options.quick else (100, 1000):
        for name in ("plain", *ADJOINTS):
            command = [sys.executable, __file__, "--run", name, str(steps)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            row = json.loads(out.splitlines()[-1])
            plain = row["seconds"] if name == "plain" else plain
            rows.append(row | {"over_plain": row["seconds"] / plain})
            print(
                f"| {name} | {steps} | {row['seconds']:.2f} | {row['seconds'] / plain:.2f} "
                f"| {row['peak_mb']:.1f} | {row['kept_mb']:.2f} | {row['bits']:.4f} |"
            )
    same = {r["steps"]: set() for r in rows}
    for r in rows:
        if r["adjoint"] in ("Reversible", "Stored"):
            same[r["steps"]].add(r["result"])
    print("Reversible and Stored agree to the bit:", all(len(s) == 1 for s in same.values()))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
