"""Forward: what a column of tangents costs, beside plain training, JAX and PyTorch.

    python benchmarks/bench_forward.py [--quick] [--json PATH] [--rounds 5]

Seconds of processor time with one thread. A round takes every contestant once, so that what
disturbs the machine hits all alike; ratios are of times within a round, the bracket their lowest
and highest. The first table: H learning rates, each shared by as many steps ("shared", whose
columns cost nothing before their first step: H is their mean number), or at once one for all or
one per leaf.
Budgets: 1 + 2 H plain runs on LeNet, 1 + 1.4 H on the MLP. Memory: bytes held for the columns, in
copies of the params, float32 as they are; the budget is 3 per column for an optimizer with a
velocity.

The second: 7 rates on the paper's MLP (44,860 weights, batches of 200, float32). JAX: jacfwd of a
scan, under jit. PyTorch: as in the paper's released code, one more reverse pass through the
gradient for each active column. Hypergradients are compared before times are taken.
"""

import argparse
import json
import os

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

from functools import partial  # noqa: E402
from itertools import pairwise  # noqa: E402
from time import process_time  # noqa: E402

import numpy as np  # noqa: E402

import revgrad as rg  # noqa: E402
from revgrad import nn  # noqa: E402

BATCH = {"mlp": 200, "lenet": 128}
BUDGET = {"mlp": 1.4, "lenet": 2.0}
STEPS = {"mlp": 210, "lenet": 70}
MLP = (784, 50, 50, 50, 10)
LENET = ((5, 5, 1, 6), (5, 5, 6, 16), (256, 120), (120, 84), (84, 10))


def tanh_layers(params, x, tanh=np.tanh):
    for k in range(0, len(params) - 2, 2):
        x = tanh(x @ params[k] + params[k + 1])
    return x @ params[-2] + params[-1]


def lenet(params, x):
    for k in (0, 2):
        x = nn.max_pool(nn.relu(nn.conv2d(x, params[k], params[k + 1])), 2)
    x = np.reshape(x, (len(x), -1))
    for k in (4, 6):
        x = nn.relu(x @ params[k] + params[k + 1])
    return x @ params[8] + params[9]


