"""The adjoints on one problem: time, replays, memory, bits; the paper's MLP in float32.

    python benchmarks/bench_adjoints.py [--quick] [--json PATH] [--picture PATH]

Seconds are of processor time with one BLAS thread, so that other work on the machine tells little.
Every run has a process of its own, so that its peak memory is its own: the growth of the resident
set above what the process held before training. `plain` trains without a pull-back. All derivatives
are with respect to one number, the penalty. The second table is of 10^6 weights: how the peak grows
between two lengths of the run, beside what the adjoint says it keeps.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from itertools import pairwise
from time import process_time

import numpy as np

import revgrad as rg
from revgrad.nn import softmax_cross_entropy

SIZES = (784, 50, 50, 50, 10)
NAMES = (
    "plain", "Reversible()", "Stored()", "Checkpointed(20)", "Truncated(20)", "Forward()",
    "Implicit", "Unrolled()",
)  # fmt: skip
EQUAL = ("Reversible()", "Stored()", "Checkpointed(20)")  # to the bit
LARGE = ("Reversible()", "Checkpointed(20)")


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


def bowl(params, l2, batch):
    """A cheap loss of as many weights as one likes."""
    return np.sum((params - batch) ** 2) / 2 + l2 * np.sum(params * params)


def large_problem(weights):
    params = np.linspace(-1, 1, weights, dtype=np.float32)
    return params, lambda t: np.float32(t % 7 / 7), np.float32(0.5)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def made(name, everything):
    if name == "Implicit":  # training did not arrive: what counts here is what it costs
        return rg.Implicit(loss, everything, rg.Neumann(0.1, 20, np.inf), tolerance=np.inf)
    return eval("rg." + (name if name != "plain" else "Reversible()"))


def run(name, steps, weights):
    """One hypergradient, or one plain run, in this process; prints what it took."""
    f, (params, batches, everything) = (
        (bowl, large_problem(weights)) if weights else (loss, problem())
    )
    report, adjoint = rg.Report(), made(name, everything)

    def hyperloss(l2):
        trained = rg.train(
            f, params, rg.Momentum(0.1, 0.9), batches, steps=steps, hyper=l2, adjoint=adjoint,
            report=report,
        )  # fmt: skip
        return f(trained, 0.0, everything)

    rg.grad(lambda p: f(p, 0.0, everything))(params)  # what everyone needs at the end
    before, began = peak(), process_time()
    slope = hyperloss(1e-4) if name == "plain" else rg.grad(hyperloss)(1e-4)
    row = {"adjoint": name, "steps": steps, "weights": report.weights}
    row |= {"seconds": process_time() - began, "replays": report.replays}
    row |= {"peak_mb": (peak() - before) / 1e6, "kept_mb": report.bytes_kept / 1e6}
    row |= {"bits": report.bits_per_weight_step, "result": float(slope).hex()}
    print(json.dumps(row))


def in_a_process(name, steps, weights=0):
    command = [sys.executable, __file__, "--run", name, str(steps), str(weights)]
    alone = os.environ | dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"), "1")
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=alone).stdout
    return json.loads(out.splitlines()[-1])


def compare(lengths):
    rows, plain = [], None
    print(
        "| adjoint | steps | seconds | / plain | replays | peak MB above start | MB kept | bits |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for steps in lengths:
        for name in NAMES:
            row = in_a_process(name, steps)
            plain = row["seconds"] if name == "plain" else plain
            rows.append(row | {"over_plain": row["seconds"] / plain})
            kept = row["bits"] if name in ("plain", "Reversible()") else 0.0
            print(
                f"| {name} | {steps} | {row['seconds']:.2f} | {row['seconds'] / plain:.2f} "
                f"| {row['replays']} | {row['peak_mb']:.1f} | {row['kept_mb']:.2f} | {kept:.4f} |",
                flush=True,
            )
    found = [
        {r["result"] for r in rows if r["steps"] == t and r["adjoint"] in EQUAL} for t in lengths
    ]
    print(f"{', '.join(EQUAL)} agree to the bit:", all(len(results) == 1 for results in found))
    return rows


def compare_growth(weights, few, many):
    rows = []
    print(f"\n| adjoint, {weights:,} weights | peak grows MB | kept grows MB | ratio |")
    print("|---|---|---|---|")
    for name in LARGE:
        short, long = in_a_process(name, few, weights), in_a_process(name, many, weights)
        grown, kept = (long[k] - short[k] for k in ("peak_mb", "kept_mb"))
        ratio = f"{grown / kept:.2f}" if kept > 0.1 else ""
        print(f"| {name}, {few} to {many} steps | {grown:.1f} | {kept:.1f} | {ratio} |", flush=True)
        rows += [short, long]
    return rows


def picture(rows, path):
    import matplotlib.pyplot as plt

    colours = dict(
        zip(NAMES, ["0.5", *plt.rcParams["axes.prop_cycle"].by_key()["color"]], strict=False)
    )
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for ax, key, label in zip(
        axes,
        ("peak_mb", "seconds"),
        ("peak memory above the start, MB", "seconds of processor time"),
        strict=True,
    ):
        for name in NAMES:
            points = [(r["steps"], max(r[key], 1e-2)) for r in rows if r["adjoint"] == name]
            style = "--" if name == "plain" else "-"
            ax.loglog(
                *zip(*points, strict=True), style, marker="o", ms=4, label=name, color=colours[name]
            )
        ax.set(xlabel="steps", ylabel=label)
        ax.grid(alpha=0.3)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
    axes[1].legend(frameon=False, fontsize=8, loc="upper left")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("--picture")
    parser.add_argument("--run", nargs=3)
    options = parser.parse_args()
    if options.run:
        name, steps, weights = options.run
        run(name, int(steps), int(weights))
        return
    rows = compare((20, 50) if options.quick else (50, 200, 1000))
    large = (10**5, 20, 60) if options.quick else (10**6, 100, 2000)
    growth = compare_growth(*large)
    if options.picture:
        picture(rows, options.picture)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"problem": rows, "growth": growth}, file, indent=1)


if __name__ == "__main__":
    main()
