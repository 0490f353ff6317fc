"""Learn which layers of ten networks should share their weights (Maclaurin et al. 2015, fig. 8, 9).

Five alphabets, and the same five rotated by 90 degrees: ten tasks, a network each. The weights of a
layer are W = T z, where z are ten whitened networks under one common penalty and T, 10 x 10, says
how the tasks share: the identity leaves them separate, equal entries tie them together. T is
learned for every layer from the gradient of the validation loss through training.

The paper's alphabets are not to be had, so the claim is its ordering: on unseen drawings, learned
sharing beats a tied bottom layer, which beats separate networks. Needs Omniglot's small set 1.

    python examples/omniglot_multitask.py                              17 minutes on one core
    python examples/omniglot_multitask.py --data digits --quick        seconds
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from omniglot_tasks import Tasks, correlations, picture

import revgrad as rg
from revgrad.nn import log_softmax
from revgrad.records import Record

KINDS = {"separate": (0.0, 0.0, 0.0), "tied": (1.0, 0.0, 0.0), "learned": (0.5, 0.5, 0.5)}
PAPER = {
    "separate, train (nats)": (0.60698, "separate/train"), "test": (1.34252, "separate/test"),
    "tied, train": (0.89740, "tied/train"), "test ": (1.24620, "tied/test"),
    "learned, train": (0.60390, "learned/train"), "test  ": (1.13013, "learned/test"),
    "correlation of two tasks, layer 1": (0.61, "correlation/of two/0"),
    "layer 2": (0.26, "correlation/of two/1"), "layer 3": (0.36, "correlation/of two/2"),
    "of an alphabet and its rotation, layer 1": ("0.51 to 0.59", "correlation/turned/0"),
    "layer 2 ": ("0.24 to 0.37", "correlation/turned/1"),
    "layer 3 ": ("0.65 to 0.79", "correlation/turned/2"),
}  # fmt: skip


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["omniglot", "digits"] = "omniglot"
    hidden: tuple[int, ...] = (400, 200)
    steps: int = 50
    outer: int = 20
    outer_rate: float = 0.2
    outputs: int = 55
    seeds: int = 3  # of the networks that are trained in the end


def nll(z, mixing, batch):
    """Negative log-likelihood: the mean over a task's examples, summed over tasks."""
    x, targets = batch
    for k, ((weights, bias), t) in enumerate(zip(z, mixing, strict=True)):
        x = np.tanh(x) if k else x
        x = x @ np.tensordot(t, weights, 1) + np.tensordot(t, bias, 1)[:, None]
    return -np.sum(targets * log_softmax(x))


def loss(z, mixing, batch):
    penalty = sum(np.sum(x * x) for layer in z for x in layer)
    return nll(z, mixing, batch) + np.exp(-4) * penalty


class Problem:
    def __init__(self, s):
        self.s, self.tasks, self.report = s, Tasks(s.data, s.outputs), rg.Report()

    def start(self, seed):
        """Whitened networks: for each layer weights (tasks, n, m) and biases (tasks, m)."""
        draw = lambda *shape: np.exp(-2) * rng.standard_normal(shape, np.float32)
        rng, tasks = np.random.default_rng(seed), len(self.tasks)
        layers = pairwise((self.tasks.pixels, *self.s.hidden, self.s.outputs))
        return [(draw(tasks, n, m), draw(tasks, m)) for n, m in layers]

    def mixing(self, shares):
        """T for each layer: (1 - c) identity + c (all entries alike)."""
        tasks = len(self.tasks)
        return [((1 - c) * np.eye(tasks) + c / tasks).astype(np.float32) for c in shares]

    def trained(self, mixing, drawers, seed, **options):
        return rg.train(
            loss, self.start(seed), rg.Momentum(1.0, 0.9), [self.tasks.batch(drawers)],
            steps=self.s.steps, hyper=mixing, adjoint=rg.Reversible(), **options,
        )  # fmt: skip

    def hyperloss(self, mixing, step):
        """Validation loss, averaged over tasks, on 2 of the 12 drawers, after training on 10."""
        drawers = np.random.default_rng((1, step)).permutation(12)
        z = self.trained(mixing, drawers[:10], (2, step), report=self.report)
        return nll(z, mixing, self.tasks.batch(drawers[10:])) / len(self.tasks)

    def final(self, mixing):
        """(mean over seeds of the training loss, of the test loss; the test loss of each seed)."""
        train, test = self.tasks.batch(np.arange(12)), self.tasks.batch(np.arange(12, 15))
        losses = []
        for seed in range(self.s.seeds):
            z = self.trained(mixing, np.arange(12), (3, seed))
            losses.append([float(nll(z, mixing, x)) / len(self.tasks) for x in (train, test)])
        train, test = np.mean(losses, axis=0)
        return {"train": train, "test": test, "test by seed": [each for _, each in losses]}


def main(s):
    if s.quick:
        s.hidden, s.steps, s.outer, s.outputs, s.seeds = (20, 10), 10, 3, 10, 1
    record, problem = Record(s.folder / "omniglot_multitask.json", s), Problem(s)
    save = s.folder / "omniglot_multitask.safetensors"
    start = problem.mixing(KINDS["learned"])

    def learn():
        sgd, report = rg.SGD(s.outer_rate), problem.report
        found = rg.minimize(problem.hyperloss, start, sgd, until=s.outer, save=save)
        facts = {"exact": report.returned_exactly, "bits": report.bits_per_weight_step}
        facts["MB kept"] = report.bytes_kept / 1e6
        return facts | {"values": found.values, "mixing": found.hyper}

    found = record.once("outer", learn)
    mixing = {k: problem.mixing(c) for k, c in KINDS.items()}
    mixing["learned"] = [np.array(t, np.float32) for t in found["mixing"]]
    for kind, t in mixing.items():
        print(kind, record.once(kind, lambda t=t: problem.final(t)))
    shared = [correlations(t) for t in mixing["learned"]]
    record["correlation"] = {
        "of two": [np.mean(c[~np.eye(len(c), dtype=bool)]) for c in shared],
        "turned": [np.mean(np.diag(c, len(c) // 2)) for c in shared],
    }
    record["bits per weight and step"] = found["bits"]
    record.finish()
    picture(problem.tasks, mixing["learned"], found["values"], s.folder / "omniglot_multitask.png")
    return {kind: record[kind] for kind in mixing}


if __name__ == "__main__":
    main(tyro.cli(Settings))
