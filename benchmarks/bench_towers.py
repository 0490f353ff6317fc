"""What the levels of a tower cost: processor time of a step of `fit`, beside the step without them.

    python benchmarks/bench_towers.py [--quick] [--json PATH]

MNIST's MLP (784-128-10, batch 256, float32) and a small ResNet, both with random images. Blocks of
steps of all towers take turns, with one BLAS thread; "adds" is the median over turns of a tower's
step over that of the tower one level lower, less one. Last, one epoch of adam / sgd against the
authors' package on PyTorch, where it is installed.
"""

import argparse
import json
import platform
import sys
import warnings
from functools import partial
from pathlib import Path
from time import process_time

import numpy as np
from threadpoolctl import threadpool_limits

import revgrad as rg
from revgrad.arguments import take_apart
from revgrad.online.fit import Fitting, take_step
from revgrad.online.paths import Paths

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "towers"))
from paper import Mnist, adam, momentum, sgd
from small_resnet import ResNet, loss_of

ALONE = {"alone": True}  # only the rate of Adam learns
LEVELS = {
    "sgd": [sgd(), sgd(by=sgd()), sgd(by=sgd(by=sgd())), sgd(by=sgd(by=sgd(by=sgd())))],
    "adam": [
        adam(), adam(by=sgd(1e-5)), adam(by=sgd(1e-5, by=sgd(1e-8))),
        adam(by=sgd(1e-5, by=sgd(0.0, by=sgd(0.0)))),
    ],
    "adam alpha": [adam(), adam(by=sgd(1e-5), **ALONE), adam(by=sgd(1e-5, by=sgd(1e-8)), **ALONE)],
    "momentum": [
        momentum(0.1, 0.9), momentum(0.1, 0.9, sgd(1e-5)), momentum(0.1, 0.9, sgd(1e-5, sgd(1e-8)))
    ],
}  # fmt: skip
BUDGETS = {"sgd / sgd": 0.03, "adam / sgd": 0.15}  # of the first level; each further one, and any
FURTHER, RESNET, PACKAGE = 0.02, 0.02, 0.7  # on the ResNet; an epoch over the package's


class Runner:
    """A run of `fit` that takes some steps at a time."""

    def __init__(self, loss, params, batches, optimizer):
        run, values = take_apart(
            loss, params, optimizer, batches, steps=10**6, hyper=None, state=None, has_aux=False,
            watch=None, watch_moves=False, callback=None, report=rg.Report(), arithmetic=None,
            saving=None,
        )  # fmt: skip
        self.fitting, self.paths, self.t = Fitting.of(run, values, optimizer), Paths(), 0
        self.tuner = self.fitting.tuner()

    def seconds(self, steps):
        began = process_time()
        for _ in range(steps):
            take_step(self.fitting, self.tuner, self.paths, self.t, [])
            self.t += 1
        return (process_time() - began) / steps


def compare(makers, steps, turns, builds=4):
    """Name -> (microseconds, share that its topmost level adds), medians over turns and builds.

    Runs are built anew, as where their vectors come to lie makes a per cent or two.
    """
    times = {name: [] for name in makers}
    for _ in range(builds):
        runners = {name: make() for name, make in makers.items()}
        for runner in runners.values():
            runner.seconds(4)
        for turn in range(-(-turns // builds)):
            for name in [*runners] if turn % 2 else [*runners][::-1]:
                times[name].append(runners[name].seconds(steps))
    found, before = {}, None
    for name, mine in times.items():
        lower = times[before] if before else mine
        ratios = np.array(mine) / np.array(lower)
        quarter, adds, most = np.percentile(ratios, [25, 50, 75]) - 1
        found[name] = {"us": 1e6 * float(np.median(mine)), "adds": float(adds)}
        found[name] |= {"spread": float(most - quarter)}
        before = name
    return found


def show(rows, budget_of):
    for name, row in rows.items():
        budget = budget_of(name)
        said = "" if budget is None else f"(budget {budget:.0%})"
        line = f"{name:42} {row['us']:9.0f} us   adds {row['adds']:+6.1%} "
        print(line + f"+- {row['spread'] / 2:.1%} {said}", flush=True)


def label(optimizer):
    return repr(optimizer) if optimizer.tuned_by else optimizer.name.lower()


def mlp_budget(name):
    if " / " not in name:
        return None
    return BUDGETS.get(name, FURTHER if name.count("/") > 1 else None)


def random_mnist(count=4096):
    """The paper's problem with images of no meaning, which cost as much."""
    problem, rng = Mnist.__new__(Mnist), np.random.default_rng(0)
    x = rng.random((count, 784)).astype(np.float32)
    problem.train, problem.batch = (x, rng.integers(0, 10, count)), 256
    return problem


def random_images(batch):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4 * batch, 32, 32, 3)).astype(np.float32)
    return rg.minibatches((x, rng.integers(0, 10, 4 * batch)), batch, seed=0)


def package_epoch(problem, steps):
    """Seconds of `steps` of adam / sgd in the authors' package, or None without it."""
    try:
        import torch
        from gradient_descent_the_ultimate_optimizer import gdtuo
    except ImportError:
        return None
    torch.set_num_threads(1)
    net = torch.nn.Sequential(
        torch.nn.Linear(784, 128), torch.nn.Tanh(), torch.nn.Linear(128, 10), torch.nn.Tanh()
    )
    wrapper = gdtuo.ModuleWrapper(net, optimizer=gdtuo.Adam(optimizer=gdtuo.SGD(1e-5)))
    wrapper.initialize()
    batches = problem.batches(0)
    began = process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the memory that their way leaks
        for t in range(steps):
            x, y = map(torch.from_numpy, batches(t))
            wrapper.begin()
            loss = torch.nn.functional.cross_entropy(wrapper.forward(x), y)
            wrapper.zero_grad()
            loss.backward(create_graph=True)
            wrapper.step()
    return process_time() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    steps, turns = (2, 2) if options.quick else (20, 40)
    record = {"platform": platform.platform(), "numpy": np.__version__, "rows": {}}
    with threadpool_limits(1):
        problem = random_mnist()
        for kind, towers in LEVELS.items():
            start = problem.loss, problem.params(0), problem.batches(0)
            makers = {label(tower): partial(Runner, *start, tower) for tower in towers}
            record["rows"][f"MLP, {kind}"] = rows = compare(makers, steps, turns)
            print(f"MLP, {kind}")
            show(rows, mlp_budget)
        net, batches = ResNet(), random_images(128)
        loss = lambda params, hyper, batch: loss_of(net)(params, hyper, batch)[0]
        start = loss, net.params(0), batches
        makers = {label(tower): partial(Runner, *start, tower) for tower in LEVELS["momentum"]}
        record["rows"]["ResNet-8"] = rows = compare(makers, 1 if options.quick else 2, turns)
        print("ResNet-8 of width 8")
        show(rows, lambda name: RESNET if " / " in name else None)
        epoch = 4 if options.quick else 235
        for turn in range(1 if options.quick else 3):
            theirs = package_epoch(problem, epoch)
            runner = Runner(problem.loss, problem.params(0), problem.batches(0), adam(by=sgd(1e-5)))
            ours = epoch * runner.seconds(epoch)
            if theirs:
                record[f"epoch, turn {turn}"] = ours, theirs
                print(
                    f"adam / sgd, {epoch} steps: {ours:.2f} s, the authors' package {theirs:.2f} s,"
                )
                print(f"ratio {ours / theirs:.2f} (budget {PACKAGE})")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
