"""Table 1: rates, momentum and decay learned from zero, against grid, random search and greed.

    python examples/long_horizon/learned_from_zero.py [--folder docs/reproduction] [--quick]
    python examples/long_horizon/learned_from_zero.py --data cifar --steps 100 --seeds 1 --outer 8
    python examples/long_horizon/learned_from_zero.py --data svhn
    python examples/long_horizon/learned_from_zero.py --data cifar --full

Everything starts at 0. Ten times a fresh network is trained on a fresh split, with tangents of all
schedules riding along (`rg.Forward`), and each value moves by its own step against the sign of its
hypergradient (`rg.SignDescent`; algorithm 1). Then one network is trained on all data with the last
schedules; or with those that validated best, as the authors' older code has it. Products with the
Hessian are clipped at 10, or at 1 as in their script for figure 1.

The rows beside it have the same budget, in runs: a grid by hand, random search over the ranges that
the paper gives, Bayesian optimisation over a twentieth of them (appendix E; Optuna), and greed,
where the hyperparameters follow the next loss alone as training goes (`tuned_by`). What is chosen
there is chosen by validation.

Reduced: LeNet sees `steps` batches of 64 of MNIST, a fifth of an epoch where the paper has two, and
3 learning rates where it has 7, so that many steps still share one; first steps are half of the
paper's (it finds that they hardly matter); for CIFAR-10 three convolutions stand in for a wide
residual network. The order of the rows is what can be compared.
The picture has the schedules, hypergradients and accuracy of each outer step (figures 1 and 4), and
the accuracies of what was tried by hand and at random (figure 5).

Source: Micaelli and Storkey 2021, Gradient-based Hyperparameter Optimization over Long Horizons.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from algorithm1 import again, learn
from pictures import table
from rivals import by_bayes, by_greed, by_hand, by_random_search
from task import task_of

from revgrad.records import Record

PAPER = {
    "hand-tuned grid, test accuracy (%)": (98.4, "rows/hand/mean"),
    "random search": (98.0, "rows/random/mean"),
    "greedy": (97.5, "rows/greedy/mean"),
    "learned from zero": (98.7, "rows/learned/mean"),
    "learned from zero, schedules that validated best": (None, "rows/best/mean"),
    "learned from zero, products clipped at 1": (None, "rows/learned, clip 1/mean"),
    "Bayesian optimisation": (None, "rows/bayes/mean"),
}


@dataclass
class Settings:
    folder: Path = Path(".")  # where learned_from_zero.json and the pictures go
    quick: bool = False  # a small network on a stand-in for data, for tests
    full: bool = False  # the paper's networks, epochs and numbers of draws
    data: str = "mnist"  # mnist, cifar or svhn
    steps: int = 200
    values: int = 3  # of the learning rate, each shared by as many steps; the paper has 7 and 5
    seeds: int = 3
    outer: int = 10


def main(settings=None):
    settings = settings or Settings()
    name = "learned_from_zero" + ("" if settings.data == "mnist" else f"_{settings.data}")
    record, task = Record(settings.folder / f"{name}.json", settings), task_of(settings)
    values = (5 if settings.data == "cifar" else 7) if settings.full else settings.values
    start = {"rate": np.zeros(values), "momentum": np.zeros(1), "decay": np.zeros(1)}
    seeds = range(settings.seeds)
    found = {
        row: [
            record.once(f"{row}, seed {k}", partial(learn, task, start, settings, k, record, clip))
            for k in seeds
        ]
        for row, clip in (("learned", 10.0), ("learned, clip 1", 1.0))
    }
    runs = settings.outer * (1 + mean_columns(start))  # of plain training, that learning takes
    rivals = {"hand": by_hand, "random": by_random_search, "bayes": by_bayes, "greedy": by_greed}
    for row, rival in rivals.items():
        found[row] = [
            record.once(f"{row}, seed {k}", partial(rival, task, start, settings, int(runs), k))
            for k in seeds
        ]
    found["best"] = [
        record.once(f"best, seed {k}", partial(again, task, found["learned"][k], k)) for k in seeds
    ]
    rows = {row: summary([x["test"] for x in each]) for row, each in found.items()}
    record["rows"] = rows
    record.finish()
    table(settings.folder / f"{name}.png", found, rows)
    return rows


def mean_columns(start):
    """How many tangents ride along in the mean: a value's does so from its first step on."""
    return sum((len(x) + 1) / 2 for x in start.values())


def summary(scores):
    return {"mean": np.mean(scores), "std": np.std(scores, ddof=1) if len(scores) > 1 else 0.0}


if __name__ == "__main__":
    for row, score in main(tyro.cli(Settings)).items():
        print(f"{row:10} {score['mean']:.2f} +- {score['std']:.2f} %")
