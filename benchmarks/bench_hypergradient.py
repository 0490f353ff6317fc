"""A hypergradient through training: revgrad against JAX, PyTorch, autograd and hand-written NumPy.

    python benchmarks/bench_hypergradient.py --quick            the MLP in float32, a minute
    python benchmarks/bench_hypergradient.py [--problem lenet] [--dtype float64] [--steps 1000]
    python benchmarks/bench_hypergradient.py --memory           peaks at 10,000 steps, momenta 0.9
    python benchmarks/bench_hypergradient.py --scaling          docs/scaling.png

Every contestant has a process of its own, told to run by this one: a round is one run of each, so
that what disturbs the machine hits all alike. Ratios are of times in one round; the bracket is
their 10th to 90th percentile. Values are compared before times are taken: the hypergradient's
relative error is that against the first contestant, of the same dtype, after at most as many steps
as rounding lets the runs stay together (`compared` in peers/problems.py). Building, compiling and
the first run are not counted but stated. "/ JAX" is by the better of JAX's two, "/ plain" by the
fastest loop that only trains, both in median. Peaks are of one run, above what its process held
before it. Everything in it gets --threads cores (default: all). See `peers` for the contestants and
`peers/problems.py` for the problems.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import time
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
from peers.problems import PROBLEMS, has_mnist
from peers.worker import OURS, PLAIN, THEIRS, Contestant, Missing

QUICK = ("jax", "jax-remat", "torch", "autograd", "numpy-hand", "reversible", "numpy-plain")
MEMORY = ("plain", "jax-plain", "reversible", "checkpointed", "stored", "jax-remat", "jax")
TOLERANCES = {"float32": 1e-3, "float64": 1e-8}  # of the hypergradient, in the 2-norm
VALUES = {"float32": 1e-4, "float64": 1e-9}  # of the final loss
SLOW = 30  # a contestant so many times slower than the fastest runs in two rounds alone
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
COLUMNS = ("problem", "dtype", "T", "contestant", "ms", "/ JAX", "/ plain", "peak MB", "error")


def main():
    options = parse()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(options.threads)
    if options.scaling:
        from peers import scaling
        from threadpoolctl import threadpool_limits

        threadpool_limits(options.threads)  # NumPy is there already
        rows = scaling.draw(options.scaling, not options.full, CLOCKS[options.clock])
    else:
        rows = contests(options)
    if options.json:
        record = json.dumps({"about": facts(options), "rows": rows}, indent=1)
        Path(options.json).write_text(record, encoding="utf-8")


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="the MLP in float32, few rounds")
    add("--problem", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    add("--dtype", nargs="+", choices=TOLERANCES, default=list(TOLERANCES))
    add("--steps", nargs="+", type=int, default=[None], help="default: the problem's own")
    add("--rounds", type=int, default=15)
    add("--peers", nargs="+", choices=(*THEIRS, *OURS, *PLAIN), help="contestants, ours included")
    add("--threads", type=int, default=os.cpu_count())
    help = "cpu: of all of a process's threads; for --threads 1 on a machine that is busy"
    add("--clock", choices=CLOCKS, default="wall", help=help)
    add("--patience", type=float, default=300, help="seconds that building and one run may take")
    add("--budget", type=float, default=120, help="seconds after which no further round begins")
    add("--gigabytes", type=float, help="memory of one contestant; default: 0.6 of what is free")
    add("--memory", action="store_true", help="peak memory at 10,000 steps of the MLP, float32")
    docs = Path(__file__).parents[1] / "docs"
    add("--scaling", nargs="?", const=str(docs / "scaling.png"), metavar="PATH")
    add("--full", action="store_true", help="--scaling at full size")
    add("--json", metavar="PATH")
    options = parser.parse_args()
    if options.quick or options.memory:
        options.problem, options.dtype = ["mlp-0.9" if options.memory else "mlp"], ["float32"]
    if options.quick:
        options.rounds = min(options.rounds, 4)
        options.patience, options.budget = min(options.patience, 30), min(options.budget, 12)
    if options.memory:
        options.rounds = 0
        options.steps = [10_000] if options.steps == [None] else options.steps
    default = QUICK if options.quick else MEMORY if options.memory else (*THEIRS, *OURS, *PLAIN)
    options.peers = options.peers or default
    return options


def contests(options):
    if not has_mnist():
        print("MNIST was not found (REVGRAD_DATA); random images stand in for it.\n")
    skipped, rows = [], []
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    for problem in options.problem:
        for dtype in options.dtype:
            for steps in options.steps:
                steps = steps or PROBLEMS[problem].steps
                found, why = contest(options, problem, dtype, steps)
                rows += found
                skipped += why
                for row in found:
                    print(markdown(row), flush=True)
    print(f"\nerror: of the hypergradient; at most {TOLERANCES} and, of the value, {VALUES}")
    builds = ", ".join(f"{r['contestant']} {r['build_s']:.1f}" for r in rows)
    print(f"seconds to build, compile and run once: {builds}")
    if options.memory:
        print_memory(rows)
    for line in dict.fromkeys(skipped):
        print("skipped:", line)
    return rows


def contest(options, problem, dtype, steps):
    """(rows, reasons why some are missing) of one problem."""
    contestants, starts, why = [], {}, []
    limit = int(2**30 * options.gigabytes) if options.gigabytes else int(0.6 * free())
    for name in options.peers:
        one = Contestant(name, problem, steps, dtype, options.threads, limit, options.clock)
        try:
            starts[name] = one.start(options.patience)
            contestants.append(one)
            if options.memory:  # one at a time: ten thousand steps take room
                one.stop()
        except Missing as error:
            one.stop()
            why.append(f"{name} ({problem}, {dtype}, {steps} steps): {error}")
    try:
        errors = compare(starts, dtype)
        race(contestants, options.rounds, options.budget, 2 * options.patience)
    finally:
        for one in contestants:
            one.stop()
    where = {"problem": problem, "dtype": dtype, "steps": steps}
    times = {one.name: np.array(one.times) for one in contestants}
    return [where | row(n, times, starts[n], errors[n]) for n in times], why


def free():
    """Bytes that could be had now; much where no one can say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 2**36
    return next(1024 * int(s.split()[1]) for s in lines if s.startswith("MemAvailable"))


