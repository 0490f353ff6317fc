"""Layers against PyTorch on the CPU: time of ours over theirs, below 1 where ours is faster.

LeNet's two convolutions at batch 128 in float32, forward and gradient, then what goes around them.
The first layer's images come as a file has them, and no one wants their gradient; the second's come
as the first layer leaves them, batch last, and theirs as PyTorch's do, channels first. Both sides
use as many threads (--threads); calls alternate. "ratio" is the median of paired ones with its
spread; "fast" compares each side's tenth percentile, which other processes disturb less.

    python benchmarks/bench_nn.py [--quick] [--threads 1] [--json PATH]
"""

import argparse
import json
import platform
import subprocess
import time
from pathlib import Path

import numpy as np
import threadpoolctl
import torch

import revgrad
from revgrad import nn, value_and_grad, vjp
from revgrad.rules.nn import batch_last, images

F = torch.nn.functional
BUDGETS = {"conv1": (2.0, 1.2), "conv2": (2.0, 1.2)}


class Bench:
    """Pairs of functions without arguments, ours and theirs, by name."""

    def __init__(self, batch):
        self.batch, self.pairs, self.rng = batch, {}, np.random.default_rng(0)

    def draw(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32)

    def layer(self, name, ours, theirs, x, *weights, wrt_x=True):
        """Forward, and gradient with respect to the weights (and x) at a fixed cotangent."""
        ct = ours(x, *weights)
        tensors = [tensor(x), *(torch.tensor(w) for w in weights)]
        there = tensor(ct)
        wanted = [t.requires_grad_() for t in tensors[0 if wrt_x else 1 :]]
        assert np.allclose(nhwc(theirs(*tensors)), ct, atol=1e-3), name

        def pull():
            f = ours if wrt_x else lambda *weights: ours(x, *weights)
            return vjp(f, *([x] if wrt_x else []), *weights)[1](ct)

        def forward():
            with torch.no_grad():
                return theirs(*tensors)

        self.pairs[f"{name} forward"] = lambda: ours(x, *weights), forward
        self.pairs[f"{name} gradient"] = (
            pull,
            lambda: torch.autograd.grad(theirs(*tensors), wanted, there),
        )


def tensor(x):
    """As PyTorch keeps it: images with channels first."""
    return torch.tensor(np.ascontiguousarray(np.moveaxis(x, -1, 1)) if x.ndim == 4 else x.copy())


def nhwc(x):
    x = x.detach().numpy()
    return np.moveaxis(x, 1, -1) if x.ndim == 4 else x


def kernel(w):
    return w.permute(3, 2, 0, 1)


def in_their_order(x):
    """An image as a layer of ours leaves it."""
    return images(batch_last(x).copy())


def convolutions(bench):
    n = bench.batch
    conv1 = lambda x, w, b: nn.conv2d(x, w, b, padding="same")
    bench.layer(
        "conv1 28x28x1 -> 6@5x5",
        conv1,
        lambda x, w, b: F.conv2d(x, kernel(w), b, padding=2),
        *(bench.draw(n, 28, 28, 1), bench.draw(5, 5, 1, 6), bench.draw(6)),
        wrt_x=False,
    )
    weights = bench.draw(5, 5, 6, 16), bench.draw(16)
    theirs = lambda x, w, b: F.conv2d(x, kernel(w), b)
    x = bench.draw(n, 14, 14, 6)
    bench.layer("conv2 14x14x6 -> 16@5x5", nn.conv2d, theirs, in_their_order(x), *weights)
    bench.layer("(x channels last)", nn.conv2d, theirs, x, *weights)


def pools(bench):
    x = in_their_order(bench.draw(bench.batch, 28, 28, 6))
    bench.layer("max_pool 28x28x6", lambda x: nn.max_pool(x, 2), lambda x: F.max_pool2d(x, 2), x)


def normalisation(bench):
    x, scale, bias = bench.draw(bench.batch, 14, 14, 16), bench.draw(16), bench.draw(16)
    bench.layer(
        "batch_norm 14x14x16",
        lambda x, s, b: nn.batch_norm(x, s, b)[0],
        lambda x, s, b: F.batch_norm(x, None, None, s, b, True),
        *(in_their_order(x), scale, bias),
    )


