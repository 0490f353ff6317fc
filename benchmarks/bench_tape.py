"""The tape against hand-written NumPy, autograd and JAX: ratios of times, interleaved in one run.

    python benchmarks/bench_tape.py [--quick] [--json PATH]

Controls: for the MLP and for logistic regression the faster of two hand-written versions, one that
allocates and one that makes every buffer once; autograd and JAX where they are installed. A ratio
is the median over rounds of (ours / control) in one round; the bracket is its 10th and 90th
percentile. Values are compared before times are taken.
"""

import argparse
import builtins
import json
import platform
import time
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import optree
from threadpoolctl import threadpool_limits

import revgrad as rg
from revgrad.compiled import compile, gradient_with_products
from revgrad.nn import softmax_cross_entropy


def clock(f, calls):
    began = time.perf_counter()
    for _ in range(calls):
        f()
    return (time.perf_counter() - began) / calls


def race(runners, rounds, budget=0.004):
    """Times (rounds, runners), each round running every one of them in turn."""
    calls = [max(1, min(200, int(budget / clock(f, 2)))) for f in runners]
    return np.array(
        [[clock(f, n) for f, n in zip(runners, calls, strict=True)] for _ in range(rounds)]
    )


def row(name, times, control=0, ours=-1):
    ratios = times[:, ours] / times[:, control]
    low, middle, high = np.percentile(ratios, [10, 50, 90])
    micro = 1e6 * np.median(times, axis=0)
    return {
        "what": name,
        "ratio": round(float(middle), 3),
        "p10": round(float(low), 3),
        "p90": round(float(high), 3),
        "ours_us": round(float(micro[ours]), 1),
        "control_us": round(float(micro[control]), 1),
    }


# The paper's MLP with a penalty per layer.

SIZES = (784, 50, 50, 50, 10)


def mlp_data(dtype, batch=200):
    rng = np.random.default_rng(0)
    pairs = list(pairwise(SIZES))
    params = [
        (
            (0.1 * rng.standard_normal((n, m))).astype(dtype),
            (0.1 * rng.standard_normal(m)).astype(dtype),
        )
        for n, m in pairs
    ]
    x = rng.random((batch, SIZES[0])).astype(dtype)
    y = np.eye(SIZES[-1], dtype=dtype)[rng.integers(0, SIZES[-1], batch)]
    direction = [
        tuple(rng.standard_normal(a.shape).astype(dtype) for a in layer) for layer in params
    ]
    return params, [dtype(1e-3)] * len(params), x, y, direction


def mlp_loss(params, penalties, x, y):
    total = sum(
        l * (np.sum(w * w) + np.sum(b * b)) for (w, b), l in zip(params, penalties, strict=True)
    )
    for w, b in params[:-1]:
        x = np.tanh(x @ w + b)
    return softmax_cross_entropy(x @ params[-1][0] + params[-1][1], y) + total


def bench_mlp(hand, dtype, threads, rounds):
    params, penalties, x, y, v = mlp_data(dtype)
    flat = optree.tree_leaves(v)
    phases = gradient_with_products(mlp_loss, params, penalties, x, y, borrow=True)
    first = [*optree.tree_leaves(params), *penalties, x, y]
    tuned = hand.Tuned(params, x, y)
    expected, hv, _ = hand.joint_plain(params, penalties, x, y, v)
    g, then = phases.start(first)
    found = [np.array(a) for a in (*g[: len(flat)], *then(flat)[: len(flat)])]
    for a, b in zip(found, optree.tree_leaves((expected, hv)), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=(1e-4 if dtype is np.float32 else 1e-11))
    replay = phases.replay()

    def both():
        replay.run[0](*first)
        replay.run[1](*flat)

    eager = rg.grad(mlp_loss)
    with threadpool_limits(threads, "blas"):
        grads = [
            lambda: hand.grad_plain(params, penalties, x, y),
            lambda: tuned.grad(params, penalties, x, y),
            lambda: replay.run[0](*first),
            lambda: eager(params, penalties, x, y),
        ]
        joints = [
            lambda: hand.joint_plain(params, penalties, x, y, v),
            lambda: tuned.joint(params, penalties, x, y, v),
            both,
        ]
        grads, joints = race(grads, rounds), race(joints, rounds)
    name = f"MLP {np.dtype(dtype).name}, {threads} BLAS thread{'s' * (threads > 1)}"
    best = int(np.argmin(np.median(grads[:, :2], 0)))
    best_joint = int(np.argmin(np.median(joints[:, :2], 0)))
    return [
        row(f"{name}: compiled grad / hand", grads, best, 2),
        row(f"{name}: compiled grad + products / hand", joints, best_joint, 2),
        row(f"{name}: eager grad / hand", grads, best, 3),
    ]


