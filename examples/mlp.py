"""The MLP whose schedules and initial scales are learned in figures 2 to 5 of the 2015 paper."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from authors import random_state, slices

import revgrad as rg
from revgrad.nn import softmax_cross_entropy

NAMES = ("W1", "b1", "W2", "b2", "W3", "b3", "W4", "b4")


@dataclass
class Settings:
    folder: Path = Path(".")
    quick: bool = False
    data: Literal["mnist", "digits"] = "mnist"
    steps: int = 100
    examples: int = 10_000
    batch: int = 200
    dtype: Literal["float32", "float64"] = "float64"
    rounding: Literal["truncated", "nearest"] = "truncated"  # of momenta; the authors', or ours


def leaves(columns):
    """Columns (W1, b1, W2, b2, ...) as a tree like the params."""
    return [(columns[k], columns[k + 1]) for k in range(0, len(columns), 2)]


def logits(params, x):
    for weights, bias in params[:-1]:
        x = np.tanh(x @ weights + bias)
    return x @ params[-1][0] + params[-1][1]


def nll(params, split):
    """Mean negative log-likelihood, in nats."""
    return softmax_cross_entropy(logits(params, split[0]), split[1])


class Problem:
    """Training the MLP, from a start and with batches that depend on a seed."""

    def __init__(self, settings):
        s = self.settings = settings
        ((self.x, self.y),) = slices(s.data, s.examples, dtype=s.dtype)
        self.layers, self.report = (self.x.shape[1], 50, 50, 50, 10), rg.Report()

    def hyper(self, log_rate, logit_momentum, log_scale):
        """A rate and a momentum for each step and W1, b1, ..., b4, and eight scales; all alike."""
        schedule = np.ones((self.settings.steps, 8))
        return {
            "log_rate": log_rate * schedule,
            "logit_momentum": logit_momentum * schedule,
            "log_scale": log_scale * np.ones(8),
        }

    def initial(self, log_scale, seed):
        """Weights and biases, each drawn with the scale of its own, from one stream."""
        noise, dtype = random_state(0, seed), self.settings.dtype
        draws = [x for n, m in pairwise(self.layers) for x in (noise.randn(n, m), noise.randn(m))]
        scaled = [np.exp(a) * x for a, x in zip(log_scale, draws, strict=True)]
        return leaves([x.astype(dtype) for x in scaled])

    def batch(self, seed, step):
        s = self.settings
        rows = random_state(0, seed, step).randint(s.examples, size=s.batch)
        return self.x[rows], self.y[rows]

    def loss(self, params, _hyper, batch):
        return nll(params, batch)

    def loss_on_all(self, _step, params):
        return self.loss(params, None, (self.x, self.y))

    def hyperloss(self, hyper, seed, watch=None):
        """Training loss on all examples after training with these schedules."""
        s = self.settings
        optimizer = rg.Momentum(
            rg.per_step(leaves(np.exp(hyper["log_rate"]).T)),
            rg.per_step(leaves(1 / (1 + np.exp(-hyper["logit_momentum"])).T)),
        )
        trained = rg.train(
            self.loss, self.initial(hyper["log_scale"], seed), optimizer,
            lambda step: self.batch(seed, step), steps=s.steps, adjoint=rg.Reversible(),
            arithmetic=rg.FixedPoint(rounding=s.rounding), watch=watch, report=self.report,
        )  # fmt: skip
        return self.loss_on_all(None, trained)
