"""The exact arithmetic and whole hypergradients on a GPU, beside what the device and others can do.

    python benchmarks/bench_gpu.py [--quick] [--json PATH] [--seconds N]

Controls run in the same process, in turns with ours; a ratio is the median of the turns'. A budget
is met (yes) or not (NO); a part that fails is a row that says how, and the others go on. Data are
random, of MNIST's shape, where MNIST is not found. The record is written after every row. Parts for
which no time is left are skipped. --dry: JAX and PyTorch on the CPU, to try all this without a GPU.
"""

import argparse
import json
import os
import platform
import subprocess
import time
import traceback
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path

import numpy as np
from peers import on_gpu

import revgrad as rg
from revgrad import interop
from revgrad.buffer import InformationBuffer
from revgrad.fixed import FixedArray, FusedStep
from revgrad.ratio import Ratio

RATIO, TURNS = Ratio(9, 10), 7
RECORD = {"rows": []}


def report(what, value, budget=None, sense=1, note=""):
    """One row; sense 1: at least the budget, -1: at most. value: None where there is none."""
    met = "-" if budget is None else "NO"
    if budget is not None and value is not None and sense * (value - budget) >= 0:
        met = "yes"
    limit = "" if budget is None else f"{'>=' if sense > 0 else '<='} {budget:g}"
    shown = "" if value is None else f"{value:.3f}"
    print(f"{what:<72}{shown:>10}  {limit:>7} {met:>4}  {note}", flush=True)
    RECORD["rows"].append({"what": what, "value": None if value is None else float(value),
                           "budget": limit, "met": met, "note": note})  # fmt: skip
    write()


def write():
    path = RECORD.get("path")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {k: v for k, v in RECORD.items() if k != "path"}
        path.with_suffix(".part").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        path.with_suffix(".part").replace(path)


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


def hypergradient(put, widths, steps, batch=200, examples=10_000, optimizer=None, plain=True):
    """(Seconds of a hypergradient, of plain training or None, the report)."""
    rng = np.random.default_rng(0)
    x = put(rng.random((examples, widths[0]), np.float32))
    y = put(np.eye(widths[-1], dtype=np.float32)[rng.integers(0, widths[-1], examples)])
    params = [{k: put(v) for k, v in layer.items()} for layer in mlp(widths, rng)]
    batches, found = rg.minibatches((x, y), batch, seed=1), rg.Report()
    make = optimizer or (lambda rate: rg.Momentum(rg.per_step(rate), 0.9))

    def hyperloss(rate):
        trained = rg.train(mlp_loss, params, make(rate), batches, steps=steps, report=found,
                           adjoint=rg.Reversible())  # fmt: skip
        return mlp_loss(trained, None, (x[:batch], y[:batch]))

    rate, took = np.full(steps, 0.05 if optimizer is None else 1e-4), []
    for work in (hyperloss, rg.value_and_grad(hyperloss))[not plain :]:
        began = time.perf_counter()
        value = work(rate)
        float(value[0] if isinstance(value, tuple) else value)
        took.append(time.perf_counter() - began)
    return took[-1], took[0] if plain else None, found


def gradients(cupy, quick):
    """A replay of the gradient of the paper's MLP, as one graph and launch by launch."""
    rng = np.random.default_rng(0)
    batch = (
        cupy.asarray(rng.random((200, 784), np.float32)),
        cupy.asarray(np.eye(200, 10, dtype="f")),
    )
    params = [{k: cupy.asarray(v) for k, v in layer.items()} for layer in mlp(MLP, rng)]
    works, before = [], os.environ.get("REVGRAD_GRAPHS")
    for graphs in "10":
        os.environ["REVGRAD_GRAPHS"] = graphs
        f = rg.compile(lambda params, batch: rg.grad(mlp_loss)(params, None, batch))
        works.append(lambda f=f: f(params, batch))
        for _ in range(4):
            works[-1]()
        if graphs == "1":
            (why,) = {entry.replay().graphs.why for entry in f.entries.values()}
    os.environ.pop("REVGRAD_GRAPHS")
    if before is not None:
        os.environ["REVGRAD_GRAPHS"] = before
    ours, ratio = turns(cupy, *works, 2 if quick else 200)
    note = f"{1e6 * ours:.0f} us; " + (f"no graph: {why}" if why else "one graph")
    report("gradient of the paper's MLP, of launch by launch", ratio, note=note)


MLP = (784, 50, 50, 50, 10)


def paper(cupy, quick):
    """The paper's MLP beside plain training and this machine's CPU."""
    steps = 20 if quick else 1000
    hypergradient(cupy.asarray, MLP, steps)  # compiles
    there, plain, found = hypergradient(cupy.asarray, MLP, steps)
    note = f"{there / plain:.2f} of plain training; returned {found.returned_exactly}"
    report(f"hypergradient of the paper's MLP, T = {steps}, seconds", there, note=note)
    here, _, _ = hypergradient(lambda x: x, MLP, steps)
    report("the same on this machine's CPU, seconds", here)