class Problem:
    """Training by Momentum with learned rates; the loss of 1,000 examples at the end."""

    def __init__(self, name, steps):
        rng = np.random.default_rng(0)
        shapes = [*pairwise(MLP)] if name == "mlp" else LENET
        glorot = lambda s: np.sqrt(2 / (np.prod(s[:-1]) + s[-1])) * rng.standard_normal(s)
        arrays = [a for s in shapes for a in (glorot(s), np.zeros(s[-1]))]
        self.params = [a.astype(np.float32) for a in arrays]
        shape = (1000, 784) if name == "mlp" else (1000, 28, 28, 1)
        self.x, self.y = rng.standard_normal(shape, np.float32), rng.integers(0, 10, 1000)
        self.net, self.steps = {"mlp": tanh_layers, "lenet": lenet}[name], steps
        self.batches = rg.minibatches((self.x, self.y), BATCH[name], seed=0)
        self.rows = np.array([self.batches.indices(t) for t in range(steps)])
        self.report = rg.Report()

    def loss(self, params, _, batch):
        return nn.softmax_cross_entropy(self.net(params, batch[0]), batch[1])

    def hyperloss(self, rates, at_once=False):
        if at_once:
            rates = rates[0] if len(rates) == 1 else list(rates)
        else:
            rates = rg.per_step(rates, every=-(-self.steps // len(rates)))
        trained = rg.train(
            self.loss, self.params, rg.Momentum(rates, 0.9), self.batches, steps=self.steps,
            adjoint=rg.Forward(), report=self.report,
        )  # fmt: skip
        return self.loss(trained, None, (self.x, self.y))

    def columns(self, count, at_once):
        every = -(-self.steps // count)
        return count if at_once else np.mean(np.arange(self.steps) // every + 1)


def ours(problem, rates):
    return rg.grad(problem.hyperloss)(rates)


def by_jax(problem, rates):
    import jax
    import jax.numpy as jnp

    x, y, start = jnp.asarray(problem.x), jnp.asarray(problem.y), problem.params
    every = -(-problem.steps // len(rates))
    steps = problem.rows, np.arange(problem.steps) // every

    def loss(params, x, y):
        logits = tanh_layers(params, x, jnp.tanh)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1))

    def hyperloss(rates):
        def step(state, now):
            params, velocity = state
            g = jax.grad(loss)(params, x[now[0]], y[now[0]])
            velocity = [0.9 * v - 0.1 * d for v, d in zip(velocity, g, strict=True)]
            rate = rates[now[1]]
            return ([p + rate * v for p, v in zip(params, velocity, strict=True)], velocity), None

        first = [jnp.asarray(p) for p in start]
        (params, _), _ = jax.lax.scan(step, (first, [0 * p for p in first]), steps)
        return loss(params, x, y)

    run = jax.jit(jax.jacfwd(hyperloss))
    return lambda rates: np.asarray(run(jnp.asarray(rates, jnp.float32)).block_until_ready())


def by_torch(problem, rates):
    import torch

    torch.set_num_threads(1)
    x, y = torch.from_numpy(problem.x), torch.from_numpy(problem.y)
    shapes = [p.shape for p in problem.params]
    ends = np.cumsum([0, *(p.size for p in problem.params)]).tolist()
    every = -(-problem.steps // len(rates))

    def loss(w, x, y):
        spans = zip(ends, ends[1:], shapes, strict=False)
        params = [w[a:b].reshape(s) for a, b, s in spans]
        return torch.nn.functional.cross_entropy(tanh_layers(params, x, torch.tanh), y)

    def run(rates):
        w = torch.from_numpy(np.concatenate([p.ravel() for p in problem.params])).requires_grad_()
        v, count = torch.zeros_like(w), len(rates)
        z, c = (torch.zeros(len(w), count) for _ in "zc")
        for t, rows in enumerate(problem.rows):
            j, rate = t // every, float(rates[t // every])
            (g,) = torch.autograd.grad(loss(w, x[rows], y[rows]), w, create_graph=True)
            hz = torch.zeros_like(z)
            for k in range(j + 1):
                (hz[:, k],) = torch.autograd.grad(g @ z[:, k], w, retain_graph=k < j)
            with torch.no_grad():
                v = 0.9 * v - 0.1 * g
                c = 0.9 * c - 0.1 * hz
                z = z + rate * c
                z[:, j] += v
                w = (w + rate * v).requires_grad_()
        (outer,) = torch.autograd.grad(loss(w, x, y), w)
        return (outer @ z).numpy()

    return run


def timed(f, *args):
    began = process_time()
    f(*args)
    return process_time() - began


def spread(ratios):
    return f"{np.median(ratios):.2f} ({np.min(ratios):.2f}-{np.max(ratios):.2f})"


def costs(name, count, at_once, steps, rounds):
    problem = Problem(name, steps)
    count = count or len(problem.params)
    rates = np.full(count, 0.05)
    f = partial(problem.hyperloss, at_once=at_once)
    rg.grad(f)(rates), f(rates)
    ratios = []
    for _ in range(rounds):
        plain = timed(f, rates)
        ratios.append(timed(rg.grad(f), rates) / plain)
    columns = problem.columns(count, at_once)
    rg.grad(f)(rates)
    copies = problem.report.bytes_kept / (4 * problem.report.weights * count)
    budget, per = 1 + BUDGET[name] * columns, (np.array(ratios) - 1) / columns
    kind = "at once" if at_once else "shared"
    print(f"| {name} | {count} {kind} | {columns:.1f} | {spread(ratios)} | {budget:.1f} "
          f"| {spread(per)} | {copies:.2f} |", flush=True)  # fmt: skip
    return {"problem": name, "rates": count, "kind": kind, "columns": columns, "ratios": ratios,
            "budget": budget, "copies per column": copies}  # fmt: skip


def contest(steps, rounds):
    problem, rates = Problem("mlp", steps), np.full(7, 0.05)
    runs = {"revgrad": partial(ours, problem), "JAX, jacfwd": by_jax(problem, rates),
            "PyTorch, double backward": by_torch(problem, rates)}  # fmt: skip
    found = {name: run(rates) for name, run in runs.items()}
    seconds = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            seconds[name].append(timed(run, rates))
    print(f"\n| 7 rates, {steps} steps | seconds | revgrad / it | budget | relative difference |")
    print("|---|---|---|---|---|")
    rows, first = [], found["revgrad"]
    for name, budget in zip(runs, (None, 0.7, 0.2), strict=True):
        ratio = np.array(seconds["revgrad"]) / seconds[name]
        off = float(np.max(np.abs(found[name] - first)) / np.max(np.abs(first)))
        print(f"| {name} | {np.median(seconds[name]):.2f} | {spread(ratio)} | {budget or ''} "
              f"| {off:.1e} |", flush=True)  # fmt: skip
        rows.append({"contestant": name, "seconds": seconds[name], "budget": budget, "off": off})
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json")
    options = parser.parse_args()
    rounds, steps = (1, {"mlp": 14}) if options.quick else (options.rounds, STEPS)
    print("| problem | rates | H | / plain | budget | a column / plain | copies of params each |")
    print("|---|---|---|---|---|---|---|")
    rows = [
        costs(name, count, at_once, steps[name], rounds)
        for name in steps
        for count, at_once in ((1, True), (None, True), (7, False))
    ]
    rivals = contest(14 if options.quick else 1000, 1 if options.quick else min(2, rounds))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"costs": rows, "rivals": rivals}, file, indent=1)


if __name__ == "__main__":
    main()