# Logistic regression with a penalty per weight.


def logistic_loss(params, penalties, x, y):
    w, b = params
    return softmax_cross_entropy(x @ w + b, y) + np.sum(penalties * (w * w))


class HandLogistic:
    """Gradient and products by hand, every buffer made once."""

    def __init__(self, x, classes):
        n, k = len(x), classes
        dtype, size = x.dtype, (x.shape[1], classes)
        self.z, self.r, self.t = (np.empty((n, k), dtype) for _ in range(3))
        self.c = np.empty((n, 1), dtype)
        self.gw, self.hw, self.lw, self.w2 = (np.empty(size, dtype) for _ in range(4))
        self.gb, self.hb = np.empty(k, dtype), np.empty(k, dtype)

    def grad(self, params, penalties, x, y):
        (w, b), z, c = params, self.z, self.c
        np.matmul(x, w, z)
        np.add(z, b, z)
        np.maximum.reduce(z, 1, None, c, True)
        np.subtract(z, c, z)
        np.exp(z, z)
        np.add.reduce(z, 1, None, c, True)
        np.divide(z, c, z)  # probabilities, kept for the products
        np.subtract(z, y, self.t)
        np.divide(self.t, len(x), self.t)
        np.matmul(x.T, self.t, self.gw)
        np.multiply(penalties, w, self.w2)
        np.multiply(self.w2, 2, self.w2)
        np.add(self.gw, self.w2, self.gw)
        np.add.reduce(self.t, 0, None, self.gb)
        return self.gw, self.gb

    def joint(self, params, penalties, x, y, v):
        self.grad(params, penalties, x, y)
        (w, _), (vw, vb), r, t, c = params, v, self.r, self.t, self.c
        np.matmul(x, vw, r)
        np.add(r, vb, r)
        np.multiply(self.z, r, t)
        np.add.reduce(t, 1, None, c, True)
        np.subtract(r, c, r)
        np.multiply(r, self.z, r)
        np.divide(r, len(x), r)
        np.matmul(x.T, r, self.hw)
        np.multiply(penalties, vw, self.w2)
        np.multiply(self.w2, 2, self.w2)
        np.add(self.hw, self.w2, self.hw)
        np.add.reduce(r, 0, None, self.hb)
        np.multiply(w, vw, self.lw)
        np.multiply(self.lw, 2, self.lw)
        return self.hw, self.hb, self.lw


