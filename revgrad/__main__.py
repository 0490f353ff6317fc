"""python -m revgrad: what this installation is, and ten seconds of its laws on this machine."""

from __future__ import annotations

import argparse
import platform
import sys
import sysconfig
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from revgrad import __version__
from revgrad._ext import kernel, reference
from revgrad._ext.homes import devices
from revgrad.buffer import SEGMENT_BYTES, BignumBuffer, InformationBuffer, threads
from revgrad.fixed import FixedArray, FusedStep
from revgrad.optimizers import Momentum
from revgrad.ratio import Ratio

SECONDS = 10.0


def facts() -> dict[str, str]:
    """What a bug report should say."""
    sets = getattr(kernel, "instruction_sets", list)()
    in_use = getattr(kernel, "instruction_set", lambda: "plain Python")()
    return {
        "revgrad": __version__,
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "NumPy": np.__version__,
        "compiler": getattr(kernel, "COMPILER", "none"),
        "Python's compiler": str(sysconfig.get_config_var("CC")),
        "instruction set": f"{in_use} (of {', '.join(sets) or 'none'})",
        "threads": str(threads()),
        "GPU": devices(),
    }


def returns_exactly(rng: np.random.Generator) -> None:
    """Law 1: momentum steps and their undo."""
    size = int(rng.integers(1, 3000))
    names = ("velocity", "params")
    state = {k: FixedArray.encode(rng.standard_normal(size), 52) for k in names}
    buffers: dict[str, Any] = {"velocity": InformationBuffer(size)}
    start = [x.values.copy() for x in state.values()], buffers["velocity"].digest()
    reads = {"learning_rate": 0.1, "momentum": float(rng.uniform(0.01, 1))}
    ratios = {"velocity": Ratio.of(reads["momentum"])}
    gradients = rng.standard_normal((30, size))
    statements = Momentum(0.1).statements
    step = FusedStep(statements, state, buffers)
    back = FusedStep(statements[::-1], state, buffers, undone=True)
    for g in gradients:
        step.run(reads | {"g": g}, ratios)
    for g in gradients[::-1]:
        back.run(reads | {"g": g}, ratios)
    for values, x in zip(start[0], state.values(), strict=True):
        assert np.array_equal(values, x.values), "the state did not return"
    assert buffers["velocity"].digest() == start[1], "the buffer did not return"


def spends_no_more_than_it_must(rng: np.random.Generator) -> None:
    """Law 2: bits grow by log2(d/n), and bytes follow."""
    factor = float(rng.choice([0.5, 0.9, 0.98, 0.99]))
    ratio, buffer = Ratio.of(factor), InformationBuffer(500)
    x = rng.integers(-(2**60), 2**60, 500)
    steps = int(4000 / -np.log2(factor) / 16) + 1
    for _ in range(steps):
        buffer.multiply(x, ratio)
    wanted = -np.log2(ratio.value) * 500 * steps
    assert abs(buffer.bits - wanted) <= 5e-3 * wanted, f"{buffer.bits} bits for {wanted}"
    assert buffer.nbytes <= buffer.bits / 8 + 2000 + SEGMENT_BYTES, "bytes held"


def twins_agree(rng: np.random.Generator) -> None:
    """Law 3: every instruction set, and plain Python, bit for bit."""
    size = 200
    d = rng.integers(1, 2 ** int(rng.integers(1, 25)), size)
    n = rng.integers(-(-d // reference.WORD), d + 1)
    x = rng.integers(-(2**63), 2**63 - 1, size, endpoint=True)
    heads = np.exp2(rng.uniform(16, 32, size)).astype(np.uint32)
    before, seen = getattr(kernel, "instruction_set", str)(), []
    for name in [*getattr(kernel, "instruction_sets", list)(), ""]:
        twin = reference if name == "" else kernel
        if name:
            kernel.instruction_set(name)
        y, h, words = x.copy(), heads.copy(), np.zeros(size, np.uint16)
        count = twin.multiply(y, h, n, d, words, 0)
        seen.append((y.tobytes(), h.tobytes(), words[:count].tobytes()))
    if before:
        kernel.instruction_set(before)
    assert all(state == seen[0] for state in seen), "instruction sets disagree"


def bignums_obey(rng: np.random.Generator) -> None:
    """The other buffer: law 1 with other digits."""
    x, buffer, ratio = rng.integers(-(2**40), 2**40, 20), BignumBuffer(20), Ratio.of(0.97)
    start = x.copy()
    for _ in range(50):
        buffer.multiply(x, ratio)
    for _ in range(50):
        buffer.divide(x, ratio)
    assert np.array_equal(x, start) and buffer.bits == 0, "bignums did not return"


LAWS: tuple[Callable[[np.random.Generator], None], ...] = (
    returns_exactly,
    spends_no_more_than_it_must,
    twins_agree,
    bignums_obey,
)


def self_test(seconds: float, seed: int = 0) -> dict[str, int]:
    """How often each law was tried in so many seconds. Raises: AssertionError."""
    rng, tried = np.random.default_rng(seed), dict.fromkeys((law.__name__ for law in LAWS), 0)
    end = time.monotonic() + seconds
    while not tried[LAWS[-1].__name__] or time.monotonic() < end:
        for law in LAWS:
            law(rng)
            tried[law.__name__] += 1
    return tried


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m revgrad", description=__doc__)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of self-test, default 10")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name, fact in facts().items():
        print(f"{name:>18}  {fact}")
    try:
        tried = self_test(options.seconds, options.seed)
    except AssertionError as error:
        print(f"{'self-test':>18}  FAILED: {error}; please report it with the lines above")
        return 1
    for name, times in tried.items():
        print(f"{name.replace('_', ' '):>30}  held {times} times")
    return 0


if __name__ == "__main__":
    sys.exit(main())
