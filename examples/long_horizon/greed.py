"""Greedy slopes of a learning rate: what each step does to the validation loss right after it."""

import numpy as np

import revgrad as rg


def greedy_slopes(task, rates, seed, bound, valid_seed=None, start=1.0):
    """-<validation gradient after the step, clipped gradient of the step>, for each step.

    start: what the initial params are multiplied by.
    """
    train, valid = task.split(seed if valid_seed is None else valid_seed)
    gradient = rg.compile(rg.grad(lambda params, batch: task.net.loss(params, None, batch)))
    params, batches = task.net.params(0, task.dtype), task.batches(train, seed)
    params, slopes = [start * p for p in params], []
    for t, rate in enumerate(np.asarray(rates, task.dtype)):
        g = [np.clip(x, -bound, bound) for x in gradient(params, batches(t))]
        params = [p - rate * x for p, x in zip(params, g, strict=True)]
        after = gradient(params, valid)
        slopes.append(-sum(np.sum(a * x) for a, x in zip(after, g, strict=True)))
    return np.array(slopes, np.float64)