def bench_logistic(dtype, threads, rounds, batch=1000):
    rng = np.random.default_rng(0)
    params = ((0.1 * rng.standard_normal((784, 10))).astype(dtype), np.zeros(10, dtype))
    v = tuple(rng.standard_normal(a.shape).astype(dtype) for a in params)
    penalties = np.full((784, 10), 1e-3, dtype)
    x = rng.random((batch, 784)).astype(dtype)
    y = np.eye(10, dtype=dtype)[rng.integers(0, 10, batch)]
    hand = HandLogistic(x, 10)
    phases = gradient_with_products(logistic_loss, params, penalties, x, y, borrow=True)
    first = [*params, penalties, x, y]
    replay = phases.replay()
    g, then = phases.start(first)
    found = [np.array(a) for a in (*g[:2], *then(list(v)))]
    expected = [np.array(a) for a in hand.grad(params, penalties, x, y)]
    expected += [np.array(a) for a in hand.joint(params, penalties, x, y, v)]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=(1e-4 if dtype is np.float32 else 1e-11))

    def both():
        replay.run[0](*first)
        replay.run[1](*v)

    with threadpool_limits(threads, "blas"):
        grads = race(
            [lambda: hand.grad(params, penalties, x, y), lambda: replay.run[0](*first)], rounds
        )
        joints = race([lambda: hand.joint(params, penalties, x, y, v), both], rounds)
    name = f"logistic {np.dtype(dtype).name}, {threads} BLAS thread{'s' * (threads > 1)}"
    return [
        row(f"{name}: compiled grad / hand", grads),
        row(f"{name}: compiled grad + products / hand", joints),
    ]


# autograd's own benchmark shapes, and JAX.


def sines(x):
    for _ in range(50):
        x = np.sin(x)
    return x


def fan_out(x):
    total = 0.0
    for _ in range(10_000):
        total = total + x
    return total


def rnn(params, x):
    w, u, h = params["w"], params["u"], np.zeros(len(params["w"]))
    for _ in range(50):
        h = np.tanh(w @ h + u @ x)
    return np.sum(h)