def lenet(bench):
    n, rng = bench.batch, bench.rng
    x, labels = bench.draw(n, 28, 28, 1), rng.integers(0, 10, n)
    shapes = (5, 5, 1, 6), (5, 5, 6, 16), (400, 120), (120, 84), (84, 10)
    params = [(nn.he_normal(rng, s), np.zeros(s[-1], np.float32)) for s in shapes]

    def ours(params):
        y = nn.max_pool(nn.relu(nn.conv2d(x, *params[0], padding="same")), 2)
        y = nn.max_pool(nn.relu(nn.conv2d(y, *params[1])), 2)
        y = np.reshape(y, (n, -1))
        for layer in params[2:-1]:
            y = nn.relu(nn.dense(y, *layer))
        return nn.softmax_cross_entropy(nn.dense(y, *params[-1]), labels)

    flat = [torch.tensor(p, requires_grad=True) for layer in params for p in layer]
    there, labels_there = tensor(x), torch.tensor(labels)

    def theirs():
        w = flat
        y = F.max_pool2d(F.relu(F.conv2d(there, kernel(w[0]), w[1], padding=2)), 2)
        y = F.max_pool2d(F.relu(F.conv2d(y, kernel(w[2]), w[3])), 2)
        y = y.permute(0, 2, 3, 1).reshape(n, -1)
        for k in (4, 6):
            y = F.relu(y @ w[k] + w[k + 1])
        loss = F.cross_entropy(y @ w[8] + w[9], labels_there)
        return loss, torch.autograd.grad(loss, flat)

    both = value_and_grad(ours)
    (value, grads), (loss, wanted) = both(params), theirs()
    assert abs(value - loss.item()) < 1e-4
    for mine, other in zip((g for pair in grads for g in pair), wanted, strict=True):
        assert np.allclose(mine, other.numpy(), atol=1e-3)
    bench.pairs["LeNet gradient"] = lambda: both(params), theirs


def lstm(bench):
    time_steps, n, inputs, hidden = 20, 32, 64, 128
    xs = bench.draw(time_steps, n, inputs)
    w, u = (nn.glorot_uniform(bench.rng, (k, 4 * hidden)) for k in (inputs, hidden))
    b = bench.draw(4 * hidden)
    zeros = np.zeros((n, hidden), np.float32)
    module = torch.nn.LSTM(inputs, hidden, bias=True)
    theirs = list(module.parameters())
    for p, value in zip(theirs, (w.T, u.T, b, 0 * b), strict=True):
        p.data = torch.tensor(value.copy())

    def ours(w, u, b):
        params = {"input": w, "recurrent": u, "bias": b}
        return nn.scan(nn.lstm_cell, params, (zeros, zeros), xs)[1]

    there, ones = torch.tensor(xs), torch.ones(time_steps, n, hidden)
    ct = np.ones((time_steps, n, hidden), np.float32)
    assert np.allclose(ours(w, u, b), module(there)[0].detach().numpy(), atol=1e-4)
    bench.pairs["LSTM 20 steps, 128 units, gradient"] = (
        lambda: vjp(ours, w, u, b)[1](ct),
        lambda: torch.autograd.grad(module(there)[0], theirs, ones),
    )


def timed(f):
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def measure(pairs, repeats):
    """{name: (ours, theirs) seconds, arrays of `repeats`}; every pair once per round."""
    times = {name: [] for name in pairs}
    for fs in pairs.values():
        for f in fs * 3:
            f()
    for _ in range(repeats):
        for name, (ours, theirs) in pairs.items():
            times[name].append((timed(ours), timed(theirs)))
    return {name: np.array(t).T for name, t in times.items()}


def row(name, ours, theirs):
    low, ratio, high = np.percentile(ours / theirs, [10, 50, 90])
    budget, aim = BUDGETS.get(name.split()[0], (None, None))
    fast = np.percentile(ours, 10) / np.percentile(theirs, 10)
    numbers = {"ratio": ratio, "fast": fast, "p10": low, "p90": high, "budget": budget, "aim": aim}
    return {"what": name, "ours": np.median(ours), "theirs": np.median(theirs), **numbers}


def show(rows, threads):
    print(f"ratio of times, revgrad / PyTorch, {threads} thread(s) each, float32")
    print(f"{'':38}{'ours ms':>9}{'torch ms':>9}{'ratio':>7}{'fast':>6}  p10-p90     budget (aim)")
    for r in rows:
        budget = f"{r['budget']} ({r['aim']})" if r["budget"] else ""
        spread = f"{r['p10']:.2f}-{r['p90']:.2f}"
        times = f"{1e3 * r['ours']:9.3f}{1e3 * r['theirs']:9.3f}"
        print(f"{r['what']:38}{times}{r['ratio']:7.2f}{r['fast']:6.2f}  {spread:12}{budget}")


def facts(threads):
    """What a number means nothing without."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "rev-parse", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "revgrad": revgrad.__version__,
        "commit": commit,
        "threads": threads,
    }


def main(quick=False, threads=1, json_path=None):
    """Returns the rows that it prints."""
    bench = Bench(batch=8 if quick else 128)
    torch.set_num_threads(threads)
    with threadpoolctl.threadpool_limits(threads, "blas"):
        for add in (convolutions, pools, normalisation, lenet, lstm):
            add(bench)
        times = measure(bench.pairs, 3 if quick else 60)
    rows = [row(name, *t) for name, t in times.items()]
    show(rows, threads)
    if json_path:
        report = {**facts(threads), "rows": rows}
        Path(json_path).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="smallest sizes, few repeats")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="PATH")
    options = parser.parse_args()
    main(options.quick, options.threads, options.json)
