"""Exact arithmetic against NumPy in the same run: speed, bits and bytes, by instruction set.

    python benchmarks/bench_exact.py [--quick] [--json PATH]

Controls and ours take turns; a ratio is the median of the turns' ratios, p10 to p90 beside it. A
budget is met (yes) or not (NO); a dash has none.
"""

import argparse
import json
import platform
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import revgrad
from revgrad._ext import kernel
from revgrad.buffer import InformationBuffer, threads
from revgrad.fixed import FixedArray, FusedStep
from revgrad.optimizers import Adam, Momentum
from revgrad.ratio import Ratio

RATIO = Ratio(58982, 65536)
SPILL_PERIOD = 106  # steps in which every head spills once: 16 bits / 0.152
ROWS = []


def report(what, ratio, budget=None, sense=1, note=""):
    """One row; ratio: a number, or the turns' ratios; sense 1: at least the budget, -1: at most."""
    low, middle, high = np.percentile(np.atleast_1d(ratio), [10, 50, 90])
    met = "-" if budget is None else "yes" if sense * (middle - budget) >= 0 else "NO"
    limit = "" if budget is None else f"{'>=' if sense > 0 else '<='} {budget:g}"
    print(
        f"{what:<58}{middle:>9.3f}  [{low:.3f}, {high:.3f}]  {limit:>8} {met:>4}  {note}",
        flush=True,
    )
    ROWS.append(
        {"what": what, "median": middle, "p10": low, "p90": high, "budget": limit, "met": met,
         "note": note}
    )  # fmt: skip


def timed(function, times, clock=time.thread_time):
    """Seconds a call: of this thread's processor, which other processes cannot take away."""
    start = clock()
    for _ in range(times):
        function()
    return (clock() - start) / times


def start(size, many=False):
    """Integers, a buffer and a ratio as training has them."""
    rng = np.random.default_rng(size)
    x = rng.integers(-(2**58), 2**58, size)
    ratio = Ratio.of(rng.uniform(0.85, 0.95, size)) if many else RATIO
    return x, InformationBuffer(size), ratio


class Reals:
    """The control: one in-place float64 multiply at 10^7, timed in every turn."""

    def __init__(self, size):
        self.x, self.y = np.ones(size), np.ones(size)

    def multiply(self):
        return timed(lambda: np.multiply(self.x, 1.0000001, out=self.x), 3) / self.x.size

    def copy(self):
        return timed(lambda: np.copyto(self.y, self.x), 3) / self.x.size