def against_autograd(rounds):
    try:
        import autograd
        import autograd.numpy as anp
        from autograd.scipy.special import logsumexp
    except ImportError:
        return []

    def translated(f):
        return type(f)(f.__code__, {**f.__globals__, "np": anp}, f.__name__)

    def their_loss(params, penalties, x, y):
        total = sum(
            l * (anp.sum(w * w) + anp.sum(b * b))
            for (w, b), l in zip(params, penalties, strict=True)
        )
        for w, b in params[:-1]:
            x = anp.tanh(anp.dot(x, w) + b)
        z = anp.dot(x, params[-1][0]) + params[-1][1]
        return -anp.sum(y * (z - logsumexp(z, axis=1, keepdims=True))) / len(x) + total

    rng = np.random.default_rng(0)
    params, penalties, x, y, _ = mlp_data(np.float64)
    weights = {k: 0.01 * rng.standard_normal((1024, 1024)) for k in "wu"}
    cases = [
        ("MLP float64", mlp_loss, their_loss, (params, penalties, x, y), 0.7, None),
        ("50 sines", sines, translated(sines), (1.0,), 0.7, 0.25),
        ("fan-out 10,000", fan_out, translated(fan_out), (1.0,), 0.7, 0.25),
        (
            "RNN of 50 steps, 1,024 units",
            rnn,
            translated(rnn),
            (weights, rng.standard_normal(1024)),
            0.9,
            0.75,
        ),
    ]
    rows = []
    for name, ours, theirs, args, _, _ in cases:
        eager, compiled, control = rg.grad(ours), compile(rg.grad(ours)), autograd.grad(theirs)
        for f in (eager, compiled):
            for a, b in zip(
                optree.tree_leaves(f(*args)), optree.tree_leaves(control(*args)), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
        times = race([partial(f, *args) for f in (control, eager, compiled)], rounds)
        rows.append(row(f"{name}: eager grad / autograd", times, 0, 1))
        rows.append(row(f"{name}: compiled grad / autograd", times, 0, 2))
    return rows


def against_jax(dtype, threads, rounds):
    try:
        import jax
    except ImportError:
        return []
    jnp = jax.numpy

    def their_loss(params, penalties, x, y):
        total = sum(
            l * (jnp.sum(w * w) + jnp.sum(b * b))
            for (w, b), l in zip(params, penalties, strict=True)
        )
        for w, b in params[:-1]:
            x = jnp.tanh(x @ w + b)
        z = x @ params[-1][0] + params[-1][1]
        return -jnp.sum(y * jax.nn.log_softmax(z)) / len(x) + total

    with jax.enable_x64(dtype is np.float64):
        params, penalties, x, y, _ = mlp_data(dtype)
        phases = gradient_with_products(mlp_loss, params, penalties, x, y, borrow=True)
        first = [*optree.tree_leaves(params), *penalties, x, y]
        replay = phases.replay()
        theirs = jax.tree.map(jnp.asarray, (params, penalties, x, y))
        control = jax.jit(jax.grad(their_loss))
        for a, b in zip(replay.run[0](*first), jax.tree.leaves(control(*theirs)), strict=False):
            np.testing.assert_allclose(a, b, atol=1e-4 if dtype is np.float32 else 1e-11)
        runners = [lambda: jax.block_until_ready(control(*theirs)), lambda: replay.run[0](*first)]
        with threadpool_limits(threads, "blas"):
            times = race(runners, rounds)
    name = f"MLP {np.dtype(dtype).name}, {threads} BLAS thread{'s' * (threads > 1)}"
    return [row(f"{name}: compiled grad / JAX jit", times)]


def profile(dtype, threads):
    """Where the time of a replay of the MLP goes: each line alone, in microseconds, by kind."""
    params, penalties, x, y, v = mlp_data(dtype)
    phases = gradient_with_products(mlp_loss, params, penalties, x, y, borrow=True)
    flat, directions = [*optree.tree_leaves(params), *penalties, x, y], optree.tree_leaves(v)
    replay = phases.replay()
    replay.run[0](*flat)
    replay.run[1](*directions)
    space = dict(replay.space) | {f"a{k}": a for k, a in enumerate([*flat, *directions])}
    with threadpool_limits(threads, "blas"):
        for k, (source, args) in enumerate(zip(replay.source, (flat, directions), strict=True)):
            kinds = {}
            for line in source.splitlines():
                if line.startswith("    ") and not line.startswith(
                    ("     ", "    global", "    if", "    return")
                ):
                    code = compile_line(line.strip())
                    best = min(clock(lambda code=code: exec(code, space), 30) for _ in range(5))
                    name = line.split(" = ")[-1].split("(")[0].strip(" _")
                    kinds.setdefault(name, []).append(1e6 * best)
            whole = min(clock(lambda k=k, args=args: replay.run[k](*args), 30) for _ in range(5))
            print(f"phase {k + 1}, {np.dtype(dtype).name}: {1e6 * whole:.0f} us in all")
            for name, times in sorted(kinds.items(), key=lambda item: -sum(item[1])):
                print(f"    {name:<16} {len(times):>4} calls {sum(times):8.1f} us")


def compile_line(line):
    return builtins.compile(line, "<replay>", "exec")


def load_controls(path):
    """The hand-written controls: a file with grad_plain, joint_plain and Tuned."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("hand_numpy", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--profile", action="store_true", help="where a replay's time goes")
    options = parser.parse_args()
    if options.profile:
        for dtype in (np.float32, np.float64):
            profile(dtype, 1)
        return
    rounds = options.rounds or (2 if options.quick else 60)
    hand = load_controls(Path(__file__).parent / "hand_numpy.py")
    rows = []
    for dtype in (np.float32, np.float64):
        for threads in (1, 2):
            rows += bench_mlp(hand, dtype, threads, rounds)
            rows += bench_logistic(dtype, threads, rounds)
    rows += against_autograd(rounds)
    for dtype in (np.float32, np.float64):
        for threads in (
            1,
            2,
        ):  # JAX has its own, as many as cores; on two cores ours get in their way
            rows += against_jax(dtype, threads, rounds)
    print(f"| {'what':<64} | ratio | p10 - p90 | ours us | control us |\n|---|---|---|---|---|")
    for r in rows:
        print(
            f"| {r['what']:<64} | {r['ratio']} | {r['p10']} - {r['p90']} | {r['ours_us']} "
            f"| {r['control_us']} |"
        )
    if options.json:
        about = {"machine": platform.processor() or platform.machine(), "numpy": np.__version__}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"about": about, "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
