"""What learned schedules are compared with, each given as many training runs as learning takes.

Each takes (task, zero schedules, settings, runs, seed), chooses by validation, and returns the test
accuracy of one run on all data, with what was tried.
"""

from itertools import product

import numpy as np
from task import clipped

import revgrad as rg

RANGES = {"rate": 1.0, "momentum": 1.5, "decay": 4e-3}  # of random search, either side of 0


def by_hand(task, start, settings, runs, seed):
    """Cosine from each rate, without momentum and decay; for CIFAR-10 steps down, with both."""
    t = np.arange(task.steps)
    if settings.data != "cifar":
        grid = [(a, 1, 0.0, 0.0) for a in (0.05, 0.1, 0.2, 0.4, 0.6)]
        shape = lambda _: 0.5 * (1 + np.cos(np.pi * t / task.steps))
    else:  # at 30, 60 and 80 percent
        grid = [*product((0.02, 0.05, 0.1), (0.2, 0.4), (0.45, 0.9), (5e-4,))]
        shape = lambda drop: drop ** np.searchsorted([0.3, 0.6, 0.8], t / task.steps, "right")
    made = [
        clipped(rg.per_step(a * shape(drop)), momentum, decay) for a, drop, momentum, decay in grid
    ]
    return _best(task, made, seed, [list(g) for g in grid])


def by_random_search(task, start, settings, runs, seed):
    rng = np.random.default_rng((2, seed))
    draws = [
        {k: rng.uniform(-RANGES[k], RANGES[k], len(x)) for k, x in start.items()}
        for _ in range(runs)
    ]
    return _best(task, [task.optimizer(d) for d in draws], seed, draws)


def by_greed(task, start, settings, runs, seed):
    """All three follow the next loss as training goes, from several starts; clipped at 1."""
    tried = [*product((0.0, 0.02, 0.1), (0.2, 0.02, 0.002))]
    scores = [_greedy(task, seed, *choice, whole=False) for choice in tried]
    best = int(np.argmax(scores))
    test = _greedy(task, seed, *tried[best], whole=True)
    papers = _greedy(task, seed, 0.0, 0.2, whole=True)
    chosen = {"chosen": list(tried[best]), "the paper's setting": papers}
    return {"test": test, "valid": scores} | chosen


def _greedy(task, seed, rate, outer_rate, whole):
    train, valid = task.split(seed, whole)
    tuner = rg.Clip(rg.SGD(outer_rate), 1.0)
    names = ("learning_rate", "momentum", "weight_decay")
    optimizer = clipped(
        rate, 0.0, 0.0, tuned_by=tuner, tuned=names, transforms=dict.fromkeys(names, "free")
    )
    params, batches = task.net.params(seed, task.dtype), task.batches(train, seed)
    try:
        trained, _ = rg.fit(task.net.loss, params, optimizer, batches, steps=task.steps)
    except rg.NotFinite:
        return 10.0
    return task.accuracy(trained, task.test if whole else valid)


def _best(task, optimizers, seed, what):
    """Choose by validation; then one run on all data."""
    scores = [task.score(optimizer, seed) for optimizer in optimizers]
    best = int(np.argmax(scores))
    test = task.score(optimizers[best], 1000 * seed + 999, whole=True)
    return {"test": test, "chosen": what[best], "valid": scores}