def others(cupy, name, options, deadline):
    """The hypergradient of schedules per step and leaf, beside JAX and PyTorch."""
    steps, rounds = (2, 1) if options.quick else (1000, 5)
    names = (*on_gpu.JAX[: 4 if name == "lenet" else 2], *on_gpu.TORCH)
    device = {"jax": "cuda", "torch": "cuda"} if not options.dry else {"jax": "cpu", "torch": "cpu"}
    builds, missing = on_gpu.builders(() if options.alone else names, cupy.asarray, device)
    kind = on_gpu.problem(name, options.quick)
    times, said = on_gpu.contest(kind, steps, builds, deadline, rounds)
    middle = {k: float(np.median(v)) for k, v in times.items() if v}
    for k in builds:
        report(f"{name}, T = {steps}, hypergradient by {k}, seconds", middle.get(k), note=said[k])
    for k, why in missing.items():
        report(f"{name}, T = {steps}, hypergradient by {k}, seconds", None, note=why)
    rivals = (("JAX jit", on_gpu.JAX, 1.0), ("PyTorch unrolled", ("torch",), 0.3))
    for rival, group, budget in rivals:
        best = min((middle[k] for k in group if k in middle), default=None)
        ours = middle.get("revgrad")
        if best and ours:
            report(f"{name}, T = {steps}, revgrad of {rival}", ours / best, budget, -1)
        else:
            report(f"{name}, T = {steps}, revgrad of {rival}", None, note="one of them is missing")


LARGE = {
    "10^7 weights": ((784, 3100, 2450, 10), 10_000, None, 1.0),
    "10^8 weights, Adam": ((784, 12_000, 7500, 10), 1000, lambda r: rg.Adam(rg.per_step(r)), None),
}


def large(cupy, name, quick, end):
    """Whole hypergradients of large networks, reversed exactly; what of the device they took."""
    widths, steps, optimizer, budget = LARGE[name]
    if quick:
        widths, steps = (20, 30, 20, 10), 12
    size = sum(n * m + m for n, m in pairwise(widths))
    what = f"{name} ({size:.2g}), T = {steps}"
    run = lambda steps: hypergradient(cupy.asarray, widths, steps, 64, 6400, optimizer, plain=False)
    pool, few = cupy.get_default_memory_pool(), max(4, steps // 100)
    wanted = run(few)[0] / few * steps
    if time.perf_counter() + wanted > end:
        return report(what, None, note=f"skipped: {wanted:.0f} s would be needed")
    pool.free_all_blocks()
    free, _ = cupy.cuda.runtime.memGetInfo()
    took, _, found = run(steps)
    taken, held = free - cupy.cuda.runtime.memGetInfo()[0], pool.total_bytes() / 1e9
    note = f"returned {found.returned_exactly}; {took:.1f} s; CuPy's pool {held:.2f} GB; "
    note += f"kept {found.bits / 8e9:.2f} GB, storing states {found.bytes_stored / 1e9:.0f} GB"
    return report(f"{what}: device memory in GB", taken / 1e9, budget, -1, note)


def facts(cupy):
    """What a number means nothing without."""
    runtime = cupy.cuda.runtime
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "GPU": runtime.getDeviceProperties(0)["name"].decode(),
        "memory_GB": runtime.memGetInfo()[1] / 1e9,
        "driver": runtime.driverGetVersion(), "CUDA": runtime.runtimeGetVersion(),
        "versions": {"CuPy": cupy.__version__} | {
            k: installed(k) for k in ("revgrad", "numpy", "jax", "jaxlib", "torch")
        },
        "settings": {k: os.environ.get(k) for k in ("CUBLAS_WORKSPACE_CONFIG", "CUPY_TF32")},
        "machine": platform.platform(), "python": platform.python_version(),
        "commit": done.stdout.strip(),
    }  # fmt: skip


def installed(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def parts(cupy, options, deadline):
    """What is to be done, most wanted first: (name, function)."""
    sizes = (3000,) if options.quick else (10**6, 10**7, 10**8)
    times = 2 if options.quick else 50
    for size in sizes:
        yield f"scale {size}", lambda size=size: scale(cupy, size, times)
        yield f"step {size}", lambda size=size: momentum_step(cupy, size, times)
    yield "gradients", lambda: gradients(cupy, options.quick)
    yield "paper", lambda: paper(cupy, options.quick)
    for k, name in enumerate(("mlp", "lenet")):  # which leave half of the time to what follows
        yield name, lambda name=name, k=k: others(cupy, name, options, deadline(4 - k))
    for name in LARGE:
        yield name, lambda name=name: large(cupy, name, options.quick, deadline(1))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dry", action="store_true", help="JAX and PyTorch on the CPU")
    parser.add_argument("--alone", action="store_true", help="without JAX and PyTorch")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seconds", type=float, default=330, help="after which nothing is begun")
    options = parser.parse_args()
    interop.on_gpu(None)
    import cupy

    end, failed = time.perf_counter() + options.seconds, False
    share = lambda k: time.perf_counter() + (end - time.perf_counter()) / k
    RECORD.clear()
    RECORD.update(facts(cupy) | {"path": options.json, "rows": [], "seconds": {}})
    for name, work in parts(cupy, options, share):
        began = time.perf_counter()
        if began > end:
            report(name, None, note="skipped: no time was left")
            continue
        try:
            work()
        except Exception as error:  # the other parts go on
            failed = True
            traceback.print_exc()
            report(name, None, note=f"failed: {type(error).__name__}: {error}")
        cupy.get_default_memory_pool().free_all_blocks()
        RECORD["seconds"][name] = time.perf_counter() - began
    write()
    if failed:
        raise SystemExit("a part failed, see above")


if __name__ == "__main__":
    main()
