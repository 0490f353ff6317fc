"""The exact arithmetic and whole hypergradients on a GPU, beside what the device can do.

    python benchmarks/bench_gpu.py [--quick] [--json PATH]

Controls run in the same process, in turns with ours; a ratio is the median of the turns'. A budget
is met (yes) or not (NO). Data are random, of MNIST's shape.
"""

import argparse
import json
import platform
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

import revgrad as rg
from revgrad import interop
from revgrad.buffer import InformationBuffer
from revgrad.fixed import FixedArray, FusedStep
from revgrad.ratio import Ratio

RATIO, TURNS = Ratio(9, 10), 7
ROWS = []


def report(what, value, budget=None, sense=1, note=""):
    """One row; sense 1: at least the budget, -1: at most."""
    met = "-" if budget is None else "yes" if sense * (value - budget) >= 0 else "NO"
    limit = "" if budget is None else f"{'>=' if sense > 0 else '<='} {budget:g}"
    print(f"{what:<64}{value:>10.3f}  {limit:>7} {met:>4}  {note}", flush=True)
    ROWS.append({"what": what, "value": value, "budget": limit, "met": met, "note": note})


def seconds(cupy, work, times):
    """Of one call, out of so many that the device is kept busy."""
    cupy.cuda.Device().synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    cupy.cuda.Device().synchronize()
    return (time.perf_counter() - began) / times


def turns(cupy, ours, control, times):
    """(Median seconds of ours, median ratio ours / control)."""
    ours(), control()
    pairs = [(seconds(cupy, ours, times), seconds(cupy, control, times)) for _ in range(TURNS)]
    return np.median([a for a, _ in pairs]), np.median([a / b for a, b in pairs])


def scale(cupy, size, times):
    """Exact scale: the share of the copy bandwidth, of the bytes that it must move."""
    x, y = cupy.asarray(np.arange(size)), cupy.zeros(size, np.int64)
    buffer = InformationBuffer(size, keep=False, like=x)
    ours, ratio = turns(cupy, lambda: buffer.multiply(x, RATIO), lambda: np.copyto(y, x), times)
    moved, copied = 24, 16  # bytes: integers and heads, both ways; a copy's
    share = moved / copied / ratio
    report(f"exact scale of {size:.0e}, share of copy bandwidth", share, 0.7,
           note=f"{size / ours / 1e9:.1f} billion elements/s")  # fmt: skip


def momentum_step(cupy, size, times):
    """A fused step with the words kept, beside CuPy's float64 statements."""
    g, like = cupy.zeros(size, np.float32), cupy.zeros(0)
    variables = {k: FixedArray(cupy.zeros(size, np.int64), 52) for k in ("velocity", "params")}
    buffers = {"velocity": InformationBuffer(size, like=like)}
    step = FusedStep(rg.Momentum(0.1).statements, variables, buffers)
    reads, ratios = {"g": g, "learning_rate": 0.1, "momentum": 0.9}, {"velocity": RATIO}
    v, w = cupy.zeros(size), cupy.zeros(size)

    def floats():
        np.multiply(v, 0.9, out=v)
        np.add(v, -(1 - 0.9) * g, out=v)
        np.add(w, 0.1 * v, out=w)

    ours, ratio = turns(cupy, lambda: step.run(reads, ratios, step=0), floats, times)
    report(f"exact momentum step of {size:.0e}, of CuPy's float64 statements", ratio, 1.0, -1,
           note=f"{1e9 * ours / size:.3f} ns per element")  # fmt: skip


def mlp(widths, rng):
    pairs = pairwise(widths)
    return [
        {"w": (rng.standard_normal(k) / np.sqrt(k[0])).astype(np.float32),
         "b": np.zeros(k[1], np.float32)}
        for k in pairs
    ]  # fmt: skip


def mlp_loss(params, hyper, batch):
    x, y = batch
    for layer in params[:-1]:
        x = np.tanh(x @ layer["w"] + layer["b"])
    z = x @ params[-1]["w"] + params[-1]["b"]
    z = z - np.max(z, axis=1, keepdims=True)
    return -np.mean(np.sum(y * (z - np.log(np.sum(np.exp(z), axis=1, keepdims=True))), axis=1))


def hypergradient(put, widths, steps, batch=200, examples=10_000, optimizer=None, adjoint=None):
    """(Seconds of a hypergradient, of plain training, the report)."""
    rng = np.random.default_rng(0)
    x = put(rng.random((examples, widths[0]), np.float32))
    y = put(np.eye(widths[-1], dtype=np.float32)[rng.integers(0, widths[-1], examples)])
    params = [{k: put(v) for k, v in layer.items()} for layer in mlp(widths, rng)]
    batches, found = rg.minibatches((x, y), batch, seed=1), rg.Report()
    make = optimizer or (lambda rate: rg.Momentum(rg.per_step(rate), 0.9))

    def trained(rate):
        return rg.train(mlp_loss, params, make(rate), batches, steps=steps, report=found,
                        adjoint=adjoint or rg.Reversible())  # fmt: skip

    def hyperloss(rate):
        return mlp_loss(trained(rate), None, (x[:batch], y[:batch]))

    rate, took = np.full(steps, 0.05), []
    for work in (hyperloss, rg.value_and_grad(hyperloss)):
        began = time.perf_counter()
        value = work(rate)
        float(value[0] if isinstance(value, tuple) else value)
        took.append(time.perf_counter() - began)
    return took[1], took[0], found


def whole_runs(cupy, quick):
    steps = 20 if quick else 1000
    widths = (784, 50, 50, 50, 10)
    hypergradient(cupy.asarray, widths, steps)  # compiles
    there, plain, found = hypergradient(cupy.asarray, widths, steps)
    note = f"{there / plain:.2f} of plain training; returned {found.returned_exactly}"
    report(f"hypergradient of the paper's MLP, T = {steps}, seconds", there, note=note)
    here, _, _ = hypergradient(lambda x: x, widths, steps)
    report("the same on this machine's CPU, seconds", here)
    if not quick:
        wide = (784, 3000, 2400, 10)
        peak = memory(cupy, lambda: hypergradient(cupy.asarray, wide, 10_000, batch=64))
        report("10^7 weights, T = 10^4, reversed: device memory in GB", peak, 1.0, -1)


def memory(cupy, work):
    """The most device memory that CuPy's pool held, in GB."""
    pool = cupy.get_default_memory_pool()
    pool.free_all_blocks()
    work()
    return pool.total_bytes() / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    interop.on_gpu(None)
    import cupy

    sizes = (3000,) if options.quick else (10**6, 10**7, 10**8)
    times = 2 if options.quick else 50
    for size in sizes:
        scale(cupy, size, times)
        momentum_step(cupy, size, times)
    whole_runs(cupy, options.quick)
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    facts = {
        "date": time.strftime("%Y-%m-%d"), "GPU": properties["name"].decode(),
        "CuPy": cupy.__version__, "NumPy": np.__version__, "revgrad": rg.__version__,
        "driver": cupy.cuda.runtime.driverGetVersion(), "machine": platform.platform(),
        "rows": ROWS,
    }  # fmt: skip
    if options.json:
        options.json.parent.mkdir(exist_ok=True)
        options.json.write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