def turns_of(control, function, x, ratio, steps):
    """([time of the control's element / ours], [our seconds per element and step])."""
    ratios, seconds, done = [], [], 0
    while done < steps:
        now = min(max(1, 10**6 // x.size), steps - done)
        real = control.multiply()
        if x.size < 10**6:  # the control has swept the caches: one step to fill them again
            function(x, ratio)
            done += 1
            now = min(now, steps - done)
        took = [timed(lambda: function(x, ratio), 1) / x.size for _ in range(now)]
        if not took:
            break
        ratios.append(real / np.mean(took))
        seconds += took
        done += now
    return ratios, seconds


def bench_scale(control, sizes, periods, many=False):
    budgets = {"avx512": 0.35 if many else 0.5, "avx2": None if many else 0.3}
    budgets["baseline"] = None if many else 0.15
    for isa in reversed(kernel.instruction_sets()):
        kernel.instruction_set(isa)
        for size in sizes:
            x, buffer, ratio = start(size, many)
            first = x.copy()
            short = size >= 10**6 and isa != "avx512"
            steps = int(SPILL_PERIOD * (1 if short else periods))
            down, times = turns_of(control, buffer.multiply, x, ratio, steps)
            up, _ = turns_of(control, buffer.divide, x, ratio, steps)
            assert np.array_equal(x, first) and buffer.bits == 0
            kind = "a ratio per element" if many else "58982/65536"
            mean, worst = np.mean(times), max(times)
            moved = (24 + 4 * many) / mean / 1e9
            note = (
                f"{mean * 1e9:.2f} ns, worst step {worst / mean:.2f} times that, {moved:.0f} GB/s"
            )
            report(f"scale, {isa}, {size:.0e}, {kind}: speed of *=", down, budgets[isa], note=note)
            limit = None if budgets[isa] is None else 0.8 * budgets[isa]
            report("  its undo: speed of *= (0.8 of that budget)", up, limit)
            report("  its undo: speed of scale", np.median(up) / np.median(down))


def numpy_momentum(size):
    v, p, g, space = (np.full(size, 0.5) for _ in range(4))

    def step():
        np.multiply(v, 0.9, out=v)
        np.multiply(g, -0.1, out=space)
        np.add(v, space, out=v)
        np.multiply(v, 1e-3, out=space)
        np.add(p, space, out=p)

    return step


def numpy_adam(size):
    m, v, p, g, space, other = (np.full(size, 0.5) for _ in range(6))

    def step():
        np.multiply(m, 0.9, out=m)
        np.multiply(g, 0.1, out=space)
        np.add(m, space, out=m)
        np.multiply(v, 0.999, out=v)
        np.multiply(g, g, out=space)
        np.multiply(space, 0.001, out=space)
        np.add(v, space, out=v)
        np.divide(v, 0.003, out=space)
        np.sqrt(space, out=space)
        np.add(space, 1e-8, out=space)
        np.divide(m, 0.27, out=other)
        np.multiply(other, -1e-3, out=other)
        np.divide(other, space, out=other)
        np.add(p, other, out=p)

    return step


STEPS = {
    "momentum": (Momentum(1e-3).statements, {"learning_rate": 1e-3, "momentum": RATIO.value},
                 numpy_momentum),
    "adam": (Adam(1e-3).statements,
             {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "t": 3}, numpy_adam),
}  # fmt: skip


def step_turns(reals, step, back, inputs, ratios, out, turns):
    """([time of ours / the control's], the same of the undo, [our nanoseconds per element])."""
    times, ahead, behind, ns = max(1, 2 * 10**6 // out.size), [], [], []
    for _ in range(turns):
        real = timed(reals, times)
        took = timed(lambda: step.run(inputs, ratios, {"params": out}), times)
        ahead.append(took / real)
        behind.append(timed(lambda: back.run(inputs, ratios), times) / real)
        ns.append(took / out.size * 1e9)
    return ahead, behind, ns


def bench_fused(name, sizes, turns, budgets):
    statements, reads, control = STEPS[name]
    for isa in reversed(kernel.instruction_sets()):
        kernel.instruction_set(isa)
        for size in sizes:
            names = dict.fromkeys(s.target for s in statements)
            state = {k: FixedArray.encode(np.full(size, 0.25), 52) for k in names}
            buffers = {s.target: InformationBuffer(size) for s in statements if hasattr(s, "by")}
            ratios = dict.fromkeys(buffers, RATIO)
            if name == "adam":
                ratios = {"first_moment": Ratio(58982, 65536), "second_moment": Ratio(65470, 65536)}
            g, out = np.full(size, 0.01), np.empty(size, np.float32)
            step = FusedStep(statements, state, buffers)
            back = FusedStep(statements[::-1], state, buffers, undone=True)
            assert step.fused(reads | {"g": g}, ratios)
            ahead, behind, ns = step_turns(
                control(size), step, back, reads | {"g": g}, ratios, out, turns
            )
            budget = budgets.get(size) if isa == "avx512" else None
            report(f"fused {name} step, {isa}, {size:.0e}: time of NumPy's", ahead, budget, -1,
                   f"{np.median(ns):.2f} ns")  # fmt: skip
            report("  its undo: time of NumPy's step", behind)


def bench_python_integers(turns):
    """One Python integer per element, as in 2015: the same arithmetic in a list."""
    size = 20_000
    x, buffer, ratio = start(size)
    big, integers = [0] * size, x.tolist()
    n, d = ratio.n, ratio.d

    def scale():
        for i, value in enumerate(integers):
            big[i], s = divmod(big[i] * d + value % d, n)
            integers[i] = value // d * n + s

    ratios = [timed(scale, 1) / timed(lambda: buffer.multiply(x, ratio), 20) for _ in range(turns)]
    report("scale: times faster than one Python integer per element", ratios, 100)


def bench_threads(size, turns, budget=None):
    """Beside what `*=` gains on halves: where it is large, all that memory gives."""
    x, buffer, ratio = start(size)
    before, ratios, back, bound = threads(), [], [], []
    reals = np.ones(size)
    halves = reals[: size // 2], reals[size // 2 :]
    pool = ThreadPoolExecutor(1)

    def one():
        np.multiply(reals, 0.9999, out=reals)

    def two():
        other = pool.submit(np.multiply, halves[0], 0.9999, halves[0])
        np.multiply(halves[1], 0.9999, out=halves[1])
        other.result()

    for _ in range(turns):
        took = {}
        for count in (1, 2):
            threads(count)
            took[count] = timed(lambda: buffer.multiply(x, ratio), 2, time.perf_counter)
            took[-count] = timed(lambda: buffer.divide(x, ratio), 2, time.perf_counter)
        ratios.append(took[1] / took[2])
        back.append(took[-1] / took[-2])
        bound.append(timed(one, 2, time.perf_counter) / timed(two, 2, time.perf_counter))
    threads(before)
    pool.shutdown()
    report(f"two threads, {size:.0e}: times the speed of one", ratios, budget)
    report("  undo: times the speed of one", back)
    report("  in-place float64 *= of two threads: times the speed of one", bound)


def bench_bits(steps):
    momenta = [0.5, 0.9, 0.98, 0.99, 0.999]
    rng = np.random.default_rng(0)
    cases = {str(m): Ratio.of(m) for m in momenta}
    cases["random per element"] = Ratio.of(rng.uniform(0.5, 0.9999, 1000))
    for name, ratio in cases.items():
        x, buffer, _ = start(1000)
        for _ in range(steps):
            buffer.multiply(x, ratio)
        wanted = float(np.sum(np.broadcast_to(-np.log2(ratio.value), 1000))) * steps
        held = buffer.nbytes - buffer.bits / 8 - 4000
        report(f"bits, momentum {name}: of sum log2(d/n)", buffer.bits / wanted, 1.001, -1,
               f"{buffer.bits / 1000 / steps:.4f} bits a step; bytes above them {held / 2**21:.2f} "
               "of a segment")  # fmt: skip


def bench_long(size, steps):
    """The last tenth of the steps against the first."""
    x, buffer, ratio = start(size)
    for name, function in (("forwards", buffer.multiply), ("backwards", buffer.divide)):
        tenths = [timed(lambda f=function: f(x, ratio), steps // 10) for _ in range(10)]
        report(f"{size:.0e} elements, {steps:.0e} steps {name}: last tenth of first",
               tenths[-1] / tenths[0], 1.2, -1)  # fmt: skip


def commit():
    run = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True,
        cwd=Path(__file__).parent,
    )  # fmt: skip
    return run.stdout.strip()


def main(quick=False, path=None):
    best, before = kernel.instruction_set(), threads()
    threads(1)
    large = 10**6 if quick else 10**7
    turns = 5 if quick else 25
    control = Reals(large)
    machine = {
        "machine": platform.machine(), "instruction set": best, "compiler": kernel.COMPILER,
        "numpy": np.__version__, "revgrad": revgrad.__version__, "commit": commit(),
        "copy GB/s": 16 / control.copy() / 1e9, "*= GB/s": 16 / control.multiply() / 1e9,
    }  # fmt: skip
    print("  ".join(f"{name} {value}" for name, value in machine.items()))
    if quick:
        print("quick: sizes are small, so the budgets, meant for 10^7 from memory, say little")
    sizes = [10**5] if quick else [10**5, large]
    bench_scale(control, sizes, 1 if quick else 10)
    bench_scale(control, sizes, 1 if quick else 10, many=True)
    fused_sizes = [10**4] if quick else [10**4, 10**5, large]
    bench_fused("momentum", fused_sizes, turns, {10**4: 1.5, 10**5: 1.5, 10**7: 0.8})
    bench_fused("adam", fused_sizes, turns, {10**4: 1.0, 10**5: 1.0, 10**7: 1.0})
    kernel.instruction_set(best)
    bench_python_integers(turns)
    bench_threads(large // 5, turns)
    bench_threads(large, turns, 1.5)
    bench_bits(1000 if quick else 10_000)
    bench_long(10**4, 1000 if quick else 100_000)
    threads(before)
    if path:
        Path(path).write_text(json.dumps({"machine": machine, "rows": ROWS}, indent=1) + "\n")
    return ROWS


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, a few seconds")
    parser.add_argument("--json", metavar="PATH", help="also write the rows there")
    options = parser.parse_args()
    main(options.quick, options.json)