def compare(starts, dtype):
    """Relative error of each hypergradient, None for those that only train. Raises: SystemExit."""
    errors, reference, value = {}, None, None
    for name, found in starts.items():
        value = found["value"] if value is None else value
        off = abs(found["value"] - value) / max(1e-30, abs(value))
        if not off <= VALUES[dtype]:
            raise SystemExit(f"{name}: its final loss is {found['value']}, not {value}")
        g = found["gradient"]
        if g is None:
            errors[name] = None
            continue
        reference = g if reference is None else reference
        errors[name] = float(np.linalg.norm(g - reference) / np.linalg.norm(reference))
        if not errors[name] <= TOLERANCES[dtype]:
            raise SystemExit(f"{name}: its hypergradient is off by {errors[name]:.2g}")
    return errors


def race(contestants, rounds, budget, patience):
    """One run of each per round, in random order; NaN where a slow one sat out."""
    order, began = random.Random(0), time.perf_counter()
    for k in range(rounds):
        if time.perf_counter() - began > budget:
            return
        fastest = min((np.nanmedian(c.times) for c in contestants if c.times), default=0)
        for one in order.sample(contestants, len(contestants)):
            if k >= 2 and np.nanmedian(one.times) > SLOW * fastest:
                one.times.append(np.nan)
            else:
                one.run(patience)


def row(name, times, start, error):
    middle = lambda t: float(1e3 * np.nanmedian(t)) if len(t) else None
    return {
        "contestant": name,
        "ms": middle(times[name]),
        "ms_p10_p90": spread(1e3 * times[name])[1:] if len(times[name]) else None,
        "over_jax": ratio(name, times, [n for n in ("jax", "jax-remat") if n in times]),
        "over_plain": ratio(name, times, [n for n in PLAIN if n in times]),
        "peak_mb": start["peak"] / 2**20,
        "error": error,
        "build_s": start["build"],
        "value": start["value"],
        "times_s": [None if np.isnan(t) else t for t in times[name].tolist()],
    }


def spread(x):
    """[median, p10, p90]."""
    return [float(q) for q in np.nanpercentile(x, [50, 10, 90])]


def ratio(name, times, controls):
    """[control, median, p10, p90] of the ratio to the fastest of the controls."""
    if not controls or not len(times[name]):
        return None
    control = min(controls, key=lambda n: np.nanmedian(times[n]))
    return [control, *spread(times[name] / times[control])]


def markdown(r):
    def shown(found):
        if not found:
            return ""
        name, middle, low, high = found
        best = " (it)" if name == r["contestant"] else ""
        return f"{middle:.2f} ({low:.2f}-{high:.2f}){best}"

    ms = "" if r["ms"] is None else "{:.1f} ({:.1f}-{:.1f})".format(r["ms"], *r["ms_p10_p90"])
    cells = [r["problem"], r["dtype"], r["steps"], r["contestant"], ms]
    cells += [shown(r["over_jax"]), shown(r["over_plain"]), f"{r['peak_mb']:.1f}"]
    cells.append("" if r["error"] is None else f"{r['error']:.0e}")
    return "| " + " | ".join(map(str, cells)) + " |"


def print_memory(rows):
    """Peaks beyond those of plain training, measured, beside what storing would take, computed."""
    plain = {r["contestant"]: r["peak_mb"] for r in rows if r["contestant"] in PLAIN}
    print(
        "\n| contestant | peak MB beyond plain training | seconds to build and run |\n|---|---|---|"
    )
    for r in rows:
        name = r["contestant"]
        if name not in plain:
            own = plain.get("jax-plain" if name.startswith("jax") else "plain", 0.0)
            print(f"| {name} | {r['peak_mb'] - own:.1f} | {r['build_s']:.0f} |")
    weights, steps = 784 * 50 + 2 * 50 * 50 + 500 + 160, rows[0]["steps"] if rows else 0
    print(f"storing float32 params and velocity, computed: {8 * weights * steps / 1e6:.0f} MB")


def facts(options):
    """What a number means nothing without."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    names = ("revgrad", "numpy", "jax", "jaxlib", "torch", "autograd")
    return {
        "machine": processor(),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "clock": options.clock,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in names},
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [s.split(":")[1].strip() for s in lines if s.startswith("model name")]
    return names[0] if names else platform.machine()


def installed(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
