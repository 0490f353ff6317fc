"""What the authors of 2015 did in ways of their own, for the examples that repeat their numbers.

Seeds from hashes, pixels less their mean, an outer Adam without momentum.
"""

from dataclasses import dataclass
from hashlib import md5
from typing import Any, ClassVar

import numpy as np

from revgrad import data
from revgrad.extend import Add, Optimizer, Scale
from revgrad.nn import softmax_cross_entropy


def random_state(*key):
    """The authors' way of seeding: a generator from the hash of a tuple."""
    return np.random.RandomState(int(md5(str(key).encode()).hexdigest()[:8], 16))


def slices(name, *counts, test=0, dtype=np.float64):
    """[(pixels less their mean over all, one-hot labels)] of "mnist" or "digits", in file order.

    Of these counts, one after the other; test: then as many of MNIST's test files, or of the rest.
    """
    if name == "mnist":
        (x, y), _, last = data.mnist(60_000, 0, max(1, test), dtype=np.float64)
    else:
        parts = zip(*data.digits(1_000, 400, dtype=np.float64), strict=True)
        x, y = map(np.concatenate, parts)
        last = x[-test - 1 :], y[-test - 1 :]
    ends, mean = np.cumsum(counts), x.mean(0)
    if ends[-1] > len(x):
        raise ValueError(f"{name} has {len(x)} examples, {ends[-1]} were asked for; try --quick.")
    parts = [(x[b - n : b], y[b - n : b]) for n, b in zip(counts, ends, strict=True)]
    parts += [(last[0][:test], last[1][:test])] if test else []
    return [((x - mean).astype(dtype), data.one_hot(y, 10, dtype)) for x, y in parts]


def start(pixels):
    """The authors' weights of a logistic regression; they draw a velocity first, and drop it."""
    draw, count = np.random.RandomState(0), 10 * pixels + 10
    draw.randn(count)
    flat = np.exp(-4) * draw.randn(count)
    return {"weights": flat[:-10].reshape(pixels, 10), "bias": flat[-10:]}


def nll(params, split):
    """Mean negative log-likelihood of a logistic regression, in nats."""
    x, y = split
    return softmax_cross_entropy(x @ params["weights"] + params["bias"], y)


def error(params, split):
    """Share of examples that it gets wrong, in %."""
    x, y = split
    guesses = np.argmax(x @ params["weights"] + params["bias"], 1)
    return 100 * float(np.mean(guesses != np.argmax(y, 1)))


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
