"""Figure 3: schedules of 250 rates learned from zero, greedily and not, unshared and shared.

    python examples/long_horizon/schedules_from_zero.py [--folder docs/reproduction] [--quick]

A rate for each of `steps` steps, all 0 at first; at each outer step a fresh split and fresh params,
and every value moves by its own step against its sign (`rg.SignDescent`), whatever the
hypergradient is: greedy (of the loss right after the step), of the final loss for each step, the
same for values that a tenth of the steps share; and of three values between which the rate is
linear, a schedule of few parameters as the paper proposes. Beside them is an off-the-shelf cosine,
from the best of five rates. The horizon is short enough for reverse mode, which takes any number of
values at once.

Reduced: a network 784-64-10 (the paper: LeNet), 250 steps of 128 (500), 20 outer steps (50).

Source: Micaelli and Storkey 2021, figure 3.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from greed import greedy_slopes
from images import load
from nets import Mlp
from pictures import schedules
from task import Task

import revgrad as rg
from revgrad.records import Record

PAPER = {}  # pictures without numbers; the claim: greedy is far too small, shared beats the shelf
BOUND = 3.0


@dataclass
class Settings:
    folder: Path = Path(".")  # where schedules_from_zero.json and .png go
    quick: bool = False  # a stand-in for data, for tests
    steps: int = 250
    outer: int = 20
    data: str = "mnist"  # or cifar, svhn
    step: float = 0.1  # how far rates move at first


def main(settings=None):
    settings = settings or Settings()
    name = "noise" if settings.quick else settings.data
    stem = "schedules_from_zero" + (f"_{name}" if name not in ("noise", "mnist") else "")
    record = Record(settings.folder / f"{stem}.json", settings)
    task, outer = task_of(settings, name), 3 if settings.quick else settings.outer
    rows = {
        kind: record.once(f"{name}, {kind}", partial(learn, task, kind, outer, settings.step))
        for kind in ("greedy", "unshared", "shared", "functional")
    }
    rows["off the shelf"] = record.once(f"{name}, off the shelf", partial(shelf, task))
    record["test"] = {kind: row["test"] for kind, row in rows.items()}
    record.finish()
    schedules(settings.folder / f"{stem}.png", rows)
    return rows


def task_of(settings, name):
    if settings.quick:
        return Task(Mlp(), *load(name, 800, 200), steps=40, batch=20)
    images = load(name, *((60_000, 10_000) if name == "mnist" else (10_000, 2_000)))
    return Task(Mlp(images[0][0][0].size), *images, steps=settings.steps, batch=128)


def schedule(task, hyper):
    """Rates, one per step: of values that steps share, or linear between three."""
    if len(hyper) == 3:
        t, knots = np.linspace(0, 2, task.steps)[:, None], np.arange(3)
        return np.maximum(0, 1 - np.abs(t - knots)) @ hyper
    return np.repeat(hyper, task.steps // len(hyper))


def learn(task, kind, outer, step):
    count = {"shared": 10, "functional": 3}.get(kind, task.steps)
    losses = {"greedy": next_losses}.get(kind, final_loss)

    found = rg.minimize(
        lambda hyper, seed: losses(task, schedule(task, hyper), seed), np.zeros(count),
        rg.SignDescent(step), until=outer,
    )  # fmt: skip
    rates = schedule(task, found.hyper)
    return {"rates": rates, "test": score(task, rates), "values": found.values}


def optimizer(rates):
    return rg.Clip(rg.SGD(rg.per_step(rates)), BOUND)


def final_loss(task, rates, seed):
    trained, valid = task.train(optimizer(rates), seed, adjoint=rg.Stored())
    return task.net.loss(trained, None, valid)


def next_losses(task, rates, seed):
    """What has the greedy slopes as its gradient."""
    slopes = greedy_slopes(task, rg.stop_gradient(rates), seed, BOUND)
    return np.sum(rates * slopes)


def score(task, rates, seeds=3):
    """Test accuracy in percent, in the mean over runs on all data."""
    return np.mean([task.score(optimizer(rates), 900 + k, whole=True) for k in range(seeds)])


def shelf(task):
    """A cosine from the rate that validates best."""
    shape = 0.5 * (1 + np.cos(np.pi * np.arange(task.steps) / task.steps))
    tried = [a * shape for a in (0.05, 0.1, 0.2, 0.4, 0.6)]
    rates = tried[int(np.argmax([task.score(optimizer(rates), 0) for rates in tried]))]
    return {"rates": rates, "test": score(task, rates)}


if __name__ == "__main__":
    for kind, row in main(tyro.cli(Settings)).items():
        print(f"{kind:14} {row['test']:.2f} %")
