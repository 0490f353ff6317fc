"""What RTRL adds to a training step: time in plain steps, memory in vectors like the params.

    python benchmarks/bench_online.py [--quick] [--json PATH]

The paper's MNIST network (784-128-128-128-10, tanh, float32, batches of 100) by SGD with weight
decay. Every row is a run of `fit`; their steps take turns in one process, in seconds of processor
time with one BLAS thread. Memory is what is held between steps beyond plain training, recordings
too, over P numbers: in vectors at least as long as the params (aim: K + 2 with K rows carried), and
all, with the activations of a batch of 100 and the recorded programs; the peak is while recording.
"influence off" is how far rows are after some steps from those of float64. Im et al.'s code takes 6
gradients a step on MNIST, and the paper says 12.
"""

import argparse
import gc
import json
import platform
import tracemalloc
from itertools import pairwise
from time import process_time

import numpy as np
import threadpoolctl

import revgrad as rg
from revgrad import recording
from revgrad.arguments import take_apart
from revgrad.nn import softmax_cross_entropy
from revgrad.online.fit import Fitting, take_step
from revgrad.online.paths import Paths

SIZES = (784, 128, 128, 128, 10)
SIZE = sum(n * m + m for n, m in pairwise(SIZES))
BUDGET, AIM = 6.0, 4.7  # of the first row below plain
LAYERS = [(0.01, 0.01)] * 4


def problem(dtype=np.float32, count=5_000):
    rng = np.random.default_rng(0)
    params = [(rng.uniform(-1, 1, (n, m)) / n**0.5, np.zeros(m)) for n, m in pairwise(SIZES)]
    params = [(w.astype(dtype), b.astype(dtype)) for w, b in params]
    x, y = rng.random((count, SIZES[0])).astype(dtype), rng.integers(0, SIZES[-1], count)
    parts = (x[: count // 2], y[: count // 2]), (x[count // 2 :], y[count // 2 :])
    return params, *(rg.minibatches(part, 100, seed) for seed, part in enumerate(parts))


def cross_entropy(params, batch):
    x, y = batch
    for w, b in params[:-1]:
        x = np.tanh(x @ w + b)
    return softmax_cross_entropy(x @ params[-1][0] + params[-1][1], y)


def loss(params, hyper, batch):
    return cross_entropy(params, batch)


def optimizers(valid):
    """What is compared: name -> (optimizer, rows carried)."""

    def rtrl(rate=0.01, decay=1e-4, given=(cross_entropy, valid), **options):
        tuned_by = rg.RTRL(*given, learning_rate=1e-7, **options)
        return rg.SGD(rate, weight_decay=decay, tuned_by=tuned_by)

    return {
        "plain": (rg.SGD(0.01, weight_decay=1e-4), 0),
        "RTRL, one rate, one decay": (rtrl(), 2),
        "the same, training loss": (rtrl(given=()), 2),
        "the same, every=10": (rtrl(every=10), 2),
        "the same, by differences": (rtrl(products="differences"), 2),
        "a rate for each of 8 tensors": (rtrl(LAYERS), 9),
        "the same, shared": (rtrl(LAYERS, shared=True), 2),
        "the same, rank 1": (rtrl(LAYERS, rank=1), 1),
    }


class Case:
    """A run of `fit`, step by step."""

    def __init__(self, optimizer, dtype=np.float32):
        params, train, valid = problem(dtype)
        run, values = take_apart(
            loss, params, optimizer(valid), train, steps=10**9, hyper=None, state=None,
            has_aux=False, watch=None, watch_moves=False, callback=None, report=rg.Report(),
            arithmetic=None, saving=None,
        )  # fmt: skip
        self.fitting, self.paths, self.t = Fitting.of(run, values, optimizer(valid)), Paths(), 0
        self.tuner = self.fitting.tuner()

    def go(self, steps):
        """Seconds that so many steps take."""
        began = process_time()
        for t in range(self.t, self.t + steps):
            take_step(self.fitting, self.tuner, self.paths, t, [])
        self.t += steps
        return process_time() - began


def memory(optimizer, steps=5):
    """Bytes in the last step of a run, the data left out: in vectors like the params, all, peak."""
    params, train, valid = problem()
    size, found = 4 * SIZE, np.zeros(3)

    def look(t, _):
        if t == steps - 1:
            blocks = [x.size for x in tracemalloc.take_snapshot().traces]
            found[:2] = sum(n for n in blocks if n >= size), sum(blocks)

    run = lambda **options: rg.fit(loss, params, optimizer(valid), train, steps=steps, **options)
    run()  # for what stays imported
    recording._kept.clear()
    gc.collect()
    tracemalloc.start()
    run(callback=look)
    found[2] = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def off(name, steps):
    """Relative distance of the carried rows to those of float64."""
    rows = []
    for dtype in (np.float32, np.float64):
        case = Case(lambda valid: optimizers(valid)[name][0], dtype)
        case.go(steps)
        rows.append(case.tuner.influence.rows.params)
    return float(np.linalg.norm(rows[0] - rows[1]) / np.linalg.norm(rows[1]))


def main(quick, path):
    names = [*optimizers(problem()[2])]
    rounds, steps = (3, 2) if quick else (30, 20)
    cases = {name: Case(lambda valid, n=name: optimizers(valid)[n][0]) for name in names}
    for case in cases.values():
        case.go(3)
    seconds = {name: [] for name in names}
    for _ in range(rounds):
        for name, case in cases.items():
            seconds[name].append(case.go(steps))
    plain, floor, found = (
        np.array(seconds["plain"]),
        memory(lambda v: optimizers(v)["plain"][0]),
        {},
    )
    plain_ms = 1e3 * np.median(plain) / steps
    print(f"{rounds} rounds of {steps} steps; a plain step takes {plain_ms:.2f} ms")
    print("| run | plain steps | spread | K + 2 | vectors | all / P | peak / P | influence off |")
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        ratios = np.array(seconds[name]) / plain
        low, middle, high = np.percentile(ratios, (10, 50, 90))
        held = (memory(lambda v, n=name: optimizers(v)[n][0]) - floor) / 4 / SIZE
        rows = optimizers(problem()[2])[name][1]
        far = off(name, 4 if quick else 40) if rows and "rank" not in name else None
        found[name] = {"plain steps": middle, "spread": [low, high], "rows": rows}
        found[name] |= dict(zip(("vectors", "all / P", "peak / P"), held.tolist(), strict=True))
        found[name] |= {"influence off": far}
        shown = "" if far is None else f"{far:.1e}"
        print(
            f"| {name} | {middle:.2f} | {low:.2f} to {high:.2f} | {rows + 2 if rows else 0} | "
            f"{' | '.join(f'{x:.1f}' for x in held)} | {shown} |", flush=True,
        )  # fmt: skip
    ratio = found[names[1]]["plain steps"]
    print(f"budget {BUDGET}: {'met' if ratio <= BUDGET else 'missed'}; aim {AIM}: {ratio:.2f}")
    if path:
        around = {"machine": platform.machine(), "numpy": np.__version__, "revgrad": rg.__version__}
        with open(path, "w", encoding="utf-8") as file:
            json.dump(around | {"rows": found}, file, indent=1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs")
    parser.add_argument("--json", help="write the table there")
    given = parser.parse_args()
    with threadpoolctl.threadpool_limits(1):
        main(given.quick, given.json)
