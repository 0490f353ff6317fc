"""Learn a learning rate and a momentum for every step and layer, and the initial scales.

1,608 hyperparameters of an MLP on MNIST, from one pass back per outer step (Maclaurin et al. 2015,
figures 2, 3 and 5). The default start is the best single setting that Bayesian optimisation found
(rate 2.4, momentum 0.6, scale 0.2: the authors' run `7_adam_50_whetlab_init`); `--start paper` is
the published figures' (rate 0.37, momentum 0.5, scale 0.05). Needs MNIST.

    python examples/learn_schedules.py --outer 1      the first hypergradient alone
"""

from dataclasses import dataclass
from hashlib import md5
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import tyro

import revgrad as rg
from revgrad import data, plots
from revgrad.extend import Add, Optimizer, Scale
from revgrad.nn import softmax_cross_entropy

LAYERS = (784, 50, 50, 50, 10)
STARTS = {"tuned": (0.887, 0.403, -1.63), "paper": (-1.0, 0.0, -3.0)}


@dataclass
class Settings:
    start: Literal["tuned", "paper"] = "tuned"
    steps: int = 100
    outer: int = 50
    examples: int = 10_000
    batch: int = 200
    outer_rate: float = 0.04
    dtype: Literal["float32", "float64"] = "float64"
    picture: str = "learn_schedules.png"


def authors_update(first, second, learning_rate, t):
    return -learning_rate * first / (1 - 0.9**t) / (np.sqrt(second / (1 - 0.99**t)) + 1e-4)


@dataclass(frozen=True, eq=False)
class AuthorsAdam(Optimizer):
    """The authors' outer optimizer: Adam, but its momentum is all but gone from step 2 on."""

    learning_rate: Any
    statements: ClassVar = (
        Scale("first", by=lambda t: 0.9 * 1e-4 ** (t - 1)),
        Add("first", lambda g, t: (1 - 0.9 * 1e-4 ** (t - 1)) * g),
        Scale("second", by=lambda t: 0.99),
        Add("second", lambda g: 0.01 * g * g),
        Add("params", authors_update),
    )


def random_state(*key):
    """The authors' way of seeding: a generator from the hash of a tuple."""
    return np.random.RandomState(int(md5(str(key).encode()).hexdigest()[:8], 16))


def leaves(columns):
    """Eight columns (W1, b1, ..., W4, b4) as a tree like the params."""
    return [(columns[2 * k], columns[2 * k + 1]) for k in range(len(LAYERS) - 1)]


def logits(params, x):
    for weights, bias in params[:-1]:
        x = np.tanh(x @ weights + bias)
    return x @ params[-1][0] + params[-1][1]


class Problem:
    def __init__(self, s):
        pixels, labels = data.mnist(60_000, 0, dtype=np.float64).train
        self.x = (pixels[: s.examples] - pixels.mean(0)).astype(s.dtype)
        self.y = data.one_hot(labels[: s.examples], 10, s.dtype)
        self.settings, self.report = s, rg.Report()

    def start(self):
        rate, momentum, scale = STARTS[self.settings.start]
        schedule = np.ones((self.settings.steps, 8))
        return {
            "log_rate": rate * schedule,
            "logit_momentum": momentum * schedule,
            "log_scale": np.full(8, scale),
        }

    def initial(self, log_scale, outer_step):
        noise = random_state(0, outer_step)  # one stream: W1, b1, W2, ...
        draws = [(noise.randn(n, m), noise.randn(m)) for n, m in pairwise(LAYERS)]
        scaled = [
            (np.exp(a) * w, np.exp(c) * b)
            for (a, c), (w, b) in zip(leaves(log_scale), draws, strict=True)
        ]
        return [(w.astype(self.settings.dtype), b.astype(self.settings.dtype)) for w, b in scaled]

    def batch(self, outer_step, step):
        s = self.settings
        rows = random_state(0, outer_step, step).randint(s.examples, size=s.batch)
        return self.x[rows], self.y[rows]

    def loss(self, params, _hyper, batch):
        return softmax_cross_entropy(logits(params, batch[0]), batch[1])

    def hyperloss(self, hyper, outer_step):
        """Training loss on all examples after training with these schedules."""
        optimizer = rg.Momentum(
            rg.per_step(leaves(np.exp(hyper["log_rate"]).T)),
            rg.per_step(leaves(1 / (1 + np.exp(-hyper["logit_momentum"])).T)),
        )
        start = self.initial(hyper["log_scale"], outer_step)
        trained = rg.train(
            self.loss, start, optimizer, lambda step: self.batch(outer_step, step),
            steps=self.settings.steps, adjoint=rg.Reversible(), report=self.report,
        )  # fmt: skip
        return self.loss(trained, None, (self.x, self.y))


def main(s):
    problem = Problem(s)
    optimizer = AuthorsAdam(s.outer_rate)
    found = rg.minimize(problem.hyperloss, problem.start(), optimizer, until=s.outer)
    print(f"training loss {found.values[0]:.4f}, then {found.best_value:.4f} at best")
    print(problem.report)
    rates = np.exp(found.hyper["log_rate"])
    ax = plots.schedules(
        {f"layer {k + 1}": rates[:, 2 * k] for k in range(4)}, ylabel="learning rate"
    )
    ax.figure.savefig(s.picture, dpi=150, bbox_inches="tight")
    return {"values": found.values, "hyper": found.hyper}


if __name__ == "__main__":
    main(tyro.cli(Settings))
