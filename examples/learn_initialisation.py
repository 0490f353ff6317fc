"""Learn where to start: initial weights from which Adam learns a new task in a few steps.

The initial parameters are hyperparameters like any other, here of a network that learns sine waves
of unknown amplitude and phase from ten points each (the problem of Finn et al. 2017). Training is
Adam's, whole, and reversed exactly: its moments, its bias correction and its division by a root
all come back bit for bit. What is learned is judged by waves never met before.

    python examples/learn_initialisation.py            5 minutes on one core
    python examples/learn_initialisation.py --quick    seconds
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import tyro

import revgrad as rg
from revgrad.records import Record

PAPER = {
    "error on new waves, random start": (None, "test/random"),
    "error on new waves, learned start": (None, "test/learned"),
    "returned exactly": ("-", "exact"),
}
LAYERS = (1, 40, 40, 1)
FINE = rg.FixedPoint({"first_moment": 60, "second_moment": 60})  # in few steps they stay small


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    steps: int = 20  # of Adam, on a task
    points: int = 10  # to learn a wave from
    tasks: int = 25  # in a meta-iteration
    outer: int = 2_000
    rate: float = 0.01
    outer_rate: float = 0.003


def waves(seed, tasks, points):
    """((x, y) to learn from, the same to judge by): arrays (tasks, points, 1)."""
    rng = np.random.default_rng(seed)
    amplitude, phase = rng.uniform(0.1, 5, (tasks, 1, 1)), rng.uniform(0, np.pi, (tasks, 1, 1))
    xs = rng.uniform(-5, 5, (2, tasks, points, 1))
    return [(x, amplitude * np.sin(x - phase)) for x in xs]


def predicted(params, x):
    for weights, bias in params[:-1]:
        x = np.tanh(x @ weights + bias)
    return x @ params[-1][0] + params[-1][1]


def loss(params, _hyper, batch):
    """Summed over tasks, so that each learns as if it were alone; a mean over its points."""
    x, y = batch
    return np.sum((predicted(params, x) - y) ** 2) / x.shape[1]


class Problem:
    def __init__(self, s):
        self.s, rng, self.report = s, np.random.default_rng(0), rg.Report()
        self.start = [
            (rng.standard_normal((n, m)) / n**0.5, np.zeros((1, m))) for n, m in pairwise(LAYERS)
        ]

    def trained(self, start, learn_from, steps=None):
        """A network for each task, all from the same start."""
        tasks = len(learn_from[0])
        copies = [tuple(np.broadcast_to(x, (tasks, *x.shape)) for x in layer) for layer in start]
        # a smaller eps makes the first steps all but signs of the gradient, without a slope
        adam = rg.Adam(self.s.rate, eps=1e-3)
        return rg.train(
            loss, copies, adam, [learn_from], steps=self.s.steps if steps is None else steps,
            adjoint=rg.Reversible(), report=self.report, arithmetic=FINE,
        )  # fmt: skip

    def error(self, start, seed, tasks, steps=None):
        """Mean squared error on points that were not learned from, after learning."""
        learn_from, judge_by = waves(seed, tasks, self.s.points)
        return loss(self.trained(start, learn_from, steps), None, judge_by) / tasks

    def learn(self, save):
        hyperloss = lambda start, step: self.error(start, (1, step), self.s.tasks)
        found = rg.minimize(
            hyperloss, self.start, rg.Adam(self.s.outer_rate), until=self.s.outer, save=save
        )
        return {"values": found.values, "start": found.hyper}


def picture(problem, starts, record, path):
    figure, (left, right, curve) = plt.subplots(1, 3, figsize=(13, 3.5), layout="constrained")
    learn_from, _ = waves((3, 1), 1, problem.s.points)
    x = np.linspace(-5, 5, 200)[None, :, None]
    for ax, (name, start) in zip((left, right), starts.items(), strict=True):
        for steps in (0, 5, problem.s.steps):
            y = predicted(problem.trained(start, learn_from, steps), x)
            ax.plot(x[0, :, 0], y[0, :, 0], label=f"after {steps} steps")
        ax.plot(learn_from[0].ravel(), learn_from[1].ravel(), "k.", label="learned from")
        ax.set(title=f"{name} start", xlabel="x", ylabel="y")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    values = record["outer"]["values"]
    curve.plot(np.convolve(values, np.full(20, 1 / 20), "valid"))
    curve.set(xlabel="meta-iteration", ylabel="squared error, mean of 20")
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main(s):
    if s.quick:
        s.outer, s.steps = 40, 10
    record, problem = Record(s.folder / "learn_initialisation.json", s), Problem(s)
    save = s.folder / "learn_initialisation.safetensors"
    found = record.once("outer", lambda: problem.learn(save))
    learned = [tuple(np.array(x) for x in layer) for layer in found["start"]]
    starts = {"random": problem.start, "learned": learned}
    record["test"] = {
        name: float(problem.error(start, (2, 0), 500)) for name, start in starts.items()
    }
    rg.grad(problem.error)(learned, (2, 1), s.tasks)
    record["exact"] = problem.report.returned_exactly
    record["bits per weight and step"] = problem.report.bits_per_weight_step
    print(record["test"], "returned exactly:", record["exact"])
    picture(problem, starts, record, s.folder / "learn_initialisation.png")
    record.finish()
    return {"test": record["test"], "exact": record["exact"]}


if __name__ == "__main__":
    main(tyro.cli(Settings))
