"""What the authors of 2015 did in ways of their own, for the examples that repeat their numbers.

Seeds from hashes, an outer Adam without momentum; and the MLP of figures 2 to 5.
"""

from dataclasses import dataclass
from hashlib import md5
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np

import revgrad as rg
from revgrad import data
from revgrad.extend import Add, Optimizer, Scale
from revgrad.nn import softmax_cross_entropy

NAMES = ("W1", "b1", "W2", "b2", "W3", "b3", "W4", "b4")


def random_state(*key):
    """The authors' way of seeding: a generator from the hash of a tuple."""
    return np.random.RandomState(int(md5(str(key).encode()).hexdigest()[:8], 16))


def slices(name, *counts, dtype=np.float64):
    """[(pixels less their mean over all, one-hot labels)] of "mnist" or "digits", in file order."""
    if name == "mnist":
        x, labels = data.mnist(60_000, 0, dtype=np.float64).train
    else:
        parts = zip(*data.digits(1_000, 400, dtype=np.float64), strict=True)
        x, labels = map(np.concatenate, parts)
    ends, mean = np.cumsum(counts), x.mean(0)
    if ends[-1] > len(x):
        raise ValueError(f"{name} has {len(x)} examples, {ends[-1]} were asked for; try --quick.")
    y = data.one_hot(labels, 10, dtype)
    parts = [slice(b - n, b) for n, b in zip(counts, ends, strict=True)]
    return [((x[part] - mean).astype(dtype), y[part]) for part in parts]


def leaves(columns):
    """Columns (W1, b1, W2, b2, ...) as a tree like the params."""
    return [(columns[k], columns[k + 1]) for k in range(0, len(columns), 2)]


def logits(params, x):
    for weights, bias in params[:-1]:
        x = np.tanh(x @ weights + bias)
    return x @ params[-1][0] + params[-1][1]


class Problem:
    """Training the MLP, from a start and with batches that depend on a seed.

    settings: with data, steps, batch, examples, dtype, and rounding (of momenta).
    """

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
        return softmax_cross_entropy(logits(params, batch[0]), batch[1])

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


def _update(first, second, learning_rate, t):
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
        Add("params", _update),
    )
