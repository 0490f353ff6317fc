"""Figure 2: how hypergradients of a learning rate degrade, and what sharing does about it.

    python examples/long_horizon/gradient_degradation.py [--folder docs/reproduction] [--quick]

A constant rate, learned per step. One thing at a time is changed a little: the order of batches,
the examples that validate, the initial weights (by 1%), the rate (by 1%); `rg.diagnose` says how
much the hypergradient of each step then fluctuates, greedy (of the loss right after the step) or of
the final loss. Values that n steps share have the mean of n of these: were they independent, its
spread would fall with the square root of n.

Reduced: LeNet in float64 on MNIST (the paper: SVHN), 100 steps of 32 (400 of 64), 6 repeats; at the
paper's rate of 0.05, which is about the best for MNIST over so few steps, so that slopes have no
sign to speak of, and at 0.01, as in the authors' later code.

Source: Micaelli and Storkey 2021, figure 2 and section 4.
"""

import warnings
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import tyro
from greed import greedy_slopes
from images import load
from nets import LeNet, Mlp
from pictures import degradation
from task import Task

import revgrad as rg
from revgrad.records import Record

PAPER = {
    "std / mean, non-greedy, other batches, rate 0.05": (6.0, "batches, rate 0.05/1/ratio"),
    "the same, rate 0.01": (None, "batches, rate 0.01/1/ratio"),
    "share of signs that differ, shared, rate 0.05": (0.015, "signs that differ/0.05"),
    "share of signs that differ, shared, rate 0.01": (None, "signs that differ/0.01"),
}
SHARED = (1, 2, 5, 10, 20)  # steps that share a value
FACTORS = "batches", "validation", "weights", "rate"
RATES, BOUND = (0.01, 0.05), 1.0


@dataclass
class Settings:
    folder: Path = Path(".")  # where gradient_degradation.json and .png go
    quick: bool = False  # a small network on a stand-in for data, for tests
    repeats: int = 6
    steps: int = 100


def main(settings=None):
    settings = settings or Settings()
    record = Record(settings.folder / "gradient_degradation.json", settings)
    if settings.quick:
        task = Task(Mlp(), *load("noise", 400, 100), steps=20, batch=20, dtype=np.float64)
    else:
        task = Task(LeNet(), *load("mnist", 4_000, 100), settings.steps, 32, dtype=np.float64)
    found = {rate: {} for rate in RATES}
    for rate, factor in product(RATES, FACTORS):
        seen = partial(look, task, factor, rate, settings.repeats)
        found[rate][factor] = record.once(f"{factor}, rate {rate}", seen)
    record["signs that differ"] = {
        str(rate): np.mean([kinds["20"]["fluctuation"] for kinds in found[rate].values()])
        for rate in RATES
    }
    record.finish()
    degradation(settings.folder / "gradient_degradation.png", found, FACTORS, SHARED)
    return found


def look(task, factor, rate, repeats):
    """Fluctuation of greedy and of shared hypergradients, by how many steps share a value."""
    zeros = {str(n): np.zeros(task.steps // n) for n in SHARED}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rg.FragileHypergradient)
        final = rg.diagnose(partial(final_loss, task, factor, rate), zeros, repeats)
        greedy = rg.diagnose(partial(next_losses, task, factor, rate), zeros["1"], repeats)
    kinds = {n: (final.mean[n], final.std[n], final.sign_fluctuation[n]) for n in zeros}
    kinds["greedy"] = greedy.mean, greedy.std, greedy.sign_fluctuation
    return {
        kind: {"mean": mean, "std": std, "ratio": np.median(std / np.abs(mean)),
               "signs": signs, "fluctuation": np.mean(signs)}
        for kind, (mean, std, signs) in kinds.items()
    }  # fmt: skip


def changed(factor, seed):
    """(seed of batches, seed of the split, factor of the weights, factor of the rate)."""
    off = 1 + 0.01 * np.random.default_rng((3, seed)).uniform(-1, 1)
    at = {"batches": 0, "validation": 0, "weights": 1.0, "rate": 1.0}
    return at | {factor: seed if factor in ("batches", "validation") else off}


def final_loss(task, factor, rate, hyper, seed):
    """Validation loss at the end; each hyper[n] adds to the rate what n steps share."""
    at = changed(factor, seed)
    rates = rate * at["rate"] + sum(np.repeat(x, int(n)) for n, x in hyper.items())
    train, valid = task.split(at["validation"])
    params = [at["weights"] * p for p in task.net.params(0, task.dtype)]
    trained = rg.train(
        task.net.loss, params, rg.Clip(rg.SGD(rg.per_step(rates)), BOUND),
        task.batches(train, at["batches"]), steps=task.steps, adjoint=rg.Stored(),
    )  # fmt: skip
    return task.net.loss(trained, None, valid)


def next_losses(task, factor, rate, rates, seed):
    """What has the greedy slopes as its gradient."""
    at = changed(factor, seed)
    here = np.full(task.steps, rate * at["rate"])
    slopes = greedy_slopes(task, here, at["batches"], BOUND, at["validation"], at["weights"])
    return np.sum(rates * slopes)


if __name__ == "__main__":
    for rate, factors in main(tyro.cli(Settings)).items():
        for factor, kinds in factors.items():
            said = [f"{k} {v['ratio']:.3g} ({v['fluctuation']:.1%})" for k, v in kinds.items()]
            print(f"rate {rate}, {factor}: std / mean (signs that differ): {', '.join(said)}")
